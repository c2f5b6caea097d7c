"""Who is trained on and who is tested on: by a column, a pattern on paths, held-out groups, or at random."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from longseq.domains.audio.clips import Clips
from longseq.domains.audio.sources import SPLIT_NAMES, find_column
from longseq.domains.loading import stratified_split
from longseq.errors import ConfigError, DataError

Parts = dict[str, np.ndarray]
# Columns that name who speaks, in the order in which they are looked for.
SPEAKERS = ("speaker", "speaker_id", "spk", "client_id")


def make_split(
    clips: Clips,
    *,
    split_column: str | None = None,
    test_pattern: str | None = None,
    val_pattern: str | None = None,
    group_column: str | None = None,
    test_groups: Sequence[str] = (),
    val_groups: Sequence[str] = (),
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    label_column: str | None = None,
    seed: int = 1,
) -> tuple[Parts, str]:
    """Row numbers of train, val and test by the first rule that is asked for, and the rule in words.

    Args:
        clips: all data.
        split_column: says train, val or test; a column named split is used by itself.
        test_pattern: regular expression on paths that test clips match, as for an official list.
        val_pattern: likewise for val.
        group_column: rows of one group, such as a speaker, stay in one part.
        test_groups: groups held out for test.
        val_groups: groups held out for val.
        val_fraction: share of the rows for val where no rule fills it.
        test_fraction: likewise for test.
        label_column: its classes are shared out alike by the random rule.
        seed: of the random rules.
    """
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ConfigError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} must leave something for train"
        )
    asked = test_pattern or val_pattern or test_groups or val_groups or group_column
    if split_column is not None or ("split" in clips.frame and not asked):
        part, rule = by_column(clips, split_column or "split"), f"by column {split_column or 'split'!r}"
    elif test_pattern or val_pattern:
        part, rule = by_pattern(clips, test_pattern, val_pattern), f"by paths: test {test_pattern!r}, val {val_pattern!r}"
    elif group_column is not None:
        return by_group(clips, group_column, test_groups, val_groups, val_fraction, test_fraction, seed)
    elif test_groups or val_groups:
        raise ConfigError("data.test_groups and data.val_groups need data.group_column, the column that names the groups")
    else:
        part, rule = np.full(len(clips), "", dtype=object), "at random"
    return fill_up(clips, part, rule, val_fraction, test_fraction, label_column, seed)


def by_column(clips: Clips, column: str) -> np.ndarray:
    """The part that a column names for each row."""
    texts = clips.frame[find_column(clips.frame, column, clips.where(0), "data.split_column")].astype(str).str.strip()
    parts = texts.str.lower().map(SPLIT_NAMES)
    unknown = np.flatnonzero(parts.isna())
    if len(unknown):
        row = int(unknown[0])
        raise DataError(f"{clips.where(row)}: {texts.iloc[row]!r} in {column!r}, where train, val or test was expected")
    return parts.to_numpy(dtype=object)


def by_pattern(clips: Clips, test_pattern: str | None, val_pattern: str | None) -> np.ndarray:
    """test and val for paths that match; empty for the rest."""
    part = np.full(len(clips), "", dtype=object)
    for name, pattern in (("val", val_pattern), ("test", test_pattern)):
        if pattern is None:
            continue
        try:
            matches = np.array([re.search(pattern, path.as_posix()) is not None for path in clips.frame["path"]])
        except re.error as error:
            raise ConfigError(f"data.{name}_pattern={pattern!r} is not a regular expression: {error}") from None
        if not matches.any():
            raise DataError(
                f"data.{name}_pattern={pattern!r} matches none of {len(clips)} paths, such as {clips.frame['path'].iloc[0]}"
            )
        part[matches] = name
    return part


def by_group(
    clips: Clips,
    column: str,
    test_groups: Sequence[str],
    val_groups: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> tuple[Parts, str]:
    """Whole groups for each part: the named ones, else random ones until a part has its share of the rows."""
    groups = names_in(clips, find_column(clips.frame, column, clips.where(0), "data.group_column"))
    empty = np.flatnonzero(groups == "")
    if len(empty):
        raise DataError(
            f"{clips.where(int(empty[0]))}: no {column}, by which data.group_column splits; {len(empty)} of {len(clips)} rows "
            "lack one"
        )
    known = sorted(set(groups))
    held = {**dict.fromkeys(map(str, val_groups), "val"), **dict.fromkeys(map(str, test_groups), "test")}
    for name in held:
        if name not in known:
            raise DataError(f"{name!r} is not among the groups of {column!r}: {', '.join(known[:20])}")
    order = [str(name) for name in np.random.default_rng(seed).permutation(known) if name not in held]
    for part_name, share in (("test", test_fraction), ("val", val_fraction)):
        if part_name in held.values():
            continue
        taken = 0
        # The last group is left for train.
        while share > 0 and len(order) > 1 and taken < max(1, round(share * len(clips))):
            group = order.pop()
            held[group] = part_name
            taken += int(np.sum(groups == group))
    part = np.array([held.get(name, "train") for name in groups])
    parts = {name: np.flatnonzero(part == name) for name in ("train", "val", "test")}
    named = "; ".join(f"{p} {', '.join(sorted(n for n, v in held.items() if v == p))}" for p in ("val", "test"))
    return parts, f"by {column}: {named}"


def names_in(clips: Clips, column: str) -> np.ndarray:
    """A column of names as text, empty where there is none, (N,)."""
    values = clips.frame[column]
    return values.where(values.notna(), "").astype(str).str.strip().to_numpy(dtype=object)


def fill_up(
    clips: Clips, part: np.ndarray, rule: str, val_fraction: float, test_fraction: float, label_column: str | None, seed: int
) -> tuple[Parts, str]:
    """Takes val and test, where the rule has none, from what is left for train."""
    given = {name: np.flatnonzero(part == name) for name in ("val", "test")}
    rest = np.flatnonzero((part != "val") & (part != "test"))
    shares = {name: 0.0 if len(given[name]) else share for name, share in (("val", val_fraction), ("test", test_fraction))}
    labels = None
    if label_column is not None and label_column in clips.frame:
        codes = pd.factorize(clips.frame[label_column].astype(str))[0][rest]
        # Quantities and transcripts have nearly as many values as rows; there is nothing to keep in proportion.
        labels = codes if len(np.unique(codes)) <= max(2, len(rest) // 4) else None
    drawn = stratified_split(labels, len(rest), **shares, seed=seed)
    filled = [name for name, share in shares.items() if share > 0]
    kind = "stratified at random" if labels is not None else "at random"
    words = (
        f"{kind}, seed {seed}"
        if rule == "at random"
        else rule + (f"; {' and '.join(filled)} {kind}, seed {seed}" if filled else "")
    )
    return {name: given[name] if name in given and len(given[name]) else rest[rows] for name, rows in drawn.items()}, words


def speaker_leaks(parts: dict[str, Clips], column: str | None) -> dict[str, str]:
    """A sentence per part whose speakers are also heard in train; empty if no column names speakers."""
    frame = parts["train"].frame
    name = column or next((c for c in SPEAKERS if c in frame), None)
    if name is None or name not in frame:
        return {}
    # Clips that name nobody say nothing about who is heard.
    trained = set(names_in(parts["train"], name)) - {""}
    found = {}
    for part in ("val", "test"):
        speakers = pd.Series(names_in(parts[part], name) if name in parts[part].frame else [], dtype=object)
        shared = sorted(set(speakers) & trained)
        if shared:
            rows = int(np.sum(speakers.isin(shared)))
            found[f"speaker leaks in {part}"] = (
                f"{rows} of {len(speakers)} {part} clips are by a {name} who is in train too "
                f"({len(shared)} of {speakers.nunique()}); data.group_column={name} keeps them apart"
            )
    return found


def recording_leaks(parts: dict[str, Clips]) -> dict[str, str]:
    """A sentence per part in which stretches of recordings stand that are trained on, in whole or in part."""
    trained: dict[Path, list[tuple[int, int]]] = {}
    for path, first, stop in stretches(parts["train"]):
        trained.setdefault(path, []).append((first, stop))
    found = {}
    for part in ("val", "test"):
        shared = [
            row
            for row, (path, first, stop) in enumerate(stretches(parts[part]))
            if any(first < end and begin < stop for begin, end in trained.get(path, ()))
        ]
        if shared:
            first = parts[part].where(shared[0])
            found[f"recordings of train in {part}"] = (
                f"{len(shared)} of {len(parts[part])} {part} clips are trained on as well; the first: {first}"
            )
    return found


def stretches(clips: Clips) -> Iterator[tuple[Path, int, int]]:
    """File, first sample and the sample behind the last of each row."""
    return zip(clips.frame["path"], clips.first.tolist(), (clips.first + clips.count).tolist(), strict=True)
