"""Names to backbones. A backbone is found by its file's name in `longseq/backbones/` and imported when asked for."""

import difflib
import fnmatch
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, get_args

from longseq.backbone import Backbone, Mixer, Stack
from longseq.layers.bidirectional import Bidirectional, Merge
from longseq.layers.reverse_complement import ReverseComplement
from longseq.layers.scan_orders import alternate_orders

ENTRY_POINTS = "longseq.backbones"
Builder = TypeVar("Builder", bound=Callable[..., Any])
STACK_OPTIONS = frozenset(list(inspect.signature(Stack.__init__).parameters)[3:])


@dataclass(frozen=True)
class BackboneInfo:
    """What `longseq list backbones` says of a backbone.

    Attributes:
        name: the registry's name, which is also the file's.
        build: a `Mixer` class (one layer; a Stack is made of it) or anything that returns a `Backbone`.
        summary: what it is, in a few words.
        paper: a link.
        cost: of a forward pass over L positions, such as `O(L log L)`.
        state: what a step carries, such as `2 x d_model x d_state`; empty if it cannot step.
        stack: the Stack's options that differ from its defaults (mixers only).
    """

    name: str
    build: Callable[..., Any]
    summary: str
    paper: str
    cost: str
    state: str
    stack: dict[str, Any] = field(default_factory=dict)

    @property
    def is_mixer(self) -> bool:
        """Whether it is one layer, which stacks and patterns are made of."""
        return inspect.isclass(self.build) and issubclass(self.build, Mixer) and not issubclass(self.build, Backbone)

    def options(self) -> dict[str, Any]:
        """Names of the builder's own options with their defaults, without what the stack gives it."""
        parameters = list(inspect.signature(self.build).parameters.values())
        given = {"d_model", "n_layers", "layer_index"}
        return {p.name: p.default for p in parameters if p.name not in given and p.kind is not p.VAR_KEYWORD}


_registered: dict[str, BackboneInfo] = {}


def register_backbone(
    name: str, *, summary: str, paper: str, cost: str, state: str = "", **stack: Any
) -> Callable[[Builder], Builder]:
    """Class decorator that puts a `Mixer` (one layer of a Stack) or a `Backbone` builder under a name.

    Args:
        name: the file's name without `.py`, for a file in `longseq/backbones/`.
        summary: what it is, in a few words.
        paper: a link.
        cost: of a forward pass, such as `O(L)`.
        state: the size of what one step carries; empty if it cannot step.
        **stack: options of `Stack` that this backbone wants by default, such as `norm="rms"` or `mlp_ratio=0`.

    Raises:
        ValueError: for an unknown option of `Stack`, or a name that another builder holds.
    """
    unknown = set(stack) - STACK_OPTIONS
    if unknown:
        known = ", ".join(sorted(STACK_OPTIONS))
        raise ValueError(f"register_backbone({name!r}): unknown Stack options {sorted(unknown)}; known: {known}")

    def register(build: Builder) -> Builder:
        held = _registered.get(name)
        if held is not None and held.build.__module__ != build.__module__:
            raise ValueError(f"the backbone {name!r} is already registered by {held.build.__module__}")
        _registered[name] = BackboneInfo(name, build, summary, paper, cost, state, stack)
        return build

    return register


