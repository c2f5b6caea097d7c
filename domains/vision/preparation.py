"""From records to splits that can be trained on: bad files found, splits made, sizes chosen, statistics measured."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from longseq.domains.loading import stratified_split
from longseq.domains.vision.augment import fit_channels, fit_size
from longseq.domains.vision.sources import Records
from longseq.domains.vision.stores import ArrayStore, Header
from longseq.domains.vision.tokenizer import default_patch
from longseq.domains.vision.video import VideoStore
from longseq.errors import ConfigError, DataError

# Up to so many images and videos are gone through before training; of more, only the headers are read.
CHECKED_FILES = 2000
# Pixels that are all darker than this were probably not scaled to the range of their file's type.
DARK = 32
# The side that mixed or large images are brought to unless data.size says otherwise.
DEFAULT_SIDES = {"pixel": 32, "patch": 224, "tubelet": 112}
LARGEST_OWN_SIDE = 384
STATISTICS_ROWS = 512


def scan(records: Records, on_bad: str) -> tuple[Records, list[str]]:
    """Reads every header, and drops what cannot be used if `on_bad` is skip.

    With skip everything is decoded once here, so that the splits are known and no row goes missing while training.

    Returns:
        The usable records with their headers, and the messages of the others.

    Raises:
        DataError: for the first unusable record if `on_bad` is error, and if none is usable.
    """
    store = records.store
    thorough = on_bad == "skip" or len(records) <= CHECKED_FILES

    def outcome(item: int) -> Header | DataError:
        try:
            return store.check(item, every_frame=on_bad == "skip") if thorough else store.header(item)
        except DataError as error:
            return error

    items = records.items.tolist()
    if isinstance(store, ArrayStore):
        found = [outcome(item) for item in items]
    else:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(outcome, items))
    errors = [result for result in found if isinstance(result, DataError)]
    if errors and (on_bad == "error" or len(errors) == len(found)):
        more = f" ({len(errors)} of {len(found)} records are unusable)" if len(errors) > 1 else ""
        raise DataError(f"{errors[0]}{more}")
    good = np.array([i for i, result in enumerate(found) if isinstance(result, Header)], dtype=np.int64)
    headers = np.array([(h.frames, h.height, h.width, h.channels) for h in found if isinstance(h, Header)], dtype=np.int64)
    kept = records.select(good)
    return Records(kept.store, kept.items, kept.labels, kept.label_names, kept.groups, kept.ignored, headers), [
        str(e) for e in errors
    ]


def shared_files(parts: dict[str, Records]) -> dict[str, str]:
    """A sentence per part whose files are trained on as well."""

    def files(records: Records) -> list[str]:
        return [records.store.name(int(item)) for item in records.items] if hasattr(records.store, "paths") else []

    trained, found = set(files(parts["train"])), {}
    for name in ("val", "test"):
        shared = [file for file in files(parts[name]) if file in trained]
        if shared:
            found[f"files of train in {name}"] = f"{len(shared)} of {len(parts[name])}, the first: {shared[0]}"
    return found


def choose_split(found: dict[str, Records], name: str, source: Any) -> Records:
    """The part of a source that serves as a split: its own of that name, or all of it.

    Raises:
        DataError: if it has other splits only.
    """
    if name in found or "all" in found:
        return found.get(name, found.get("all", next(iter(found.values()))))
    raise DataError(f"{source}: holds the splits {', '.join(found)}, but no {name}")


def fill_splits(parts: dict[str, Records], fractions: dict[str, float], seed: int) -> tuple[dict[str, Records], str]:
    """Takes val and test from train where they were not given; groups and classes decide how.

    Returns:
        The three parts, and in words how they were made; empty if nothing was.

    Raises:
        DataError: if a part would be empty.
    """
    missing = [name for name in ("val", "test") if name not in parts]
    if not missing:
        return parts, ""
    train = parts["train"]
    shares = {name: fractions[name] if name in missing else 0.0 for name in ("val", "test")}
    if train.groups is not None:
        rows, how = group_split(train.groups, shares, seed), "by groups"
    else:
        single = train.labels is not None and train.labels.ndim == 1
        strata = np.unique(np.asarray(train.labels).astype(str), return_inverse=True)[1] if single else None
        # Labels that are quantities make no strata.
        strata = None if strata is None or strata.max() >= len(train) // 2 else strata
        rows = stratified_split(strata, len(train), **shares, seed=seed)
        how = "at random, classes in proportion" if strata is not None else "at random"
    filled = {"train": train.select(rows["train"]), **{name: parts[name] for name in parts if name != "train"}}
    for name in missing:
        if not len(rows[name]) or not len(rows["train"]):
            raise DataError(f"{len(train)} records leave none for {name}; give data.{name}, or a larger data.{name}_fraction")
        filled[name] = train.select(rows[name])
    return {name: filled[name] for name in ("train", "val", "test")}, f"{' and '.join(missing)} taken from train {how}"


def group_split(groups: np.ndarray, shares: dict[str, float], seed: int) -> dict[str, np.ndarray]:
    """Rows of train, val and test so that no group is in two of them, near the shares of the rows."""
    names, which, sizes = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    part_of = np.full(len(names), 0)
    for part, share in ((1, shares["val"]), (2, shares["test"])):
        before = np.concatenate([[0.0], np.cumsum(sizes[order])[:-1]]) / len(groups)
        # At least one group where a share is asked for, however large the groups are, and one is left for train.
        taken = min(int(np.sum(before < share)), max(0, len(order) - 1))
        part_of[order[:taken]], order = part, order[taken:]
    return {name: np.flatnonzero(part_of[which] == k) for k, name in enumerate(("train", "val", "test"))}


def choose_size(train: Records, size: Any, kind: str, patch: int | None) -> tuple[int, int]:
    """Height and width that all frames are brought to.

    Args:
        train: with headers.
        size: what the user said: a side, (H, W), or None for that of the data.
        kind: the tokenizer.
        patch: what the user said, or None.
    """
    if size is not None:
        sides = [size, size] if isinstance(size, int) else list(size)
        if len(sides) != 2 or min(sides) < 1:
            raise ConfigError(f"data.size must be a side in pixels or [height, width], found {size!r}")
        return int(sides[0]), int(sides[1])
    own = np.unique(train.sizes[:, 1:3], axis=0)
    side = DEFAULT_SIDES[kind]
    height, width = own[0].tolist() if len(own) == 1 and own.max() <= LARGEST_OWN_SIDE else (side, side)
    if kind == "pixel":
        return height, width
    if patch is not None:
        return nearest_multiple(height, patch), nearest_multiple(width, patch)
    if default_patch((height, width)) == 1 and min(height, width) > 8:
        unit = 16 if min(height, width) >= 112 else 4
        return nearest_multiple(height, unit), nearest_multiple(width, unit)
    return height, width


def nearest_multiple(side: int, unit: int) -> int:
    """The multiple of `unit` nearest to `side`, at least one."""
    return max(1, round(side / unit)) * unit


def pixel_statistics(
    records: Records, channels: int, size: Sequence[int], resize: str, seed: int
) -> tuple[list[float], list[float], int]:
    """Mean and deviation of each channel between 0 and 1, over a sample of the records' first, middle and last frames.

    The third is the brightest value of the sample, in bytes.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(records))[:STATISTICS_ROWS]
    total, squares, count, brightest = np.zeros(channels), np.zeros(channels), 0, 0
    for row in rows.tolist():
        n_frames = int(records.sizes[row, 0])
        frames = (
            sorted({0, n_frames // 2, n_frames - 1})
            if n_frames > 1 and isinstance(records.store, (VideoStore, ArrayStore))
            else [0]
        )
        pixels = fit_size(fit_channels(records.store.read(int(records.items[row]), frames), channels), size, resize)
        brightest = max(brightest, int(pixels.max()))
        values = pixels.reshape(-1, channels).astype(np.float64) / 255
        total, squares, count = total + values.sum(0), squares + np.square(values).sum(0), count + len(values)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    # Rounded, so that config.json stays legible; a constant channel is not divided by zero.
    return [round(float(m), 6) for m in mean], [round(float(s), 6) if s > 1e-4 else 1.0 for s in std], brightest
