"""Streams: chunks of any sizes give what the whole sequence gives, and what cannot stream says why."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.checkpoint import load_model, save_model
from longseq.layers.linear_ssm import LinearSSM
from longseq.model import SequenceModel, build_model
from longseq.registry import backbone_info, create_backbone, create_mixer, list_backbones
from longseq.streaming import Stream

D = 16
SMALL = {"max_length": 400, "n_heads": 2, "d_state": 8, "window": 8, "head_dim": 8, "causal": True}


def causal(name: str) -> dict[str, Any]:
    """The config of a small causal backbone."""
    known = backbone_info(name).options()
    return {"name": name, "d_model": D, "n_layers": 1, **{key: value for key, value in SMALL.items() if key in known}}


def steppable() -> list[str]:
    names = list_backbones()
    return [name for name in names if create_backbone(**causal(name)).can_step]


def build(backbone: dict[str, Any], embedding: dict[str, Any], head: dict[str, Any]) -> SequenceModel:
    torch.manual_seed(0)
    model = build_model({"backbone": backbone, "embedding": embedding, "head": head}).eval()
    # Every parameter matters, also those that begin as zeros.
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.normal_(std=0.3)
    return model


TOKENS = {"name": "token", "vocab_size": 16}
PER_POSITION = {"name": "token", "n_outputs": 5, "bias": True}


def in_chunks(stream: Stream, inputs: Tensor, sizes: Sequence[int]) -> Tensor:
    """All answers of a stream that gets the input in pieces of these sizes, then the rest."""
    found = [stream.push(piece) for piece in inputs.split([*sizes, inputs.shape[1] - sum(sizes)], dim=1)]
    return torch.cat([*found, stream.finish()], 1)


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 3e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", steppable())
def test_chunks_of_any_sizes_equal_the_whole(name: str) -> None:
    model = build(causal(name), TOKENS, PER_POSITION)
    ids = torch.randint(0, 16, (2, 90), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        close(in_chunks(model.stream(2), ids, [1, 0, 1, 17, 40, 3]), model(ids))


EMBEDDINGS = {
    "stem": {"name": "waveform", "strides": [4, 4], "kernel_sizes": None},
    "wide kernels": {"name": "waveform", "strides": [2, 5], "kernel_sizes": [7, 5]},
    "samples": {"name": "waveform", "strides": [], "kernel_sizes": None},
    "logmel": {"name": "logmel", "sample_rate_hz": 1000, "n_mels": 8, "window_s": 0.025, "hop_s": 0.01, "f_min": 20.0},
    "mfcc": {"name": "mfcc", "sample_rate_hz": 1000, "n_mfcc": 5, "n_mels": 8, "window_s": 0.04, "hop_s": 0.01, "f_min": 20.0},
}


@pytest.mark.parametrize("embedding", EMBEDDINGS.values(), ids=EMBEDDINGS)
@pytest.mark.parametrize("length", [1, 9, 160, 203])
def test_sound_streams_through_its_front_end(embedding: dict[str, Any], length: int) -> None:
    model = build(causal("gru"), embedding, PER_POSITION)
    sound = torch.randn(2, length, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    sizes = [size for size in (3, 20, 20, 1, 64) if size < length - 50]
    with torch.no_grad():
        close(in_chunks(model.stream(2), sound, sizes), model(sound))


def test_a_frame_is_answered_as_soon_as_it_is_complete_and_old_samples_are_dropped() -> None:
    stream = build(causal("gru"), EMBEDDINGS["stem"], PER_POSITION).stream()
    assert stream.push(torch.zeros(1, 15)).shape == (1, 0, 5)
    assert stream.push(torch.zeros(1, 1)).shape == (1, 1, 5)
    assert stream.push(torch.zeros(1, 1600)).shape == (1, 100, 5)
    assert stream.frames.samples_BT.shape[1] <= 48  # type: ignore[attr-defined]


@pytest.mark.parametrize("pool", ["mean", "max", "first", "last"])
def test_pooled_heads_answer_for_what_has_come(pool: str) -> None:
    model = build(causal("gru"), TOKENS, {"name": "pool", "n_outputs": 3, "pool": pool})
    ids = torch.randint(0, 16, (2, 50), generator=torch.Generator().manual_seed(1))
    stream = model.stream(2)
    assert stream.push(ids[:, :0]).isnan().all()
    with torch.no_grad():
        close(stream.push(ids[:, :20]), model(ids[:, :20]))
        close(stream.push(ids[:, 20:]), model(ids))
        close(stream.finish(), model(ids))


@pytest.mark.parametrize("head", [PER_POSITION, {"name": "bins", "n_outputs": 3, "bin_size": 1}])
def test_vectors_stream_too(head: dict[str, Any]) -> None:
    model = build(causal("mamba"), {"name": "linear", "n_channels": 3}, head)
    x = torch.randn(1, 30, 3, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        close(in_chunks(model.stream(), x, [7, 8]), model(x))


@pytest.mark.parametrize("name", ["s4", "s4d"])
def test_what_is_kept_between_chunks_follows_the_parameters(name: str) -> None:
    mixer = create_mixer(name, D, d_state=8).eval()
    x, state = torch.randn(2, 12, D, generator=torch.Generator().manual_seed(4)), mixer.init_state(2)
    assert isinstance(mixer, LinearSSM)
    for dt, rate in ((0.0, 1.0), (0.5, 1.0), (0.0, 2.0)):
        with torch.no_grad():
            mixer.log_dt.add_(dt)
            mixer.rate = rate
            found, after = mixer.forward_chunk(x, state)
            # With gradients nothing is kept.
            with torch.enable_grad():
                expected, wanted = mixer.forward_chunk(x, state)
            close(found, expected.detach())
            close(after, wanted.detach())


def test_state_does_not_grow_where_the_backbone_says_so() -> None:
    stream = build(causal("mamba"), TOKENS, PER_POSITION).stream()
    ids = torch.zeros(1, 100, dtype=torch.int64)
    stream.push(ids)
    before = stream.state_bytes
    stream.push(ids)
    assert stream.state_bytes == before
    assert stream.positions == 200


def test_a_loaded_model_streams(tmp_path: Any) -> None:
    model = build(causal("mamba"), TOKENS, PER_POSITION)
    save_model(model, tmp_path / "model")
    ids = torch.randint(0, 16, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        close(load_model(tmp_path / "model").stream(batch_size=1).push(ids), model(ids))


SERIES = {"name": "series_point", "n_channels": 1, "lookback": 10}


@pytest.mark.parametrize(
    ("backbone", "embedding", "head", "message"),
    [
        ({**causal("mamba"), "bidirectional": True}, TOKENS, PER_POSITION, "not causal"),
        (causal("gru"), SERIES, PER_POSITION, "whole input"),
        (causal("gru"), TOKENS, {"name": "class_token", "n_outputs": 2, "place": "end"}, "ClassTokenHead"),
    ],
)
def test_what_cannot_stream_says_why(backbone: Any, embedding: Any, head: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(backbone, embedding, head).stream()


def test_wrong_batches_and_finished_streams_are_refused() -> None:
    model = build(causal("gru"), TOKENS, PER_POSITION)
    stream = model.stream(2)
    with pytest.raises(ValueError, match="batch=2"):
        stream.push(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="as_tensor"):
        stream.push([[1, 2]])  # type: ignore[arg-type]
    stream.finish()
    with pytest.raises(ValueError, match="finished"):
        stream.push(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="batch_size"):
        model.stream(0)
