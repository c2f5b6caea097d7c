"""Front ends for sound: masks, lengths, and features as torchaudio computes them."""

from typing import Any, cast

import pytest
import torch
from torch import nn
from torchaudio.transforms import MFCC, MelSpectrogram

from longseq.embeddings_audio import AUDIO_EMBEDDINGS, LogMelEmbedding, MFCCEmbedding, WaveformEmbedding

FORMS: list[tuple[str, dict[str, Any]]] = [
    ("waveform", {}),
    ("waveform", {"strides": []}),
    ("waveform", {"strides": [3, 2], "kernel_sizes": [5, 2]}),
    ("logmel", {"sample_rate_hz": 8000, "n_mels": 20}),
    ("mfcc", {"sample_rate_hz": 8000, "n_mels": 20, "n_mfcc": 8}),
]
ALL = pytest.mark.parametrize(("name", "options"), FORMS)


def build(name: str, options: dict[str, Any]) -> nn.Module:
    return AUDIO_EMBEDDINGS[name](16, **options).eval()


@ALL
def test_padding_changes_no_real_position(name: str, options: dict[str, Any]) -> None:
    model = build(name, options)
    rows = [torch.randn(length) for length in (1, 97, 800, 1003)]
    padded, mask = torch.full((4, 1100), float("nan")), torch.zeros(4, 1100, dtype=torch.bool)
    for i, row in enumerate(rows):
        padded[i, : len(row)], mask[i, : len(row)] = row, True
    together, places = model(padded, mask)
    for i, row in enumerate(rows):
        alone, _ = model(row[None])
        assert int(places[i].sum()) == alone.shape[1]
        assert torch.allclose(together[i][places[i]], alone[0], atol=1e-5)


@ALL
def test_a_trailing_channel_is_the_same(name: str, options: dict[str, Any]) -> None:
    model, x = build(name, options), torch.randn(2, 500)
    assert torch.equal(model(x)[0], model(x.unsqueeze(2))[0])


@ALL
def test_exports_with_any_batch_and_length(name: str, options: dict[str, Any]) -> None:
    model = build(name, options)
    # Two positions at least: a count that may be one is a case of its own to torch.export.
    length = torch.export.Dim("length", min=cast(int, model.stride) + 1, max=8000)
    sizes = {0: torch.export.Dim("batch", min=1, max=64), 1: length}
    program = torch.export.export(model, (torch.randn(2, 640),), dynamic_shapes={"x_BT": sizes})
    x = torch.randn(3, 811)
    assert torch.allclose(program.module()(x)[0], model(x)[0], atol=1e-5)


def test_waveform_convolutions_look_back_only() -> None:
    model, x = build("waveform", {}), torch.randn(1, 320)
    changed = x.clone()
    changed[:, 160:] = 0.0
    assert torch.equal(model(x)[0][:, :10], model(changed)[0][:, :10])
    assert not torch.equal(model(x)[0][:, 10:], model(changed)[0][:, 10:])


def test_log_mel_is_torchaudios() -> None:
    # 256 samples are a power of two, so that both have windows as long as the transform.
    model = LogMelEmbedding(4, sample_rate_hz=8000, n_mels=30, window_s=0.032, hop_s=0.016, f_min=50.0, floor=1e-9)
    x = torch.randn(2, 128 * 20)
    theirs = MelSpectrogram(8000, n_fft=256, hop_length=128, n_mels=30, f_min=50.0, center=False)
    expected = theirs(nn.functional.pad(x, (64, 64))).clamp(min=1e-9).log().transpose(1, 2)
    assert torch.allclose(model.features(x), expected, atol=1e-4)


def test_mfcc_is_torchaudios() -> None:
    options = {"n_fft": 256, "hop_length": 128, "n_mels": 30, "f_min": 50.0, "center": False}
    model = MFCCEmbedding(4, sample_rate_hz=8000, n_mels=30, n_mfcc=12, window_s=0.032, hop_s=0.016, f_min=50.0)
    x = torch.randn(2, 128 * 20)
    theirs = MFCC(8000, n_mfcc=12, log_mels=True, melkwargs=options)(nn.functional.pad(x, (64, 64))).transpose(1, 2)
    assert torch.allclose(model.features(x), theirs, atol=2e-3)


def test_features_are_standardised_and_in_fp32() -> None:
    model = LogMelEmbedding(4, sample_rate_hz=8000, n_mels=4, mean=[1.0] * 4, std=[2.0] * 4)
    plain = LogMelEmbedding(4, sample_rate_hz=8000, n_mels=4)
    x = torch.randn(1, 800)
    assert torch.allclose(model.features(x), (plain.features(x) - 1.0) / 2.0)
    low = model.bfloat16()
    assert low.features(x.bfloat16()).dtype == torch.float32
    assert low(x.bfloat16())[0].dtype == torch.bfloat16


def test_mistakes_are_answered() -> None:
    with pytest.raises(TypeError, match="floating"):
        WaveformEmbedding(8)(torch.ones(1, 100, dtype=torch.long))
    with pytest.raises(ValueError, match="one channel"):
        WaveformEmbedding(8)(torch.randn(1, 100, 2))
    with pytest.raises(ValueError, match="kernel_sizes"):
        WaveformEmbedding(8, strides=[4], kernel_sizes=[3])
    with pytest.raises(ValueError, match="f_max"):
        LogMelEmbedding(8, sample_rate_hz=8000, f_max=5000.0)
    with pytest.raises(ValueError, match="mean"):
        LogMelEmbedding(8, sample_rate_hz=8000, n_mels=10, mean=[0.0])
    with pytest.raises(ValueError, match="n_mfcc"):
        MFCCEmbedding(8, sample_rate_hz=8000, n_mfcc=50, n_mels=40)
