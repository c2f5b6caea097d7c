"""Mu-law numbers, and the positions that each tokenizer makes."""

import json

import numpy as np
import pytest
import torch
from torchaudio.functional import mu_law_encoding

from longseq.domains.audio.tokenizer import SILENCE, TOKENIZERS, AudioTokenizer, mulaw_decode, mulaw_encode
from longseq.embeddings_audio import AUDIO_EMBEDDINGS
from longseq.errors import ConfigError


def test_mulaw_is_torchaudios() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 5000)
    assert np.array_equal(mulaw_encode(samples), mu_law_encoding(torch.from_numpy(samples), 256).numpy())


def test_mulaw_there_and_back() -> None:
    levels = np.arange(256)
    assert np.array_equal(mulaw_encode(mulaw_decode(levels)), levels)
    samples = np.linspace(-1, 1, 1001)
    assert np.abs(mulaw_decode(mulaw_encode(samples)) - samples).max() < 0.025
    assert mulaw_encode(np.zeros(1))[0] == SILENCE
    assert mulaw_encode(np.array([-5.0, 5.0])).tolist() == [0, 255]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("length", [1, 15, 16, 79, 80, 81, 1000])
def test_positions_are_those_of_the_embedding(name: str, length: int) -> None:
    tokenizer = AudioTokenizer(name, 8000)
    if name == "mulaw":
        assert tokenizer.n_positions(length) == length
        return
    options = tokenizer.embedding()
    embedding = AUDIO_EMBEDDINGS[options.pop("name")](8, **options)
    assert embedding(torch.zeros(1, length))[0].shape[1] == tokenizer.n_positions(length)


def test_a_tokenizer_is_rebuilt_from_its_dict() -> None:
    tokenizer = AudioTokenizer("waveform", 16000, stem_strides=(2, 5), stem_kernels=(4, 10))
    assert AudioTokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict()))) == tokenizer


def test_mistakes_are_answered() -> None:
    with pytest.raises(ConfigError, match="tokenizer must be one of"):
        AudioTokenizer("mel", 8000)
    with pytest.raises(ConfigError, match="f_max"):
        AudioTokenizer("logmel", 8000, f_max=9000.0).front_end()
    with pytest.raises(ConfigError, match="kernel_sizes"):
        AudioTokenizer("waveform", 8000, stem_strides=(4,), stem_kernels=(2,)).front_end()
