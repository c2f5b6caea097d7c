"""A trained model as its user wants it: inputs as the tokenizer gives them in, probabilities or original units out.

`SequenceModel` puts out what its loss is made for: logits, standardised values. `Inference` adds the last step, which the
model's config decides, as one `nn.Module` of plain tensor operations: the same numbers in Python, in an exported graph and
behind a server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longseq.checkpoint import load_model
from longseq.embeddings_timeseries import ForecastHead, SeriesEmbedding
from longseq.embeddings_vision import CellEmbedding, TubeletEmbedding
from longseq.errors import CheckpointError
from longseq.model import SequenceModel

# What each task's answer is called, and its axes; names stand for sizes that vary.
OUTPUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "classification": ("probabilities", ("batch", "labels")),
    "multilabel": ("probabilities", ("batch", "labels")),
    "regression": ("values", ("batch", "labels")),
    "frames": ("probabilities", ("batch", "positions", "labels")),
    "base_labels": ("probabilities", ("batch", "positions", "labels")),
    "profile": ("tracks", ("batch", "bins", "labels")),
    "ctc": ("log_probabilities", ("batch", "positions", "symbols")),
    "lm": ("logits", ("batch", "positions", "vocabulary")),
    "mlm": ("logits", ("batch", "positions", "vocabulary")),
    "forecasting": ("forecast", ("batch", "steps", "channels", "quantiles")),
    "imputation": ("filled", ("batch", "steps", "channels")),
    "anomaly": ("scores", ("batch", "steps")),
    "masked_patch": ("cells", ("batch", "positions", "values")),
    "masked_sound": ("frames", ("batch", "positions", "values")),
}
TOKEN_HEADS = ("token", "strand_token", "masked_token")
# Tasks whose answer is one for the whole sequence, and those with one at every position.
POOLED, POSITIONED = ("classification", "multilabel", "regression"), ("frames", "base_labels", "ctc", "lm", "mlm")
# Steps of the spans that anomaly scores hide in turn, where the config does not say.
SPAN = 8


@dataclass(frozen=True)
class Port:
    """One input or output.

    Attributes:
        name: as in an exported graph.
        dtype: `int64`, `uint8`, `bool` or `float32`.
        axes: a number for a fixed size, a name for one that varies.
    """

    name: str
    dtype: str
    axes: tuple[str | int, ...]

    @property
    def dynamic(self) -> dict[int, str]:
        """Axes whose size varies, by their place."""
        return {place: axis for place, axis in enumerate(self.axes) if isinstance(axis, str)}


class Inference(nn.Module):
    """A model with its task's answer behind it: probabilities, values in original units, forecasts with their quantiles.

    Not to be confused with the model's own outputs, which losses want. Runs in evaluation mode; calibrated intervals, the
    series' normalisation and the pixels' statistics are parts of the model and act here too.

    Args:
        model: trained, with its config.
        rc_average: average the answers for a sequence and its reverse complement (DNA); None as the config says.
        span: steps of the spans that anomaly scores hide in turn; None as the config says.

    Raises:
        CheckpointError: if the config does not say what the model was trained for.
    """

    mean: Tensor
    std: Tensor
    complement: Tensor

    def __init__(self, model: SequenceModel, *, rc_average: bool | None = None, span: int | None = None) -> None:
        super().__init__()
        self.model = model.eval()
        self.config = model.config
        self.task = task_of(model)
        options: Mapping[str, Any] = self.config.get("inference", {})
        self.rc_average = bool(options.get("rc_average", False) if rc_average is None else rc_average)
        self.span = int(options.get("span", SPAN) if span is None else span)
        self.kind = input_kind(model)
        self.rc_average &= self.kind == "tokens" and self.task in (*POOLED, "base_labels", "profile")
        self.register_buffer("mean", torch.tensor(self.config.get("mean", 0.0), dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(self.config.get("std", 1.0), dtype=torch.float32), persistent=False)
        complement = self.config.get("tokenizer", {}).get("complement", []) if self.rc_average else []
        n_ids = int(getattr(model.embedding, "vocab_size", 0))
        self.register_buffer("complement", torch.tensor([*complement, *range(len(complement), n_ids)]), persistent=False)

    # -- what goes in and comes out

    @property
    def takes_mask(self) -> bool:
        """Whether a mask tells real positions from padding; series mark what is missing with NaN, images have no padding."""
        return self.kind in ("tokens", "samples", "vectors")

    @property
    def stride(self) -> int:
        """Places of the input that make one position: samples for sound, 1 for tokens."""
        return int(getattr(self.model.embedding, "stride", 1)) if self.kind == "samples" else 1

    @property
    def max_length(self) -> int | None:
        """The longest input, in tokens or samples; None if the backbone sets no limit."""
        limits = [limit for part in (self.model.backbone, self.model.embedding) if (limit := getattr(part, "max_length", None))]
        return min(limits) * self.stride if limits and self.takes_mask else None

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The inputs in the order of `forward`."""
        mask = Port("mask", "bool", ("batch", "length"))
        embedding = self.model.embedding
        if isinstance(embedding, SeriesEmbedding):
            width = embedding.n_channels + embedding.n_covariates
            return (Port("inputs", "float32", ("batch", embedding.n_steps, width)),)
        if isinstance(embedding, CellEmbedding):
            frames, height, width = embedding.input_size
            clip = (frames,) if isinstance(embedding, TubeletEmbedding) else ()
            dtype = "float32" if self.task == "masked_patch" else "uint8"
            return (Port("inputs", dtype, ("batch", *clip, embedding.n_channels, height, width)),)
        if self.kind == "vectors":
            n_channels = int(embedding.projection.in_features)  # type: ignore[union-attr, arg-type]
            return Port("inputs", "float32", ("batch", "length", n_channels)), mask
        return Port("inputs", "int64" if self.kind == "tokens" else "float32", ("batch", "length")), mask

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The outputs in the order of what `forward` returns: one."""
        name, axes = OUTPUTS[self.task]
        fixed = self._fixed_sizes()
        # One position per token: then both have the same length.
        same = {"positions": "length"} if self.takes_mask and self.stride == 1 else {}
        return (Port(name, "float32", tuple(fixed.get(axis, same.get(axis, axis)) for axis in axes)),)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(port.name for port in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(port.name for port in self.outputs)

    @property
    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """Axes of each input whose size varies."""
        return {port.name: port.dynamic for port in self.inputs}

    def _fixed_sizes(self) -> dict[str, int]:
        head, embedding = self.model.head, self.model.embedding
        sizes: dict[str, int] = {}
        if isinstance(head, ForecastHead):
            sizes |= {"steps": head.horizon, "channels": head.n_channels, "quantiles": len(head.quantiles)}
        else:
            sizes |= dict.fromkeys(("labels", "symbols", "vocabulary", "values"), _n_outputs(head))
        if isinstance(embedding, CellEmbedding):
            sizes["positions"] = embedding.grid[0] * embedding.grid[1] * embedding.grid[2]
        return sizes

    # -- running it

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """The answer.

        Args:
            inputs: as in `inputs`: ids (B, L), samples (B, T), windows (B, L, C) in original units, or pixels.
            mask: bool (B, L), True at real tokens or samples; None if all are, and for series and images.

        Returns:
            As in `outputs`. Answers at padded positions mean nothing.
        """
        if self.task == "anomaly":
            return self._anomaly_scores(inputs)
        answer = self.answer(self.model(inputs, mask), inputs)
        if not self.rc_average:
            return answer
        other = self.model(reverse_complement(inputs, self.complement, mask), mask)
        return 0.5 * (answer + self.answer(self._turned(other, mask)))

    def _turned(self, outputs: Tensor, mask_BL: Tensor | None) -> Tensor:
        """The model's outputs for the other strand as they lie on this one; those for whole sequences have no direction."""
        if self.task == "profile":
            return outputs.flip(1)[..., self.config.get("other_strand") or list(range(outputs.shape[-1]))]
        if self.task != "base_labels":
            return outputs
        if mask_BL is None:
            return outputs.flip(1)
        place_BL = mirrored_places(mask_BL)
        return outputs.gather(1, place_BL.unsqueeze(-1).expand_as(outputs))

    def answer(self, outputs: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The model's own outputs as the task's answer.

        Args:
            outputs: what the model put out for `inputs`.
            inputs: needed where the answer keeps a part of them (imputation).
        """
        outputs = outputs.float()
        if self.task in ("classification", "frames", "base_labels"):
            return outputs.softmax(-1)
        if self.task == "multilabel":
            return outputs.sigmoid()
        if self.task == "ctc":
            return outputs.log_softmax(-1)
        if self.task == "profile" and self.config.get("loss", "poisson") == "poisson":
            return nn.functional.softplus(outputs) * self.mean
        if self.task in ("regression", "profile"):
            return outputs * self.std + self.mean
        if self.task == "masked_patch" and not self.config.get("normalize_cells", False):
            return (outputs * self.std + self.mean).clamp(0, 1)
        if self.task == "forecasting":
            # Behind the quantiles a student_t head puts the parameters that its loss reads.
            return outputs[..., : self._fixed_sizes()["quantiles"]]
        if self.task == "imputation":
            if inputs is None:
                raise ValueError("imputation keeps what was observed: give answer() the inputs too")
            return torch.where(torch.isnan(inputs), outputs[..., 0], inputs.float())
        return outputs

    def _anomaly_scores(self, inputs_BLC: Tensor) -> Tensor:
        """Mean squared error per step in units of the training deviation; each step told from the others, in two passes."""
        embedding = self.model.embedding
        assert isinstance(embedding, SeriesEmbedding)
        place_L = torch.arange(inputs_BLC.shape[1], device=inputs_BLC.device)
        even_L1 = (place_L // self.span % 2 == 0).unsqueeze(-1)
        first, second = (self.model(inputs_BLC.masked_fill(hidden, torch.nan))[..., 0] for hidden in (even_L1, ~even_L1))
        told_BLC = torch.where(even_L1, first, second).float()
        error_BLC = ((inputs_BLC.float() - told_BLC) / embedding.normalizer.std_C).square()
        seen_BLC = ~torch.isnan(inputs_BLC)
        # NaN where nothing was observed, as there is nothing to be told.
        return torch.where(seen_BLC, error_BLC, 0.0).sum(-1) / seen_BLC.sum(-1)

    def example(self, batch_size: int, length: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs of the right kind, rows of several lengths among them; the same for the same arguments.

        Args:
            batch_size: B.
            length: of the longest row, in tokens or samples; None for 64 positions. Not read where the length is fixed.
            seed: of the random numbers.
        """
        generator = torch.Generator().manual_seed(seed)
        sizes = {"batch": batch_size, "length": length or min(64 * self.stride, self.max_length or 64 * self.stride)}
        port = self.inputs[0]
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in port.axes]
        device = self.mean.device
        if self.kind == "tokens":
            known = self.config.get("tokenizer", {}).get("vocab")
            n_ids = len(known) if isinstance(known, dict) else int(self.model.embedding.vocab_size)  # type: ignore[arg-type]
            inputs = torch.randint(0, n_ids, shape, generator=generator)
        elif port.dtype == "uint8":
            inputs = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
        else:
            inputs = self._example_values(torch.randn(shape, generator=generator))
        if not self.takes_mask:
            return (inputs.to(device),)
        # Every second row is about a third shorter, the first is not.
        real_B1 = torch.tensor([max(1, shape[1] - (row % 2) * (shape[1] // 3)) for row in range(batch_size)]).unsqueeze(1)
        return inputs.to(device), (torch.arange(shape[1]) < real_B1).to(device)

    def _example_values(self, noise: Tensor) -> Tensor:
        """Values of the size that the model knows, some of them missing where it knows missing ones."""
        embedding = self.model.embedding
        if isinstance(embedding, CellEmbedding):
            values = noise.sigmoid()
            values[..., : embedding.cell[1], : embedding.cell[2]] = torch.nan
            return values
        if not isinstance(embedding, SeriesEmbedding):
            return 0.1 * noise
        n_channels = embedding.n_channels
        known = noise[..., n_channels:] * embedding.covariate_std_K.cpu() + embedding.covariate_mean_K.cpu()
        values = noise[..., :n_channels] * embedding.normalizer.std_C.cpu() + embedding.normalizer.mean_C.cpu()
        if embedding.flags:
            values[:, 1::7] = torch.nan
        return torch.cat([values, known], -1)


def load_inference(folder: str | Path, device: str | torch.device = "cpu", **options: Any) -> Inference:
    """The model of a folder with its task's answer behind it.

    Args:
        folder: with config.json and model.safetensors.
        device: where to put it.
        **options: of `Inference`.

    Raises:
        CheckpointError: if the folder is not a model's, or does not say what it was trained for.
    """
    return Inference(load_model(folder), **options).to(device).eval().requires_grad_(False)


def task_of(model: SequenceModel) -> str:
    """What a model was trained for; published language models, whose configs do not say, are known by their heads.

    Raises:
        CheckpointError: if neither says, or if this version does not know the task.
    """
    task = model.config.get("task")
    head = model.config.get("head", {}).get("name")
    if task is None and head in TOKEN_HEADS:
        task = "lm" if model.backbone.causal else "mlm"
    if task not in OUTPUTS:
        found = f"has task={task!r}" if task is not None else f"names no task, and its head is {head!r}"
        raise CheckpointError(f"the model's config {found}; this version answers for the tasks {', '.join(OUTPUTS)}")
    return str(task)


def input_kind(model: SequenceModel) -> str:
    """`tokens` (ids), `samples` (sound), `series` (windows), `pixels` or `vectors` (real values at each position)."""
    embedding = model.embedding
    if isinstance(embedding, SeriesEmbedding):
        return "series"
    if isinstance(embedding, CellEmbedding):
        return "pixels"
    if hasattr(embedding, "output_length"):
        return "samples"
    return "tokens" if hasattr(embedding, "vocab_size") else "vectors"


def reverse_complement(ids_BL: Tensor, complement_V: Tensor, mask_BL: Tensor | None = None) -> Tensor:
    """The other strand of every row; padding stays where it is.

    Args:
        ids_BL: token ids.
        complement_V: the complementary id of each id.
        mask_BL: True at real positions, one contiguous run per row; None if all are.
    """
    other_BL = complement_V[ids_BL]
    if mask_BL is None:
        return other_BL.flip(1)
    return other_BL.gather(1, mirrored_places(mask_BL))


def mirrored_places(mask_BL: Tensor) -> Tensor:
    """Where each real position comes from when each row's real positions are read backwards; padding stays."""
    place_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    first_B1 = mask_BL.int().argmax(1, keepdim=True)
    mirrored_BL = 2 * first_B1 + mask_BL.sum(1, keepdim=True) - 1 - place_L
    return torch.where(mask_BL, mirrored_BL, place_L)


def _n_outputs(head: nn.Module) -> int:
    """Width of a head's outputs."""
    projection = getattr(getattr(head, "strand", head), "projection", None)
    if not isinstance(projection, nn.Linear):
        raise CheckpointError(f"the head {type(head).__name__} has no projection that says how many outputs it has")
    return projection.out_features
