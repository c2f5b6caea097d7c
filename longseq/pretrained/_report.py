"""What happened to each key of a checkpoint."""

from dataclasses import dataclass, field
from typing import Any

Shapes = dict[str, tuple[int, ...]]
_SHOWN = 6


@dataclass
class KeyReport:
    """What happened to each key, by our names unless said otherwise.

    Attributes:
        source: what was loaded.
        format: the format's name.
        matched: tensors whose name did not change.
        renamed: our name -> published name.
        shapes: of everything that was loaded.
        missing: parameters that the checkpoint lacks, allowed by `allow_missing`; they keep their initial values.
        unexpected: published names that nothing here corresponds to.
        dropped: published names that are not needed -> why.
        reinitialized: the head's parameters, where the checkpoint has none that fit.
        computed: buffers that follow from the config and are not in the file.
        tied: parameters that share memory with another, which was loaded -> that one.
        notes: what else to know.
        revision: the commit on the hub; empty for local files.
    """

    source: str
    format: str
    matched: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)
    missing: Shapes = field(default_factory=dict)
    unexpected: Shapes = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    reinitialized: Shapes = field(default_factory=dict)
    computed: Shapes = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    revision: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = dict(self.__dict__)
        for name in ("shapes", "missing", "unexpected", "reinitialized", "computed"):
            values[name] = {key: list(shape) for key, shape in values[name].items()}
        return values

    def __str__(self) -> str:
        n_loaded = len(self.matched) + len(self.renamed)
        commit = f", revision {self.revision}" if self.revision else ""
        lines = [f"{self.source} ({self.format}{commit}): {n_loaded} tensors loaded, {len(self.renamed)} of them renamed"]
        for title, entries in (
            ("re-initialized (train these)", _with_shapes(self.reinitialized)),
            ("missing, left at their initial values", _with_shapes(self.missing)),
            ("unexpected in the file, not used", _with_shapes(self.unexpected)),
            ("tied", [f"{name} = {other}" for name, other in self.tied.items()]),
            ("computed from the config", _with_shapes(self.computed)),
            ("not needed", [f"{name}: {why}" for name, why in self.dropped.items()]),
        ):
            if entries:
                lines.append(f"  {len(entries)} {title}:")
                lines += [f"    {entry}" for entry in entries[:_SHOWN]]
                lines += [f"    ... and {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def _with_shapes(shapes: Shapes) -> list[str]:
    return [f"{name} {shape}" for name, shape in shapes.items()]
