"""Options of the wrong kind, such as `data.batch_size=many`, found by the type hints of what they are given to."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from longseq.errors import ConfigError

PLAIN: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def check_types(prefix: str, target: Any, options: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first option whose value is not of the kind that the target's signature says.

    Args:
        prefix: where the options stand in the config, such as `data`.
        target: a class or a function.
        options: by name; those that the signature does not know, or says nothing of, may be anything.
    """
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        # Names that the module imports for type checkers only.
        return
    for name, value in options.items():
        if name in hints and not fits(value, hints[name]):
            raise ConfigError(f"{prefix}.{name} must be {words(hints[name])}, found {shown(value)}")


def shown(value: Any) -> str:
    """A value as a user writes it."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of a type hint's kind; hints that are not of plain values take anything."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if hint is None or hint is type(None):
        return value is None
    if origin is typing.Literal:
        return value in parts
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is str:
        # Ids, names and dates may look like numbers.
        return isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if inspect.isclass(origin or hint) and issubclass(origin or hint, Sequence):
        return isinstance(value, Sequence) and not isinstance(value, str) and all(fits(v, p) for v in value for p in parts[:1])
    if inspect.isclass(origin or hint) and issubclass(origin or hint, Mapping):
        return isinstance(value, Mapping)
    return True


def words(hint: Any) -> str:
    """A type hint for people: `a whole number or null`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        found = dict.fromkeys(words(part) for part in parts)
        return " or ".join(sorted(found, key=lambda word: word == "null"))
    if hint is None or hint is type(None):
        return "null"
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, parts))
    if hint in PLAIN:
        return PLAIN[hint]
    if inspect.isclass(origin or hint) and issubclass(origin or hint, Sequence):
        kind = {int: " of whole numbers", float: " of numbers"}.get(parts[0] if parts else None, "")
        return f"a list{kind} such as [a,b]" if not kind else f"a list{kind}"
    if inspect.isclass(origin or hint) and issubclass(origin or hint, Mapping):
        return "a mapping such as {a: b}"
    return getattr(hint, "__name__", str(hint))
