"""Show what there is to choose from: backbones, domains, tasks, experiments, published checkpoints.

usage: longseq list [backbones | domains | tasks | experiments | pretrained] ['*pattern*']

Without a topic every name with one line; with a topic all there is to say of each.
"""

import ast
import fnmatch
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from longseq.errors import ConfigError
from longseq.pipelines.cli import nearest_of

ROOT = Path(__file__).parent.parent
CONFIGS, DOMAINS = ROOT / "configs", ROOT / "domains"
# Small, and a multiple of every default number of heads and width per head.
WIDTHS = (16, 64, 256)


@dataclass(frozen=True)
class BackboneFacts:
    """A backbone as it is, not as it is said to be: `direction` and `steps` come from one that was built.

    Attributes:
        name: the registry's.
        summary: what it is.
        direction: `causal`, `bidirectional`, or `either` where the option `causal` decides.
        steps: whether it runs step by step, and what it carries then.
        cost: of a forward pass.
        paper: a link.
    """

    name: str
    summary: str
    direction: str
    steps: str
    cost: str
    paper: str


def run(args: Sequence[str]) -> int:
    """The verb.

    Args:
        args: a topic and a pattern with shell wildcards, both optional.

    Raises:
        ConfigError: for an unknown topic.
    """
    if len(args) > 2:
        raise ConfigError(f"longseq list takes a topic and a pattern, found {len(args)} arguments: {' '.join(args)}")
    out = Console(width=None if os.isatty(1) else max(80, shutil.get_terminal_size().columns), highlight=False)
    if not args:
        for topic, (names, _) in TOPICS.items():
            out.print(short_table(topic, names("*")))
        out.print("longseq list <topic> says more; longseq list backbones '*mamba*' takes a pattern", style="dim")
        return 0
    topic, pattern = args[0], args[1] if len(args) == 2 else "*"
    if topic not in TOPICS:
        raise ConfigError(f"there is no topic {topic!r}{nearest_of(topic, TOPICS, 'Topics')}")
    _, details = TOPICS[topic]
    out.print(details(pattern))
    return 0


def short_table(title: str, rows: Iterable[tuple[str, str]]) -> RenderableType:
    """Names with one line each; names are never cut, the lines wrap."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, overflow="ignore")
    table.add_column(overflow="fold")
    found = list(rows)
    for name, text in found:
        table.add_row(f"  {name}", Text(text))
    if not found:
        table.add_row("  none", "")
    return Group(Text(title, style="bold"), table, "")


# -- backbones


def backbone_names(pattern: str) -> list[tuple[str, str]]:
    """Names and summaries."""
    return [(facts.name, facts.summary) for facts in map(read_backbone, list_matching(pattern))]


def list_matching(pattern: str) -> list[str]:
    """Registered names that match; for a plain word also those that contain it."""
    from longseq.registry import list_backbones

    return list_backbones(pattern) or list_backbones(f"*{pattern}*")


def read_backbone(name: str) -> BackboneFacts:
    """What the registry says, without building anything; a backbone that cannot be imported is listed with the reason."""
    from longseq.registry import backbone_info

    try:
        info = backbone_info(name)
    except Exception as error:
        return BackboneFacts(name, f"cannot be imported: {error}", "?", "", "", "")
    return BackboneFacts(name, info.summary, "", info.state, info.cost, info.paper)


def build_backbone(name: str) -> BackboneFacts:
    """The same with what a built one says of itself."""
    from longseq.registry import backbone_info

    facts = read_backbone(name)
    if facts.direction == "?":
        return facts
    forms = {}
    # Whichever forms its own option allows: some are causal by default, some are not, some can be either.
    choices: list[dict[str, Any]] = [{}]
    if "causal" in backbone_info(name).options():
        choices += [{"causal": True}, {"causal": False}]
    for options in choices:
        if (form := build_tiny(name, **options)) is not None:
            forms[form[0]] = form[1] or forms.get(form[0], False)
    names = {True: "causal", False: "bidirectional"}
    direction = "either" if len(forms) == 2 else names[next(iter(forms))] if forms else "?"
    steps = facts.steps or "yes" if any(forms.values()) else "no"
    return BackboneFacts(name, facts.summary, direction, steps, facts.cost, facts.paper)


def build_tiny(name: str, **options: Any) -> tuple[bool, bool] | None:
    """Whether one layer of it is causal and whether it can step; None if it cannot be built with these options."""
    from longseq.registry import create_backbone

    for d_model in WIDTHS:
        try:
            backbone = create_backbone(name, d_model=d_model, n_layers=1, **options)
        except (ValueError, TypeError):
            continue
        return backbone.causal, backbone.can_step
    return None


def backbone_details(pattern: str) -> RenderableType:
    """The table of backbones."""
    names = list_matching(pattern)
    if not names:
        raise ConfigError(f"no backbone matches {pattern!r}; longseq list backbones shows all")
    table = Table(title="backbones", title_justify="left", title_style="bold", show_lines=True)
    table.add_column("name", no_wrap=True, overflow="ignore")
    table.add_column("direction", width=13)
    table.add_column("cost", max_width=10)
    table.add_column("what it is", overflow="fold")
    for facts in map(build_backbone, names):
        steps = {"no": "does not run step by step", "yes": "runs step by step"}.get(facts.steps, f"state: {facts.steps}")
        about = Text("\n").join(Text(line) for line in (facts.summary, steps, facts.paper) if line)
        table.add_row(Text(facts.name, style="bold"), facts.direction, facts.cost, about)
    note = "either: backbone.causal=true or false. Layers of a causal one also run in both directions: bidirectional=true"
    return Group(table, note)


# -- domains, tasks, experiments


def first_comment(path: Path) -> str:
    """The comment that opens a YAML file, without a package line; empty if there is none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#") and not text.startswith("# @package"):
            return text.lstrip("# ").strip()
        if text and not text.startswith("#"):
            break
    return ""


