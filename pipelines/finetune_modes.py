"""Ways of fine-tuning: what is trained, at which learning rate, and from when on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import lightning as L
from omegaconf import OmegaConf
from torch import nn

from longseq.adapters import Adapted, add_lora, matches
from longseq.domains.base import DomainModule
from longseq.errors import ConfigError
from longseq.model import SequenceModel

if TYPE_CHECKING:
    from omegaconf import DictConfig

PARTS = {"backbone": ("backbone.*", "embedding.*"), "embedding": ("embedding.*",)}


@dataclass
class Plan:
    """What will be trained.

    Attributes:
        mode: in a word or two.
        adapted: by LoRA; None without.
        frozen: how many parameters each pattern has frozen.
        notes: what to tell the user.
    """

    mode: str
    adapted: Adapted | None = None
    frozen: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def layer_names(backbone: nn.Module) -> list[str]:
    """Names of a backbone's layers in order of depth: the entries of its outermost lists."""
    names: list[str] = []
    lists: list[str] = []
    for name, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists.append(name)
            names += [f"{name}.{i}" for i in range(len(module))]
    return names


def depths(model: SequenceModel) -> dict[str, int]:
    """How deep each parameter stands: 0 for the embedding, then the layers, then the last norm and the head."""
    layers = layer_names(model.backbone)
    found = {}
    for name, _ in model.named_parameters():
        inside = [i for i, layer in enumerate(layers) if name.startswith(f"backbone.{layer}.")]
        found[name] = inside[0] + 1 if inside else 0 if name.startswith("embedding.") else len(layers) + 1
    return found


# -- before the module is made


def apply_mode(cfg: "DictConfig", model: SequenceModel) -> Plan:
    """Freezes and adapts the model as the config says.

    Raises:
        ConfigError: for modes that exclude each other, or a pattern that matches nothing.
    """
    options = cfg.finetune
    frozen = [options.freeze] if isinstance(options.freeze, str) else list(options.freeze or [])
    lora = int(options.lora.r) > 0
    check_modes(cfg, frozen, lora)
    plan = Plan("linear probe" if "backbone" in frozen else "LoRA" if lora else "full fine-tuning")
    if options.reinit_layers == "all":
        plan.mode = "from scratch"
    elif options.reinit_layers:
        plan.notes.append(f"the last {options.reinit_layers} layers start anew")
    if lora:
        plan.adapted = adapt(options.lora, model)
    for pattern in frozen:
        plan.frozen[pattern] = freeze(model, pattern)
    for part in (model.embedding, model.backbone):
        # What does not learn answers as it does in evaluation, without dropout.
        part.train(any(parameter.requires_grad for parameter in part.parameters()))
    check_trainable(model, plan)
    return plan


def check_modes(cfg: "DictConfig", frozen: Sequence[str], lora: bool) -> None:
    """Raises ConfigError for modes that exclude each other, and numbers out of range."""
    options = cfg.finetune
    whole = "backbone" in frozen
    if lora and whole:
        raise ConfigError("finetune.lora.r and finetune.freeze=backbone exclude each other: LoRA trains the backbone's layers")
    if options.unfreeze_every is not None and (lora or whole):
        raise ConfigError("finetune.unfreeze_every needs a backbone to unfreeze: leave out finetune.freeze=backbone and LoRA")
    if options.unfreeze_every is not None and options.unfreeze_every < 1:
        raise ConfigError(f"finetune.unfreeze_every must be at least 1 epoch, found {options.unfreeze_every}")
    if not 0.0 < options.layer_decay <= 1.0:
        raise ConfigError(f"finetune.layer_decay must lie in (0, 1], found {options.layer_decay}")
    if not options.head_lr_multiplier > 0.0:
        raise ConfigError(f"finetune.head_lr_multiplier must be above 0, found {options.head_lr_multiplier}")
    if options.reinit_layers == "all" and (lora or whole):
        raise ConfigError("finetune.reinit_layers=all starts from nothing: a frozen backbone would stay random")


