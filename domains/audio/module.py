"""Trains the audio tasks: masks spectra in training, follows changes of the sampling rate, times itself, and saves sounds."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.backbone import Mixer, Stack
from longseq.domains.audio.heard_frames import HeardFrames
from longseq.domains.audio.sounds import save_generated, save_worst
from longseq.domains.audio.tasks import FrameLabels, MaskedSound
from longseq.domains.audio.tokenizer import SILENCE
from longseq.domains.base import DomainData, DomainModule
from longseq.domains.tasks import Batch
from longseq.embeddings_audio import LogMelEmbedding, shorten_mask
from longseq.errors import ConfigError
from longseq.model import SequenceModel


class AudioModule(DomainModule):
    """The shared module with what sound needs.

    Args:
        save_clips: worst test clips whose sound the report can play; 0 for none.
        generate_clips: clips that a language model makes after its test; 0 for none.
        generate_s: seconds of each.
        temperature: of the sampling; below 1 is safer, above 1 is wilder.
        **options: of `DomainModule`.
    """

    def __init__(
        self, *, save_clips: int = 6, generate_clips: int = 4, generate_s: float = 0.5, temperature: float = 1.0, **options: Any
    ) -> None:
        super().__init__(**options)
        self.save_clips, self.generate_clips = save_clips, generate_clips
        self.generate_s, self.temperature = generate_s, temperature
        self._seconds = self._sound_s = 0.0
        self._heard: HeardFrames | None = None

    @property
    def trained_rate_hz(self) -> int:
        """The sampling rate that the model was made for."""
        return int(self.model.config["tokenizer"]["sample_rate_hz"])

    def setup(self, stage: str) -> None:
        """Scales the model's step sizes if the data come at another sampling rate than the model was trained at."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self.prepare(data)

    def prepare(self, data: DomainData) -> None:
        rate = getattr(data, "sample_rate_hz", None)
        if rate is not None and "tokenizer" in self.model.config:
            scale_step_sizes(self.model, self.trained_rate_hz, int(rate))

    def forward(self, batch: Batch) -> Tensor:
        front = self.model.embedding
        if isinstance(front, LogMelEmbedding) and "shown" in batch:
            features_BLF = batch["shown"]
        elif "spectrum_masks" in batch:
            assert isinstance(front, LogMelEmbedding)
            features_BLF = mask_spectrum(front.features(batch["inputs"], batch.get("mask")), batch["spectrum_masks"])
        else:
            return super().forward(batch)
        x_BLD, mask_BL = front.project(features_BLF, batch.get("mask"))
        return self.model.head(self.model.backbone(x_BLD, mask_BL), mask_BL)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return super().training_step(self._hide(batch), batch_idx)

    def _evaluate(self, split: str, batch: Batch) -> None:
        super()._evaluate(split, self._hide(batch))

    def evaluate_batch(self, batch: Batch) -> Tensor:
        outputs = super().evaluate_batch(batch)
        if self._heard is not None:
            self._heard.add(outputs, batch["labels"], batch["index"])
        return outputs

    def _hide(self, batch: Batch) -> Batch:
        """The batch with what is hidden as targets, for pretraining on sound; others as they are."""
        return hide_sound(self.model, batch, self.task.ahead) if isinstance(self.task, MaskedSound) else batch

    # -- the test

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._seconds = self._sound_s = 0.0
        self._heard = HeardFrames(self.task.labels, self.save_clips) if isinstance(self.task, FrameLabels) else None

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        started = self._now()
        super().test_step(batch, batch_idx)
        self._seconds += self._now() - started
        self._sound_s += float(batch["mask"].sum()) / getattr(self.trainer.datamodule, "sample_rate_hz", self.trained_rate_hz)  # type: ignore[attr-defined]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        if self._heard is not None:
            counts = torch.from_numpy(self._heard.counts).to(self.device)
            self._heard.counts = self.trainer.strategy.reduce(counts, reduce_op="sum").cpu().numpy()  # type: ignore[union-attr]
        # Seconds of computing for a second of sound.
        self.log("test/real_time_factor", self._seconds / max(self._sound_s, 1e-9), sync_dist=True)

    def on_test_end(self) -> None:
        """Saves sounds into the run folder, once, in the main process."""
        heard, self._heard = self._heard, None
        folder = Path(self.trainer.default_root_dir)
        if not self.trainer.is_global_zero or not (folder / "config.yaml").is_file():
            return
        data = getattr(self.trainer, "datamodule", None)
        if self.task.name == "lm" and self.generate_clips > 0 and "FSDP" not in type(self.trainer.strategy).__name__:
            n_samples = round(self.generate_s * self.trained_rate_hz)
            save_generated(
                folder, self.model, self.generate_clips, n_samples, self.trained_rate_hz, temperature=self.temperature
            )
        elif heard is not None and data is not None:
            heard.save(folder, data)
        elif self.save_clips > 0 and data is not None and self.test_predictions:
            save_worst(folder, data, self.test_predictions, self.task.name, self.save_clips)