def first_docstring_line(path: Path) -> str:
    """The first line of a Python file's docstring, read without importing it."""
    if not path.is_file():
        return ""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def config_names(group: str, pattern: str) -> list[tuple[str, str]]:
    """Choices of a config group, nested ones with their folder, and the comment that opens each."""
    folder = CONFIGS / group
    found = [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in sorted(folder.rglob("*.yaml"))]
    return [(name, first_comment(path)) for name, path in found if matches(name, pattern)]


def matches(name: str, pattern: str) -> bool:
    """Whether a name matches shell wildcards, or contains a plain word."""
    return fnmatch.fnmatchcase(name, pattern if re.search(r"[*?\[]", pattern) else f"*{pattern}*")


def domain_names(pattern: str) -> list[tuple[str, str]]:
    """Domains and the first line of their package's docstring."""
    names = [name for name, _ in config_names("domain", pattern)]
    return [(name, first_docstring_line(DOMAINS / name / "__init__.py")) for name in names]


def config_topic(group: str, usage: str) -> tuple["Names", "Details"]:
    """The topic of a config group."""

    def names(pattern: str) -> list[tuple[str, str]]:
        return domain_names(pattern) if group == "domain" else config_names(group, pattern)

    def details(pattern: str) -> RenderableType:
        return Group(short_table(f"{group}s", names(pattern)), usage)

    return names, details


# -- published checkpoints


def pretrained_names(pattern: str) -> list[tuple[str, str]]:
    """Formats of published checkpoints that can be loaded, with the first line of each file."""
    spec = find_spec("longseq.pretrained")
    if spec is None or not spec.submodule_search_locations:
        return []
    files = sorted(path for folder in spec.submodule_search_locations for path in Path(folder).glob("[!_]*.py"))
    return [(path.stem, first_docstring_line(path)) for path in files if matches(path.stem, pattern)]


def pretrained_details(pattern: str) -> RenderableType:
    """The published checkpoints, by name if the package lists them."""
    known = pretrained_names(pattern)
    if not pretrained_names("*"):
        return "No published checkpoints are shipped with this version."
    listing = import_module("longseq.pretrained").list_pretrained
    chosen = [info for info in listing() if matches(info.id, pattern) or matches(info.format, pattern)]
    if not chosen and not known:
        raise ConfigError(f"no published checkpoint and no format matches {pattern!r}; longseq list pretrained shows all")
    usage = "use one with: longseq finetune pretrained=<id>, or the folder that it was downloaded to"
    return Group(short_table("pretrained: formats", known), checkpoint_table(chosen), usage)


def checkpoint_table(checkpoints: Iterable[Any]) -> RenderableType:
    """What was published, by domain and licence: size, longest sequence and id; a dash for what is not known or not limited."""
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for info in checkpoints:
        groups.setdefault((info.format, info.domain, info.licence), []).append(info)
    tables: list[RenderableType] = []
    for (format, domain, licence), members in groups.items():
        table = Table(box=None, pad_edge=False, show_header=not tables)
        table.add_column("parameters", justify="right", width=10)
        table.add_column("length", justify="right", width=9)
        table.add_column("id", overflow="fold")
        for info in members:
            length = "-" if info.length is None else f"{info.length:,}"
            table.add_row(info.parameters or "-", length, info.id)
        tables += [Text(f"{format}: {domain}, {licence or 'licence not stated here'}", style="bold"), table, ""]
    return Group(*tables)


Names = Callable[[str], list[tuple[str, str]]]
Details = Callable[[str], RenderableType]
TOPICS: dict[str, tuple[Names, Details]] = {
    "backbones": (backbone_names, backbone_details),
    "domains": config_topic("domain", "use one with: longseq fit domain=<name>"),
    "tasks": config_topic("task", "use one with: longseq fit task=<name>"),
    "experiments": config_topic("experiment", "use one with: longseq fit experiment=<name>"),
    "pretrained": (pretrained_names, pretrained_details),
}
