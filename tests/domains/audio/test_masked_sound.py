"""Pretraining on sound: what is hidden, what is to be told, and that neither padding nor the future gives it away."""

from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.domains.audio.datamodule import AudioData
from longseq.domains.audio.module import hide_sound
from longseq.domains.audio.tasks import MaskedSound
from longseq.errors import ConfigError
from longseq.model import SequenceModel, build_model


def made(**options: Any) -> AudioData:
    data = AudioData(task="classification", demo_rows=16, batch_size=8, **options)
    data.setup("fit")
    return data


def network(data: AudioData, n_values: int) -> SequenceModel:
    backbone = {"name": "gru", "d_model": 8, "n_layers": 1}
    head = {"name": "token", "n_outputs": n_values, "bias": True}
    return build_model({**data.model_options(None), "backbone": backbone, "head": head}).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("tokenizer", ["logmel", "mfcc", "waveform", "mulaw"])
def test_what_is_hidden_does_not_reach_the_network(tokenizer: str) -> None:
    inputs = made(tokenizer=tokenizer).self_supervised(causal=False)
    assert inputs.task_name == "masked_sound"
    options = inputs.task_options()
    model = network(inputs, options["n_values"])  # type: ignore[arg-type]
    batch = next(iter(inputs.loader("train")))
    shown = hide_sound(model, batch, ahead=False)
    targets, hidden = shown["targets"], shown["hidden"]
    assert targets.shape == (*hidden.shape, options["n_values"]) and targets.isfinite().all()
    assert 0 < hidden.sum() < hidden.numel()
    if "shown" in shown:
        assert (shown["shown"][hidden] == 0).all() and torch.equal(shown["shown"][~hidden], targets[~hidden])
    else:
        changed = shown["inputs"] != batch["inputs"]
        stride = inputs.tokenizer.stride  # type: ignore[attr-defined]
        spread = hidden.repeat_interleave(stride, 1)[:, : changed.shape[1]]
        assert not changed[~spread].any() and changed[spread].any()
    # The same places in every epoch for validation, others for training.
    places = [next(iter(inputs.loader(split, epoch=epoch)))["hidden"] for split in ("val", "train") for epoch in (0, 1)]
    assert torch.equal(places[0], places[1]) and not torch.equal(places[2], places[3])


def test_causal_backbones_tell_the_next_frame() -> None:
    inputs = made(tokenizer="logmel").self_supervised(causal=True)
    assert inputs.task_options()["ahead"] is True
    model = network(inputs, 64)  # type: ignore[arg-type]
    batch = next(iter(inputs.loader("train")))
    found = hide_sound(model, batch, ahead=True)
    assert torch.equal(found["targets"][:, :-1], found["shown"][:, 1:])
    real = model.embedding(batch["inputs"], batch["mask"])[1]
    # Every real position but the last of each row has a next one.
    assert torch.equal(found["hidden"].sum(1), real.sum(1) - 1)
    assert made(tokenizer="mulaw").self_supervised(causal=True).task_name == "lm"


def test_the_loss_counts_hidden_positions_alone() -> None:
    task = MaskedSound(2)
    outputs: Tensor = torch.zeros(1, 3, 2)
    targets = torch.tensor([[[1.0, 1.0], [2.0, 2.0], [9.0, 9.0]]])
    batch = {"targets": targets, "hidden": torch.tensor([[True, True, False]])}
    assert task.loss(outputs, batch).item() == pytest.approx(2.5)
    metrics = task.metrics()
    task.update(metrics, outputs, batch)
    assert metrics.compute()["mse"].item() == pytest.approx(2.5)
    assert task.config() == {"task": "masked_sound", "ahead": False}


def test_there_is_nothing_to_predict_and_shares_are_checked() -> None:
    data = AudioData(task="masked_sound", predict="x.wav")
    with pytest.raises(ConfigError, match="fine-tune it"):
        data.setup_predict({})
    with pytest.raises(ConfigError, match=r"data\.hide"):
        AudioData(task="masked_sound", hide=1.0)
