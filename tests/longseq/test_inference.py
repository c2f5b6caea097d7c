"""A model's answers: the same as the tasks' own predictions, in the shapes that its ports promise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.checkpoint import save_model
from longseq.domains.audio.tasks import CTC, FrameLabels
from longseq.domains.dna.module import DNAModule
from longseq.domains.dna.tasks import BaseLabels, Profile
from longseq.domains.dna.tokenizer import COMPLEMENT_IDS, reverse_complement_batch
from longseq.domains.tasks import Classification, MultiLabel, Regression, Task
from longseq.domains.timeseries.tasks import AnomalyDetection, Forecasting, Imputation
from longseq.domains.vision.tasks import MaskedPatch
from longseq.errors import CheckpointError
from longseq.inference import Inference, load_inference
from longseq.model import SequenceModel, build_model

D = 8
TOKENS = {"name": "token", "vocab_size": 16}
SERIES = {"name": "series_point", "lookback": 24, "n_channels": 2, "mean": [5.0, -1.0], "std": [2.0, 0.5], "flags": True}
SERIES_HEAD = {"n_channels": 2, "n_tokens": 24, "layout": "mean", "lookback": 24}


def build(task: dict[str, Any], embedding: dict[str, Any], head: dict[str, Any], **more: Any) -> SequenceModel:
    torch.manual_seed(0)
    backbone = {"name": "cnn", "d_model": D, "n_layers": 1, "causal": False}
    model = build_model({**task, "embedding": embedding, "head": head, "backbone": backbone, **more})
    # Heads that begin at zero would make every comparison one of zeros.
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def of_task(task: Task, embedding: dict[str, Any], **head: Any) -> tuple[SequenceModel, Inference]:
    model = build(task.config(), embedding, {**task.head(), **head})
    return model, Inference(model)


def run(inference: Inference, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        answer = inference(*inputs)
    sizes: dict[str, int] = {}
    for port, tensor in zip((*inference.inputs, *inference.outputs), (*inputs, answer), strict=True):
        assert str(tensor.dtype).removeprefix("torch.") == port.dtype, port
        assert len(port.axes) == tensor.ndim, port
        for axis, size in zip(port.axes, tensor.shape, strict=True):
            assert size == (sizes.setdefault(axis, size) if isinstance(axis, str) else axis), (port, tensor.shape)
    return answer


@pytest.mark.parametrize(
    "task",
    [Classification(["a", "b", "c"]), MultiLabel(["a", "b"]), Regression(["depth", "length"], [10.0, -3.0], [2.0, 0.0])],
    ids=lambda task: task.name,
)
def test_answers_are_the_predictions_of_the_task(task: Task) -> None:
    model, inference = of_task(task, TOKENS)
    ids, mask = inference.example(3, 21)
    answer = run(inference, ids, mask)
    with torch.no_grad():
        found = task.predictions(model(ids, mask), {})
    prefix = "predicted_" if task.name == "regression" else "p_"
    for i, label in enumerate(task.config()["labels"]):
        torch.testing.assert_close(answer[:, i], torch.from_numpy(found[f"{prefix}{label}"]))


def test_padding_does_not_count() -> None:
    _, inference = of_task(Classification(["a", "b"]), TOKENS)
    ids, mask = inference.example(2, 30)
    n_real = int(mask[1].sum())
    assert n_real < 30
    alone = run(inference, ids[1:, :n_real], mask[1:, :n_real])
    torch.testing.assert_close(run(inference, ids, mask)[1:], alone)


def test_both_strands_are_averaged_as_in_evaluation() -> None:
    task = Classification(["a", "b"])
    model = build(task.config(), TOKENS, task.head(), tokenizer={"complement": list(COMPLEMENT_IDS)})
    inference, plain = Inference(model, rc_average=True), Inference(model)
    ids, mask = inference.example(3, 17)
    with torch.no_grad():
        other = model(reverse_complement_batch(ids, mask), mask)
        expected = task.combine([model(ids, mask), other]).softmax(-1)
    torch.testing.assert_close(run(inference, ids, mask), expected)
    assert not torch.allclose(run(plain, ids, mask), expected)
    # Without padding there is no mask to give.
    with torch.no_grad():
        torch.testing.assert_close(inference(ids), inference(ids, torch.ones_like(mask)))
    model.config["inference"] = {"rc_average": True}
    assert Inference(model).rc_average


@pytest.mark.parametrize("loss", ["poisson", "mse"])
def test_tracks_and_labels_of_bases_are_turned_round(loss: str) -> None:
    tracks = Profile(["plus", "minus"], [3.0, 0.5], [2.0, 0.25], bin_size=4, loss=loss, other_strand=[1, 0])
    for task in (tracks, BaseLabels(["none", "donor", "acceptor"])):
        model = build(task.config(), TOKENS, task.head(), tokenizer={"complement": list(COMPLEMENT_IDS)})
        module = DNAModule(task=task, model=model, rc_average=True)
        ids, mask = Inference(model).example(2, 24)
        # Bins have no padding.
        mask = torch.ones_like(mask) if task is tracks else mask
        with torch.no_grad():
            outputs = module.evaluate_batch({"inputs": ids, "mask": mask})
            expected = tracks.values(outputs) if task is tracks else outputs.softmax(-1)
        found = run(Inference(model, rc_average=True), ids, mask)
        real = mask[:, ::4] if task is tracks else mask
        torch.testing.assert_close(found[real], expected[real])
        assert not torch.allclose(found, run(Inference(model), ids, mask))


@pytest.mark.parametrize("output", ["point", "quantiles", "student_t"])
def test_forecasts_hold_their_calibration_and_no_parameters(output: str) -> None:
    task = Forecasting(["x", "y"], 6, output=output)
    model, inference = of_task(task, SERIES, **SERIES_HEAD)
    (window,) = inference.example(3)
    before = run(inference, window)
    assert inference.outputs[0].axes == ("batch", 6, 2, len(task.quantiles))
    offset = model.head.offset_FCQ
    assert isinstance(offset, Tensor)
    offset[..., -1] += 1.5
    after = run(inference, window)
    scale = model.embedding.statistics(window)[1].unsqueeze(-1)  # type: ignore[operator]
    torch.testing.assert_close((after - before)[..., -1:], (1.5 * scale).expand(-1, 6, -1, -1))
    assert (after.diff(dim=-1) >= 0).all()


def test_imputation_keeps_what_was_observed() -> None:
    model, inference = of_task(Imputation(["x", "y"], 24), SERIES, **SERIES_HEAD)
    (window,) = inference.example(2)
    filled, missing = run(inference, window), torch.isnan(window)
    assert missing.any() and torch.isfinite(filled).all()
    torch.testing.assert_close(filled[~missing], window[~missing])
    with torch.no_grad():
        torch.testing.assert_close(filled[missing], model(window)[..., 0][missing])


def test_anomaly_scores_are_those_of_the_task() -> None:
    from longseq.domains.timeseries.module import SeriesModule

    task = AnomalyDetection(["x", "y"], 24)
    model, inference = of_task(task, SERIES, **SERIES_HEAD)
    (window,) = inference.example(2)
    window[0, 3] = torch.nan
    module = SeriesModule(task=task, model=model, span=5)
    batch = {"targets": window, "scale": torch.tensor([[2.0, 0.5]] * 2), "inputs": window}
    with torch.no_grad():
        expected = task.scores(module.evaluate_batch(batch), batch)
    scores = run(Inference(model, span=5), window)
    torch.testing.assert_close(scores, expected, equal_nan=True)
    assert torch.isnan(scores[0, 3]) and inference.span == 8


def test_transcripts_frames_and_language_models() -> None:
    sound = {"name": "waveform", "strides": [4], "kernel_sizes": None}
    _, inference = of_task(CTC(["<blank>", "a", "b"]), sound)
    samples, mask = inference.example(2, 45)
    answer = run(inference, samples, mask)
    assert answer.shape == (2, 12, 3) and inference.stride == 4
    torch.testing.assert_close(answer.exp().sum(-1), torch.ones(2, 12))
    _, inference = of_task(FrameLabels(["none", "speech"]), sound)
    torch.testing.assert_close(run(inference, *inference.example(2, 44)).sum(-1), torch.ones(2, 11))
    model = build({}, TOKENS, {"name": "token", "n_outputs": 16})
    inference = Inference(model)
    # Published language models do not say what they are.
    assert (inference.task, inference.output_names) == ("mlm", ("logits",))
    ids, mask = inference.example(2, 10)
    torch.testing.assert_close(run(inference, ids, mask), model(ids, mask))


def test_masked_patches_are_pixels() -> None:
    task = MaskedPatch(12, mean=0.4, std=0.2)
    model, inference = of_task(task, {"name": "patch", "size": [4, 6], "patch": 2, "mask_token": True})
    (pixels,) = inference.example(2)
    assert torch.isnan(pixels).any() and pixels.shape == (2, 3, 4, 6)
    answer = run(inference, pixels)
    with torch.no_grad():
        torch.testing.assert_close(answer, task.pixels(model(pixels)))
    assert answer.shape == (2, 6, 12)


def test_images_come_as_bytes() -> None:
    _, inference = of_task(Classification(["a", "b"]), {"name": "tubelet", "size": [4, 4], "frames": 4, "patch": 2, "tube": 2})
    assert inference.inputs[0].axes == ("batch", 4, 3, 4, 4) and inference.dynamic_axes == {"inputs": {0: "batch"}}
    run(inference, *inference.example(2))


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, inference = of_task(Regression(["depth"], [10.0], [2.0]), TOKENS)
    save_model(model, tmp_path / "model")
    loaded = load_inference(tmp_path / "model")
    example = inference.example(2, 9)
    torch.testing.assert_close(run(loaded, *example), run(inference, *example))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_model_of_no_known_task_is_refused() -> None:
    with pytest.raises(CheckpointError, match="task='dance'"):
        Inference(build({"task": "dance"}, TOKENS, {"name": "pool", "n_outputs": 2}))
    with pytest.raises(CheckpointError, match="names no task"):
        Inference(build({}, TOKENS, {"name": "pool", "n_outputs": 2}))


def test_limits_are_counted_in_samples() -> None:
    model = build_model(
        {
            **Classification(["a", "b"]).config(),
            "embedding": {"name": "waveform", "strides": [4, 2]},
            "backbone": {"name": "hyena", "d_model": D, "n_layers": 1, "max_length": 32},
            "head": {"name": "pool", "n_outputs": 2},
        }
    )
    assert (Inference(model).max_length, Inference(model).stride) == (256, 8)