@cache
def _own_names() -> frozenset[str]:
    folder = Path(__file__).parent / "backbones"
    return frozenset(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of all backbones, ours and those that other packages add through the entry-point group `longseq.backbones`.

    Args:
        pattern: shell wildcards, such as `*mamba*`.
    """
    names = {*_own_names(), *_registered, *(entry.name for entry in entry_points(group=ENTRY_POINTS))}
    return sorted(fnmatch.filter(names, pattern))


def backbone_info(name: str) -> BackboneInfo:
    """What is registered under a name.

    Raises:
        ValueError: for an unknown name; the message holds the nearest known ones.
    """
    if name not in _registered:
        if name in _own_names():
            import_module(f"longseq.backbones.{name}")
        else:
            for entry in entry_points(group=ENTRY_POINTS, name=name):
                entry.load()
    if name not in _registered:
        near = difflib.get_close_matches(name, list_backbones(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(list_backbones())}"
        raise ValueError(f"unknown backbone {name!r}: {hint}")
    return _registered[name]


def create_mixer(name: str, d_model: int, *, n_layers: int = 1, layer_index: int = 0, **options: Any) -> Mixer:
    """One layer of a backbone that is made of layers.

    Args:
        name: a registered backbone.
        d_model: width in and out.
        n_layers: of the network it will stand in; some initialisations scale with it.
        layer_index: its place there; some layers differ by depth.
        **options: the mixer's own.

    Raises:
        ValueError: for an unknown name, or an option out of range.
        TypeError: for an unknown option; the message holds the nearest known ones.
    """
    info = backbone_info(name)
    if not info.is_mixer:
        raise ValueError(f"the backbone {name!r} is a whole network and cannot be a layer of another")
    _check_options(info, options, set(info.options()))
    known = inspect.signature(info.build).parameters
    place = {"n_layers": n_layers, "layer_index": layer_index}
    return info.build(d_model, **options, **{key: value for key, value in place.items() if key in known})


def create_backbone(
    name: str,
    *,
    d_model: int = 128,
    n_layers: int = 4,
    pattern: Sequence[str] | None = None,
    pattern_options: dict[str, dict[str, Any]] | None = None,
    bidirectional: bool = False,
    merge: Merge = "add",
    share: bool = False,
    reverse_complement: bool = False,
    scan_orders: Sequence[str] | None = None,
    grid: Sequence[int] | None = None,
    grid_token: int | None = None,
    **options: Any,
) -> Backbone:
    """Builds a registered backbone, `(B, L, d_model) -> (B, L, d_model)`.

    Args:
        name: see `list_backbones`.
        d_model: width in and out.
        n_layers: number of layers.
        pattern: layers by name for a hybrid stack, repeated over depth, such as `[mamba, mamba, longformer]`. Options
            of `name` go to its own layers; those of the others stand in `pattern_options`.
        pattern_options: per name in `pattern`, that mixer's options.
        bidirectional: run each causal layer forward and reversed, and merge. Layers that see both sides stay as they are.
        merge: `add`, `concat` or `hydra` (bidirectional only).
        share: one set of weights for both directions (bidirectional only).
        reverse_complement: make the stack exactly equivariant to reverse complement; d_model is then the width of both
            strands together.
        scan_orders: for 2-D or 3-D input, the orders in which successive layers read the positions, such as
            `[raster, column]`; see `longseq.layers.scan_orders`.
        grid: the input's sizes, `(H, W)` or `(T, H, W)`, for `scan_orders`.
        grid_token: place of a class token in the sequence of the grid's cells, for `scan_orders`; None for none.
        **options: the mixer's own options and those of `longseq.backbone.Stack`, such as `dropout=0.1`.

    Raises:
        ValueError: for an unknown name, or an option out of range.
        TypeError: for an unknown option; the message holds the nearest known ones.
    """
    info = backbone_info(name)
    for option, size in (("d_model", d_model), ("n_layers", n_layers)):
        # None is a whole network's own.
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(f"{option} must be a whole number of 1 or more, found {size!r}")
    if merge not in get_args(Merge):
        raise ValueError(f"merge must be one of {', '.join(get_args(Merge))}, found {merge!r}")
    for option, names in (("pattern", pattern), ("scan_orders", scan_orders)):
        if isinstance(names, str):
            raise ValueError(f"{option} must be a list of names, such as [{names}], found {names!r}")
    wrapped = bool(bidirectional or reverse_complement or pattern or scan_orders)
    if not info.is_mixer:
        if wrapped:
            raise ValueError(
                f"{name!r} is a whole network: bidirectional, reverse_complement, pattern and scan_orders need layers"
            )
        _check_options(info, options, set(info.options()))
        return info.build(d_model=d_model, n_layers=n_layers, **options)
    _check_options(info, options, {*info.options(), *STACK_OPTIONS})
    _check_pattern(pattern or (), pattern_options or {})
    for_stack = [key for key in options if key in STACK_OPTIONS and key not in info.options()]
    # A layer's own norm has the same epsilon as those between the layers.
    shared = {"norm_eps": options["norm_eps"]} if "norm_eps" in options and "norm_eps" in info.options() else {}
    stack = {**info.stack, **shared, **{key: options.pop(key) for key in for_stack}}
    own = {name: options, **(pattern_options or {})}
    kinds = [(pattern or [name])[i % len(pattern or [name])] for i in range(n_layers)]
    width = _strand_width(d_model) if reverse_complement else d_model
    mixers = [
        _create_layer(kind, width, n_layers, i, own.get(kind, {}), bidirectional, merge, share) for i, kind in enumerate(kinds)
    ]
    if scan_orders:
        mixers = _reorder(mixers, scan_orders, grid, grid_token)
    inner = Stack(mixers, width, **stack)
    if not reverse_complement:
        return inner
    return ReverseComplement(inner)


def _create_layer(
    kind: str, d_model: int, n_layers: int, index: int, options: dict[str, Any], bidirectional: bool, merge: Merge, share: bool
) -> Mixer:
    def build() -> Mixer:
        return create_mixer(kind, d_model, n_layers=n_layers, layer_index=index, **options)

    mixer = build()
    if not (bidirectional and mixer.causal):
        return mixer
    return Bidirectional(mixer, mixer if share else build(), d_model, merge=merge)


def _reorder(mixers: list[Mixer], scan_orders: Sequence[str], grid: Sequence[int] | None, token: int | None) -> list[Mixer]:
    if grid is None:
        raise ValueError("scan_orders needs grid, the input's sizes (H, W) or (T, H, W)")
    return alternate_orders(mixers, scan_orders, tuple(grid), token=token)


def _check_pattern(pattern: Sequence[str], pattern_options: dict[str, dict[str, Any]]) -> None:
    for kind in pattern_options:
        if kind not in pattern:
            raise ValueError(f"pattern_options has {kind!r}, which is no layer of pattern=[{', '.join(pattern)}]")


def _strand_width(d_model: int) -> int:
    if d_model % 2:
        raise ValueError(f"reverse_complement needs an even d_model (two strands of d_model / 2), found {d_model}")
    return d_model // 2


def _check_options(info: BackboneInfo, options: dict[str, Any], known: set[str]) -> None:
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known | _SHARED_OPTIONS, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
            raise TypeError(f"backbone {info.name!r} has no option {option!r}: {hint}")


# Those that `create_backbone` itself takes.
_SHARED_OPTIONS = frozenset(inspect.signature(create_backbone).parameters) - {"name", "options"}
