"""One training step of known networks, forward, backward and AdamW: tokens a second and memory, with kernels and without."""

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.errors import ConfigError
from longseq.losses import chunked_cross_entropy
from longseq.model import SequenceModel, build_model
from longseq.ops.dispatch import prefer
from longseq.optim import parameter_groups, parameter_options
from longseq.pipelines import bench, bench_clock
from longseq.pipelines.bench import Options, Timing
from longseq.pipelines.bench_profile import shares

NAN = float("nan")
# What of the published sizes the others keep: width, layers, positions, rows, ids.
SIZES = {"tiny": (32, 2, 64, 2, 32), "small": (64, 2, 2048, 1, 64)}
_CLASSES, _CHANNELS = 10, 3
# Of the positions of a masked language model, those with a label.
_MASKED = 0.15


@dataclass(frozen=True)
class Preset:
    """A network, what it is trained on and for.

    Attributes:
        backbone: options of `create_backbone`.
        batch: rows.
        length: positions of each.
        n_ids: size of the vocabulary; 0 for real-valued input of three channels.
        objective: `lm` (next token), `mlm` (some tokens) or `classes` (one of ten for a row).
        tie: one matrix for embedding and head.
    """

    backbone: dict[str, Any]
    batch: int
    length: int
    n_ids: int = 16
    objective: str = "lm"
    tie: bool = False


_LONG = 1_000_000
_HYENA = {"name": "hyena", "d_model": 256}
_ROBERTA = {"n_heads": 12, "window": 256, "rotary": False, "prenorm": False}
PRESETS: dict[str, Preset] = {
    # https://arxiv.org/abs/2306.15794, table A.1; the large one has the width of the small one and twice its depth.
    "hyenadna-small-32k": Preset({**_HYENA, "n_layers": 4, "max_length": 32_768}, 8, 32_768),
    "hyenadna-large-1m": Preset({**_HYENA, "n_layers": 8, "max_length": _LONG, "gradient_checkpointing": True}, 1, _LONG),
    # https://arxiv.org/abs/2312.00752, table 12.
    "mamba-130m": Preset({"name": "mamba", "d_model": 768, "n_layers": 24}, 4, 8192, n_ids=50_280, tie=True),
    "mamba-1m": Preset({"name": "mamba", "d_model": 256, "n_layers": 8, "gradient_checkpointing": True}, 1, _LONG),
    "mamba2-130m": Preset({"name": "mamba2", "d_model": 768, "n_layers": 24}, 4, 8192, n_ids=50_288, tie=True),
    # https://arxiv.org/abs/2111.00396, table 11, sequential CIFAR: 32 x 32 pixels.
    "s4-scifar": Preset({"name": "s4", "d_model": 512, "n_layers": 6, "causal": False}, 50, 1024, 0, "classes"),
    "s4d-scifar": Preset({"name": "s4d", "d_model": 512, "n_layers": 6, "causal": False}, 50, 1024, 0, "classes"),
    # https://arxiv.org/abs/2004.05150, section 5: RoBERTa's size.
    "longformer-base-16k": Preset(
        {"name": "longformer", "d_model": 768, "n_layers": 12, **_ROBERTA}, 1, 16_384, n_ids=50_265, objective="mlm"
    ),
}


def time_training(options: Options, device: str) -> Iterator[Timing]:
    """Every preset that was asked for: with kernels first, then without."""
    names = fnmatch.filter(PRESETS, options.name)
    if not names:
        raise ConfigError(f"no preset is called {options.name!r}. Presets: {', '.join(PRESETS)}")
    size = ("full" if device == "cuda" else "small") if options.size == "auto" else options.size
    if size not in ("full", *SIZES):
        raise ConfigError(f"bench train has no size {size!r}. Sizes: {', '.join([*SIZES, 'full'])}")
    for name in names:
        preset, first = shrink(PRESETS[name], size), NAN
        for implementation in bench.implementations_of(options) or ["auto", "chunked"]:
            with bench_clock.freed(device):
                rows = time_preset(name, preset, implementation, options, device)
            if first == first and rows[0].step_ms == rows[0].step_ms:
                rows[0].note += f", {rows[0].step_ms / first:.2f} times longseq's"
            first = rows[0].step_ms if implementation == "auto" else first
            yield from rows


