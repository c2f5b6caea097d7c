"""Training, testing, timing, sounds left for the report, and models that follow a change of the sampling rate."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from longseq.checkpoint import load_model, save_model
from longseq.domains.audio.datamodule import AudioData
from longseq.domains.audio.files import read_header
from longseq.domains.audio.heard_frames import FRAMES, in_words
from longseq.domains.audio.module import AudioModule, mask_spectrum, scale_step_sizes
from longseq.domains.audio.sounds import GENERATED, WORST, generate
from longseq.domains.audio.tasks import CTC, FrameLabels, SoundClassification
from longseq.domains.tasks import LanguageModel, Task
from longseq.errors import ConfigError
from longseq.model import SequenceModel, build_model

# Lightning's advice, which is not about the code under test.
LIGHTNING = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*isinstance.*LeafSpec", "ignore:.*value needs to be floating"
)
TASKS: dict[str, type[Task]] = {"classification": SoundClassification, "ctc": CTC, "frames": FrameLabels, "lm": LanguageModel}


def made(task: str, backbone: str = "gru", **options: Any) -> tuple[AudioData, Task, SequenceModel]:
    data = AudioData(task=task, batch_size=8, **{"demo_rows": 16, "tokenizer": "logmel", "n_mels": 12, **options})
    data.setup()
    built = TASKS[task](**{key: value for key, value in data.task_options().items() if key != "_target_"})
    config = {
        **built.config(),
        **data.model_options(None),  # type: ignore[arg-type]
        "backbone": {"name": backbone, "d_model": 8, "n_layers": 1},
        "head": built.head(),
    }
    return data, built, build_model(config)


def trainer(folder: Path) -> L.Trainer:
    return L.Trainer(
        default_root_dir=folder,
        max_epochs=1,
        limit_train_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*isinstance.*LeafSpec", "ignore:.*value needs to be floating"
)
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("classification", {"time_masks": 1, "freq_masks": 1, "mixup": 0.3, "noise_snr_db": [5, 20]}),
        ("ctc", {"speeds": [0.9, 1.1]}),
        ("frames", {}),
        ("lm", {"clip_s": 0.05}),
    ],
)
def test_a_run_leaves_metrics_and_sounds(task: str, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("domain: audio\n")
    data, built, model = made(task, **options)
    module = AudioModule(task=built, model=model, optimizer={"lr": 1e-3}, save_clips=2, generate_clips=2, generate_s=0.01)
    runner = trainer(tmp_path)
    runner.fit(module, data)
    found = runner.test(module, data, verbose=False)[0]
    assert found["test/real_time_factor"] > 0
    assert np.isfinite(found["test/loss"])
    if task == "lm":
        clips = sorted((tmp_path / GENERATED).glob("*.wav"))
        assert [read_header(clip).n_frames for clip in clips] == [40, 40]
    else:
        assert len(list((tmp_path / WORST).glob("*.wav"))) == 2
    if task == "frames":
        heard = json.loads((tmp_path / FRAMES).read_text())
        counts = np.array(heard["counts"])
        assert counts.sum() == sum(int((batch["labels"] >= 0).sum()) for batch in data.loader("test"))
        assert np.trace(counts) / counts.sum() == pytest.approx(found["test/accuracy"], abs=1e-6)
    save_model(model, tmp_path / "model")
    batch = next(iter(data.loader("test")))
    again = load_model(tmp_path / "model")
    assert torch.equal(again(batch["inputs"], batch["mask"]), model.eval()(batch["inputs"], batch["mask"]))


@LIGHTNING
def test_a_run_that_ends_within_an_epoch_has_taken_time(tmp_path: Path) -> None:
    data, built, model = made("classification")
    runner = trainer(tmp_path)
    # Before the first measurement, which comes with the log or the epoch's last batch.
    runner.fit_loop.epoch_loop.max_steps, runner.limit_train_batches = 1, 1.0
    module = AudioModule(task=built, model=model, optimizer={"lr": 1e-3})
    runner.fit(module, data)
    assert runner.global_step == 1 and module.tokens > 0
    assert 1e-4 < module.seconds < 60


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*isinstance.*LeafSpec", "ignore:.*value needs to be floating"
)
def test_nothing_is_written_outside_a_run_folder(tmp_path: Path) -> None:
    data, built, model = made("classification")
    trainer(tmp_path).test(AudioModule(task=built, model=model), data, verbose=False)
    assert not list(tmp_path.iterdir())


def test_frames_in_words() -> None:
    frames = np.array([0, 1, 1, 0, 2, 2, 1])
    assert in_words(frames, ["none", "dog", "cat"], 0.1) == "dog 0.10-0.30 s, cat 0.40-0.60 s, dog 0.60-0.70 s"
    assert in_words(frames, ["none", "dog", "cat"], 0.1, most=1) == "dog 0.10-0.30 s, 2 more"
    assert in_words(np.zeros(3, dtype=int), ["none", "dog"], 0.1) == "nothing"


def test_masks_of_the_spectrum() -> None:
    features, masks = torch.ones(2, 6, 4), torch.tensor([[[1, 3, 0, 4], [0, 6, 2, 3]], [[0, 0, 0, 4], [0, 6, 0, 0]]])
    masked = mask_spectrum(features, masks)
    assert masked[0].tolist() == [[1, 1, 0, 1], [0] * 4, [0] * 4, *[[1, 1, 0, 1]] * 3]
    assert torch.equal(masked[1], features[1])


def test_masked_training_is_plain_training_without_masks() -> None:
    data, built, model = made("classification", time_masks=1)
    module = AudioModule(task=built, model=model)
    batch = next(iter(data.loader("train")))
    nothing = {**batch, "spectrum_masks": torch.zeros(8, 1, 4, dtype=torch.long)}
    assert torch.allclose(module(nothing), model(batch["inputs"], batch["mask"]), atol=1e-6)
    everything = {**batch, "spectrum_masks": torch.tensor([[[0, 1000, 0, 12]]]).expand(8, 1, 4)}
    assert not torch.allclose(module(everything), module(nothing))


def test_generated_levels_repeat_with_the_seed() -> None:
    _, _, model = made("lm", backbone="sashimi", clip_s=0.05)
    first = generate(model.eval(), 2, 20, seed=3)
    assert first.shape == (2, 20) and first.dtype == np.uint8
    assert np.array_equal(first, generate(model, 2, 20, seed=3))
    assert not np.array_equal(first, generate(model, 2, 20, seed=4))


def raw_model(backbone: str = "s4d", **options: Any) -> SequenceModel:
    return made("classification", backbone, tokenizer="waveform", stem_strides=[], **options)[2].eval()


@torch.no_grad()
def test_a_continuous_model_hears_the_same_at_another_rate() -> None:
    model = raw_model()
    t = torch.arange(4000) / 4000
    slow = torch.sin(2 * torch.pi * 3 * t) + 0.5 * torch.sin(2 * torch.pi * 7 * t)
    at_4000 = model.features(slow[None])[:, ::2]
    unscaled = model.features(slow[None, ::2])
    scale_step_sizes(model, 4000, 2000)
    scale_step_sizes(model, 4000, 2000)
    scaled = model.features(slow[None, ::2])
    error, without = (float((found - at_4000)[:, 100:].abs().mean()) for found in (scaled, unscaled))
    assert error < 0.2 * without
    scale_step_sizes(model, 4000, 4000)
    assert torch.allclose(model.features(slow[None])[:, ::2], at_4000, atol=1e-6)


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*isinstance.*LeafSpec", "ignore:.*value needs to be floating"
)
def test_testing_at_another_rate_scales_the_steps(tmp_path: Path) -> None:
    _, built, model = made("classification", "s4d", tokenizer="waveform", stem_strides=[])
    data = AudioData(task="classification", demo_rows=16, tokenizer="waveform", stem_strides=[], sample_rate_hz=2000)
    with pytest.warns(UserWarning, match="resampling to 2000 Hz"):
        data.setup()
    trainer(tmp_path).test(AudioModule(task=built, model=model), data, verbose=False)
    assert model.backbone.blocks[0].mixer.rate == 2.0  # type: ignore[index, union-attr]


def test_models_that_count_samples_say_so() -> None:
    with pytest.raises(ConfigError, match="backbone=gru has layers without a step size"):
        scale_step_sizes(raw_model("gru"), 4000, 2000)
    with pytest.raises(ConfigError, match="backbone=sashimi"):
        scale_step_sizes(raw_model("sashimi"), 4000, 2000)
    with pytest.raises(ConfigError, match="its front end counts samples"):
        scale_step_sizes(made("classification", "s4d")[2], 4000, 2000)
    scale_step_sizes(made("classification", "gru")[2], 4000, 4000)