def mask_spectrum(features_BLF: Tensor, masks_BM4: Tensor) -> Tensor:
    """Zeros, which are the features' means, in the given stretches of frames and features.

    Args:
        features_BLF: standardised.
        masks_BM4: first and last frame, first and last feature of each mask, ends excluded.
    """
    place_L = torch.arange(features_BLF.shape[1], device=features_BLF.device)
    place_F = torch.arange(features_BLF.shape[2], device=features_BLF.device)
    start_BM, end_BM, low_BM, high_BM = masks_BM4.unbind(-1)
    frames_BML = (place_L >= start_BM.unsqueeze(-1)) & (place_L < end_BM.unsqueeze(-1))
    bands_BMF = (place_F >= low_BM.unsqueeze(-1)) & (place_F < high_BM.unsqueeze(-1))
    return features_BLF.masked_fill((frames_BML.unsqueeze(-1) & bands_BMF.unsqueeze(-2)).any(1), 0.0)


@torch.no_grad()
def hide_sound(model: SequenceModel, batch: Batch, ahead: bool) -> Batch:
    """A batch of `masked_sound`: targets (B, L, P), the positions that count as `hidden`, and inputs without what is hidden.

    Args:
        model: whose front end says what a position is.
        batch: `inputs`, `mask` (B, T) and `hidden` (B, L).
        ahead: nothing is hidden, and each position's target is the next.
    """
    front, inputs_BT, mask_BT, hidden_BL = model.embedding, batch["inputs"], batch["mask"], batch["hidden"]
    if isinstance(front, LogMelEmbedding):
        targets_BLP = front.features(inputs_BT, mask_BT)
        shown = {"shown": targets_BLP if ahead else targets_BLP.masked_fill(hidden_BL.unsqueeze(-1), 0.0)}
        mask_BL = shorten_mask(mask_BT, front.stride)
    else:
        stride = int(getattr(front, "stride", 1))
        targets_BLP, mask_BL = standardised_samples(inputs_BT, mask_BT, stride), shorten_mask(mask_BT, stride)
        silent_BT = hidden_BL.repeat_interleave(stride, 1)[:, : inputs_BT.shape[1]]
        shown = {} if ahead else {"inputs": inputs_BT.masked_fill(silent_BT, 0.0 if inputs_BT.is_floating_point() else SILENCE)}
    assert mask_BL is not None
    if ahead:
        # The last real position has no next one.
        hidden_BL = torch.cat([mask_BL[:, 1:], torch.zeros_like(mask_BL[:, :1])], 1)
        targets_BLP = targets_BLP.roll(-1, 1)
    return {**batch, **shown, "targets": targets_BLP, "hidden": hidden_BL & mask_BL}


def standardised_samples(inputs_BT: Tensor, mask_BT: Tensor, stride: int) -> Tensor:
    """The samples of each position (B, L, stride), by the mean and deviation of each row's real samples."""
    x_BT = inputs_BT.float().masked_fill(~mask_BT, 0.0)
    count_B1 = mask_BT.sum(1, keepdim=True)
    centred_BT = (x_BT - x_BT.sum(1, keepdim=True) / count_B1).masked_fill(~mask_BT, 0.0)
    std_B1 = (centred_BT.square().sum(1, keepdim=True) / count_B1).sqrt().clamp(min=1e-4)
    missing = -centred_BT.shape[1] % stride
    return F.pad(centred_BT / std_B1, (0, missing)).unflatten(1, (-1, stride))


def scale_step_sizes(model: SequenceModel, trained_hz: int, rate_hz: int) -> None:
    """Prepares a model for samples that come at another rate than in training, without training it again.

    Layers that sample a continuous-time system take steps of `trained / new` times the length; nothing else about them
    knows of the rate.

    Raises:
        ConfigError: if some part of the model counts samples instead.

    Paper: https://arxiv.org/abs/2111.00396, section 4.2 (speech at half the sampling rate).
    """
    leaves = [m for m in model.backbone.modules() if isinstance(m, Mixer) and not has_mixers(m)]
    if rate_hz != trained_hz:
        check_rate(model, leaves, trained_hz, rate_hz)
    for mixer in leaves:
        if hasattr(mixer, "rate"):
            # Kept beside it, so that scaling twice is scaling once.
            mixer.trained_rate = float(getattr(mixer, "trained_rate", mixer.rate))  # type: ignore[assignment, arg-type]
            mixer.rate = mixer.trained_rate * trained_hz / rate_hz  # type: ignore[assignment]


def has_mixers(mixer: Mixer) -> bool:
    """Whether a mixer is made of others."""
    return any(isinstance(inner, Mixer) for inner in mixer.modules() if inner is not mixer)


def check_rate(model: SequenceModel, leaves: Sequence[Mixer], trained_hz: int, rate_hz: int) -> None:
    """Raises ConfigError if some part of the model counts samples instead of seconds."""
    tokenizer, name = model.config["tokenizer"], str(model.config["backbone"]["name"])
    change = f"the model was trained at {trained_hz} Hz and the data come at {rate_hz} Hz (data.sample_rate_hz)"
    if tokenizer["name"] != "waveform" or tokenizer["stem_strides"]:
        raise ConfigError(
            f"{change}: its front end counts samples. Set data.sample_rate_hz={trained_hz}, and everything is resampled to it; "
            "only models with data.tokenizer=waveform and data.stem_strides=[] follow a change of the rate"
        )
    if not isinstance(model.backbone, Stack) or not all(hasattr(mixer, "rate") for mixer in leaves):
        raise ConfigError(
            f"{change}: backbone={name} has layers without a step size to scale. Set data.sample_rate_hz={trained_hz}, or "
            "train a model of continuous-time layers, such as backbone=s4d"
        )