def shrink(preset: Preset, size: str) -> Preset:
    """The same network, narrower, shallower and on shorter rows."""
    if size == "full":
        return preset
    width, layers, length, batch, n_ids = SIZES[size]
    length = min(length, preset.length)
    backbone = {**preset.backbone, "d_model": width, "n_layers": layers}
    backbone |= {"n_heads": 2, "window": max(1, length // 8)} if "n_heads" in backbone else {}
    backbone |= {"max_length": length} if "max_length" in backbone else {}
    return replace(preset, backbone=backbone, batch=batch, length=length, n_ids=min(preset.n_ids, n_ids))


def time_preset(name: str, preset: Preset, implementation: str, options: Options, device: str) -> list[Timing]:
    """The row of one network in one implementation, and its profile's rows if they were asked for."""
    shown = "longseq" if implementation == "auto" else f"plain {implementation}"
    row = Timing(name, f"B{preset.batch} L{preset.length}", shown, NAN)
    try:
        with prefer(implementation):
            step, model = make_step(preset, device, bench.dtype_of(options, device))
            bench_clock.once_ms(step, device)
            # With the parameters, their gradients and the optimizer's moments, which stand by now.
            held = torch.cuda.memory_allocated() / 2**20 if device == "cuda" else _training_mib(model)
            spent: list[float] = []
            row.memory_mib = held + bench_clock.peak_mib(lambda: spent.append(bench_clock.once_ms(step, device)), device)
            # A step that takes longer than all may is not repeated.
            slow = spent[0] > 1e3 * options.budget_s
            row.step_ms = spent[0] if slow else bench_clock.in_turns([step], device, options.budget_s, spent[0])[0].ms
            found = shares(step, device) if options.profile else []
    except Exception as error:
        # An implementation that was named may not be available here; the others go on.
        if not bench_clock.is_out_of_memory(error) and not (isinstance(error, ValueError) and implementation != "auto"):
            raise
        row.note = bench_clock.reason(error)
        return [row]
    row.tokens_per_s = preset.batch * preset.length / (row.step_ms * 1e-3)
    row.note = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"
    return [row, *(Timing(name, f"  {share.what}", shown, NAN, note=share.show()) for share in found)]


def _training_mib(model: SequenceModel) -> float:
    """Parameters, and for those that are trained their gradients and AdamW's two moments."""
    return sum((4 if p.requires_grad else 1) * p.numel() * p.element_size() for p in model.parameters()) / 2**20


def make_step(preset: Preset, device: str, dtype: torch.dtype) -> tuple[Callable[[], None], SequenceModel]:
    """A training step on one random batch, as the pipelines run it (`bf16-mixed` on a GPU), and the model."""
    torch.manual_seed(0)
    model = build_model(_config(preset)).to(device).train()
    groups = parameter_groups(model.named_parameters(), parameter_options(model, lr=1e-4, weight_decay=0.1))
    for group in groups:
        del group["names"]
    optimizer = torch.optim.AdamW(groups, fused=device == "cuda")
    inputs, labels = _batch(preset, device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            loss = _loss(model, preset, inputs, labels)
        loss.backward()
        optimizer.step()

    return step, model


def _config(preset: Preset) -> dict[str, Any]:
    if preset.objective == "classes":
        embedding: dict[str, Any] = {"name": "linear", "n_channels": _CHANNELS}
        head: dict[str, Any] = {"name": "pool", "n_outputs": _CLASSES}
    else:
        embedding = {"name": "token", "vocab_size": preset.n_ids}
        head = {"name": "token", "n_outputs": preset.n_ids, "tie": preset.tie}
    return {"backbone": preset.backbone, "embedding": embedding, "head": head}


def _batch(preset: Preset, device: str) -> tuple[Tensor, Tensor]:
    """Random inputs and labels; a language model's labels are the inputs one place on."""
    generator = torch.Generator().manual_seed(0)
    shape = (preset.batch, preset.length)
    if preset.objective == "classes":
        inputs = torch.randn(*shape, _CHANNELS, generator=generator)
        return inputs.to(device), torch.randint(_CLASSES, shape[:1], generator=generator).to(device)
    inputs = torch.randint(preset.n_ids, shape, generator=generator)
    if preset.objective == "mlm":
        labels = inputs.masked_fill(torch.rand(shape, generator=generator) > _MASKED, -100)
    else:
        labels = F.pad(inputs[:, 1:], (0, 1), value=-100)
    return inputs.to(device), labels.to(device)


def _loss(model: SequenceModel, preset: Preset, inputs: Tensor, labels: Tensor) -> Tensor:
    if preset.objective == "classes":
        return F.cross_entropy(model(inputs).float(), labels)
    x_ND = model.features(inputs).flatten(0, 1)
    return chunked_cross_entropy(model.head, x_ND, labels.flatten(), preset.n_ids)