def adapt(options: "DictConfig", model: SequenceModel) -> Adapted:
    """LoRA on the backbone; the embedding is frozen, the head is trained as it is."""
    targets: Any = OmegaConf.to_container(options.targets) if OmegaConf.is_list(options.targets) else options.targets
    alpha = 2.0 * options.r if options.alpha is None else float(options.alpha)
    try:
        adapted = add_lora(
            model.backbone,
            r=int(options.r),
            alpha=alpha,
            dropout=float(options.dropout),
            targets=targets,
            train_also=list(options.train_also),
        )
    except ValueError as error:
        raise ConfigError(f"finetune.lora: {error}") from error
    except ImportError as error:
        raise ConfigError(str(error)) from error
    # A head may share the embedding's matrix; then it stays the pretrained one.
    model.embedding.requires_grad_(False)
    return adapted


def freeze(model: SequenceModel, pattern: str) -> int:
    """Freezes the parameters that a part's name or a pattern means, and returns how many.

    Raises:
        ConfigError: if none fits.
    """
    patterns = PARTS.get(pattern, (pattern,))
    found = [p for name, p in model.named_parameters() if any(matches(name, each) for each in patterns)]
    if not found:
        parts = ", ".join(sorted({name.split(".")[0] for name, _ in model.named_parameters()}))
        example = next(name for name, _ in model.backbone.named_parameters(prefix="backbone"))
        raise ConfigError(
            f"finetune.freeze={pattern} matches no parameter; expected backbone, embedding, or patterns of names such as "
            f"{example} (the model's parts are {parts})"
        )
    for parameter in found:
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in found)


def check_trainable(model: SequenceModel, plan: Plan) -> None:
    """Notes a backbone that will not be trained; raises ConfigError if nothing at all would be."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("finetune.freeze leaves nothing to train")
    if not any(parameter.requires_grad for parameter in model.backbone.parameters()):
        plan.notes.append("zero trainable backbone parameters: only the rest of the model learns")


# -- the optimiser's options


def scale_learning_rates(cfg: "DictConfig", module: DomainModule) -> None:
    """Learning rates that fall with the distance from the head, and the head's own."""
    options, model = cfg.finetune, module.model
    depth = depths(model)
    top = max(depth.values(), default=0)
    for name, found in module.parameter_options.items():
        # Inside the embedding, for a tied head: one parameter has one rate.
        found["lr"] *= float(options.layer_decay) ** (top - depth[name])
        if name.startswith("head."):
            found["lr"] *= float(options.head_lr_multiplier)


def group_rows(module: DomainModule) -> list[dict[str, Any]]:
    """The optimiser's groups as a table: learning rate, weight decay, how many parameters, and an example."""
    rows: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in module.model.named_parameters():
        if not parameter.requires_grad:
            continue
        found = module.parameter_options[name]
        new = {"lr": found["lr"], "weight_decay": found["weight_decay"], "tensors": 0, "parameters": 0, "such as": name}
        row = rows.setdefault((found["lr"], found["weight_decay"]), new)
        row["tensors"] += 1
        row["parameters"] += parameter.numel()
    return sorted(rows.values(), key=lambda row: (-row["lr"], -row["weight_decay"]))


class UnfreezeLayers(L.Callback):
    """Trains the head alone at first, then one more layer every few epochs, from the last down to the embedding.

    Args:
        every: epochs between two layers.

    Paper: ULMFiT, https://arxiv.org/abs/1801.06146, section 3.3 (gradual unfreezing).
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._trainable: set[str] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size > 1:
            raise ConfigError("finetune.unfreeze_every runs in one process: set trainer.devices=1")
        assert isinstance(pl_module, DomainModule)
        self._trainable = {name for name, p in pl_module.model.named_parameters() if p.requires_grad}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DomainModule)
        depth = depths(pl_module.model)
        lowest = max(depth.values(), default=0) - trainer.current_epoch // self.every
        # The optimiser holds all of them; those without a gradient are left as they are, undecayed.
        for name, parameter in pl_module.model.named_parameters():
            parameter.requires_grad_(name in self._trainable and depth[name] >= lowest)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DomainModule)
        for name, parameter in pl_module.model.named_parameters():
            parameter.requires_grad_(name in self._trainable)
