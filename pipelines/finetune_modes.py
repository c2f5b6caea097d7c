"""Ways of fine-tuning: what is trained, at which learning rate, and from when on."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import lightning as L
from omegaconf import OmegaConf
from torch import nn

from longseq.adapters import Adapted, add_lora, matches
from longseq.domains.base import DomainModule
from longseq.errors import ConfigError
from longseq.model import SequenceModel
from longseq.pipelines.finetune_options import mode_name, patterns

if TYPE_CHECKING:
    from omegaconf import DictConfig

# The embedding is as pretrained as the backbone.
PARTS = {"backbone": ("backbone.*", "embedding.*")}


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


def apply_mode(cfg: "DictConfig", model: SequenceModel, fresh: Collection[str] = ()) -> Plan:
    """Freezes and adapts the model as the config says; what is no pretrained weight is trained in every mode.

    Args:
        cfg: of the verb finetune.
        model: changed in place.
        fresh: names of parameters that start anew.

    Raises:
        ConfigError: for modes that exclude each other, or a pattern that matches nothing.
    """
    options, frozen = cfg.finetune, patterns(cfg.finetune.freeze)
    plan = Plan(mode_name(options))
    if options.reinit_layers not in (0, "all"):
        plan.notes.append(f"the last {options.reinit_layers} layers start anew")
    if options.unfreeze_every is not None:
        n_layers = len(layer_names(model.backbone)) - int(options.reinit_layers)
        plan.notes += unfreezing_notes(options.unfreeze_every, cfg.trainer.get("max_epochs"), n_layers)
    # Adapters change the names.
    untrained = [parameter for name, parameter in model.named_parameters() if name in fresh]
    if options.lora.r > 0:
        plan.adapted = adapt(options.lora, model)
        for parameter in untrained:
            parameter.requires_grad_(True)
    for pattern in frozen:
        plan.frozen[pattern] = freeze(model, pattern, but=untrained if pattern == "backbone" else ())
    if plan.adapted is not None or frozen:
        plan.notes += fresh_notes(untrained, {id(parameter) for parameter in model.head.parameters()})
    for part in (model.embedding, model.backbone):
        # What does not learn answers as it does in evaluation, without dropout.
        part.train(any(parameter.requires_grad for parameter in part.parameters()))
    check_trainable(model, plan)
    return plan


def unfreezing_notes(every: int, epochs: Any, n_layers: int) -> list[str]:
    """The schedule in words, and what it never reaches."""
    often = "epoch" if every == 1 else f"{every} epochs"
    notes = [f"the head is trained first, and one more layer with every {often}, the embedding last"]
    reached = (epochs - 1) // every if isinstance(epochs, int) and epochs > 0 else n_layers + 1
    if reached <= n_layers:
        layers = f"{n_layers - reached} of {n_layers} layers and " if reached < n_layers else ""
        notes.append(f"{layers}the embedding stay frozen: {epochs} epochs end before it is their turn")
    return notes


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
            train_also=patterns(options.train_also),
        )
    except ValueError as error:
        raise ConfigError(f"finetune.lora: {error}") from error
    except ImportError as error:
        raise ConfigError(str(error)) from error
    # A head may share the embedding's matrix; then it stays the pretrained one.
    model.embedding.requires_grad_(False)
    return adapted


def fresh_notes(untrained: Sequence[nn.Parameter], head: Collection[int]) -> list[str]:
    """What becomes of parameters that start anew, where it is not what the mode's name says."""
    learning = sum(p.numel() for p in untrained if p.requires_grad and id(p) not in head)
    random = sum(p.numel() for p in untrained if not p.requires_grad)
    notes = [f"{learning:,} parameters before the head start anew and are trained, whatever is frozen"] if learning else []
    return notes + ([f"{random:,} parameters that start anew stay frozen, as finetune.freeze says"] if random else [])


def freeze(model: SequenceModel, pattern: str, but: Sequence[nn.Parameter] = ()) -> int:
    """Freezes the parameters that a part's name or a pattern means, but for some, and returns how many.

    Raises:
        ConfigError: if none fits.
    """
    # A module's name means all that is in it.
    each = PARTS.get(pattern, (pattern, f"{pattern}.*"))
    found = [p for name, p in model.named_parameters() if any(matches(name, one) for one in each)]
    if not found:
        parts = ", ".join(sorted({name.split(".")[0] for name, _ in model.named_parameters()}))
        example = next(name for name, _ in model.backbone.named_parameters(prefix="backbone"))
        raise ConfigError(
            f"finetune.freeze={pattern} matches no parameter; expected {parts}, or patterns of names such as {example}"
        )
    spared = {id(parameter) for parameter in but}
    found = [parameter for parameter in found if id(parameter) not in spared]
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
        fresh: names of parameters that start anew, which are trained from the first epoch on wherever they stand.

    Paper: ULMFiT, https://arxiv.org/abs/1801.06146, section 3.3 (gradual unfreezing).
    """

    def __init__(self, every: int, fresh: Collection[str] = ()) -> None:
        self.every, self.fresh = every, fresh
        self._trainable: set[str] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size > 1:
            raise ConfigError("finetune.unfreeze_every runs in one process: set trainer.devices=1")
        assert isinstance(pl_module, DomainModule)
        self._trainable = {name for name, p in pl_module.model.named_parameters() if p.requires_grad}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A run that is resumed inside an epoch does not come to its start.
        self._freeze(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._freeze(trainer, pl_module)

    def _freeze(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DomainModule)
        depth = depths(pl_module.model)
        lowest = max(depth.values(), default=0) - trainer.current_epoch // self.every
        # The optimiser holds all of them; those without a gradient are left as they are, undecayed.
        for name, parameter in pl_module.model.named_parameters():
            parameter.requires_grad_(name in self._trainable and (depth[name] >= lowest or name in self.fresh))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DomainModule)
        for name, parameter in pl_module.model.named_parameters():
            parameter.requires_grad_(name in self._trainable)
