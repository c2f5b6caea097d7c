"""A fine-tuned run's part of the report: what was loaded, what was trained at which rate, and the folds."""

from collections.abc import Mapping
from html import escape
from typing import Any

from longseq.domains.sections import RunFiles, Section, table
from longseq.pipelines.report_sections import definitions

MOST_KEYS = 60
KINDS = {
    "reinitialized": "started anew",
    "missing": "missing, kept its initial values",
    "unexpected": "in the file, not used",
    "tied": "shares memory",
    "dropped": "not needed",
    "computed": "computed from the config",
}


def finetune_sections(files: RunFiles) -> list[Section]:
    """Nothing for a run that started from nothing."""
    facts, before = files.metrics.get("finetune"), files.metrics.get("self_pretrain")
    if isinstance(before, Mapping):
        return [pretraining_section(before)]
    if not isinstance(facts, Mapping):
        return []
    return [*fold_sections(files), mode_section(facts), group_section(facts), key_section(facts)]


def mode_section(facts: Mapping[str, Any]) -> Section:
    """Where the weights are from, and what of them is trained."""
    total, trainable = facts.get("parameters"), facts.get("trainable")
    values = {
        "pretrained": facts.get("pretrained"),
        "mode": facts.get("mode"),
        "adapted": facts.get("adapted"),
        "frozen": "; ".join(f"{pattern}: {count:,}" for pattern, count in (facts.get("frozen") or {}).items()) or None,
        "trained parameters": f"{trainable:,} of {total:,} ({trainable / total:.2%})"
        if total and trainable is not None
        else None,
        "notes": "; ".join(facts.get("notes") or []) or None,
    }
    return Section("Fine-tuning", html=definitions(values))


def pretraining_section(facts: Mapping[str, Any]) -> Section:
    """The pretraining on the task's own data that went before."""
    values = {
        "task": facts.get("task"),
        "epochs": facts.get("epochs"),
        "seconds": facts.get("seconds"),
        "tensors taken over": facts.get("tensors"),
        **{f"validation {name}": value for name, value in (facts.get("validation") or {}).items()},
    }
    return Section("Pretraining on the task's own data", html=definitions(values))


def group_section(facts: Mapping[str, Any]) -> Section:
    """The optimiser's groups."""
    names = ("lr", "weight_decay", "tensors", "parameters", "such as")
    rows = [[i + 1, *(group.get(name) for name in names)] for i, group in enumerate(facts.get("groups") or [])]
    header = ["", "learning rate", "weight decay", "tensors", "parameters", "such as"]
    return Section("Parameter groups", html=table(header, rows, label="the optimiser's parameter groups"), wide=True)


def key_section(facts: Mapping[str, Any]) -> Section:
    """What became of the checkpoint's tensors; those that only changed their name are counted."""
    keys = facts.get("keys") or {}
    rows = [[name, kind, detail(value)] for key, kind in KINDS.items() for name, value in (keys.get(key) or {}).items()]
    loaded, renamed = len(keys.get("matched") or []), len(keys.get("renamed") or {})
    source, format = (escape(str(keys.get(key))) for key in ("source", "format"))
    lead = f"{source} ({format}): {loaded + renamed} tensors loaded, {renamed} of them renamed."
    notes = "".join(f"<p>{escape(str(note))}</p>" for note in keys.get("notes") or [])
    html = table(["tensor", "what became of it", ""], rows[:MOST_KEYS], label="keys of the checkpoint") if rows else ""
    caption = f"{MOST_KEYS} of {len(rows)} are shown; all are in key_report.json." if len(rows) > MOST_KEYS else ""
    return Section("Key report", html=f"<p>{lead}</p>{notes}{html}", caption=caption, wide=True)


def detail(value: Any) -> str:
    """A shape, or what is said of the tensor."""
    return f"({', '.join(map(str, value))})" if isinstance(value, (list, tuple)) else str(value)


def fold_sections(files: RunFiles) -> list[Section]:
    """Every fold's test, with mean and deviation."""
    folds = files.metrics.get("folds")
    if not folds:
        return []
    names = sorted(files.metrics.get("test") or {}, key=lambda name: name != files.monitor)
    rows = [[f"fold {i + 1}", *(fold.get(name) for name in names)] for i, fold in enumerate(folds)]
    for label, key in (("mean", "test"), ("standard deviation", "test_sd")):
        rows.append([label, *((files.metrics.get(key) or {}).get(name) for name in names)])
    return [Section("Cross-validation", html=table(["", *names], rows, label="test metrics of the folds"), wide=True)]
