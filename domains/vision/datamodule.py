"""Reads a user's images or videos, or the embedded demo data, and gives batches of pixels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from longseq.backbone import Backbone
from longseq.domains.base import DomainData, Row
from longseq.domains.loading import pad_rows
from longseq.domains.tasks import Batch, Task
from longseq.domains.vision import baselines, demo, preparation
from longseq.domains.vision.augment import RESIZES, Augmentation
from longseq.domains.vision.labels import (
    class_names,
    encode_classes,
    encode_multilabel,
    encode_numbers,
    multilabel_names,
    unknown_label,
)
from longseq.domains.vision.prediction_sources import read_unlabelled
from longseq.domains.vision.rows import MaskedRows, PixelModelRows, PixelRows
from longseq.domains.vision.self_supervised import HiddenCells
from longseq.domains.vision.sources import ReadOptions, Records, Source, read_source
from longseq.domains.vision.tasks import MaskedPatch
from longseq.domains.vision.tokenizer import CellTokenizer, PixelValues, StemTokenizer, default_patch
from longseq.domains.vision.video import Clips, make_clips
from longseq.embeddings_vision import class_place
from longseq.errors import ConfigError, DataError
from longseq.layers.scan_orders import Reordered

LABELLED = ("classification", "multilabel", "regression")
TASKS = (*LABELLED, "lm", "masked_patch")


class VisionData(DomainData):
    """Images from folders, tables, arrays, MNIST's and CIFAR's files; videos from files, frame folders, GIFs and arrays.

    Args:
        task: `classification`, `multilabel`, `regression`, `lm` (the next pixel) or `masked_patch`.
        train: a folder with one folder per class (or with train, val, test above them), a csv, tsv or parquet table of paths
            and labels, a txt of `path label` lines, npz, npy, idx, CIFAR's binary files, or `{images: x.npy, labels: y.npy}`;
            None for the embedded demo data.
        val: likewise; None takes the source's own part, or else records of `train`.
        test: likewise.
        predict: likewise, without labels.
        batch_size: rows per process and step.
        max_tokens: if set, batches hold at most so many positions.
        num_workers: loader processes; decoding images wants some.
        seed: of splits, shuffling and augmentation.
        path_column: of tables.
        label_column: of tables; a list for several labels per row.
        header: whether tables name their columns.
        root: folder that relative paths in tables start from; None for the table's.
        image_key: array of npz files with the images; None finds it by its name.
        label_key: likewise.
        split_column: column of tables with train, val, test; a column named split is used by itself.
        group_column: records of one group (a patient, a camera) stay in one split.
        val_fraction: share of the records where no file or part says.
        test_fraction: likewise.
        on_bad: `error` stops at a file that cannot be read or a label that train lacks, `skip` leaves it out and counts it,
            for which every file is decoded once before training.
        tokenizer: `pixel`, `patch`, or `tubelet` for videos.
        size: side, or [height, width], in pixels; None for the data's own if they are all equal.
        test_size: another size for test and predict; positions are interpolated.
        resize: how images of other sizes are brought to it: `crop`, `squash` or `pad`.
        channels: 1 or 3; None for what train has.
        patch: side of a patch in pixels; None chooses.
        stem: timm's name of a convolutional network whose feature map stands in for patches, such as `resnet18`.
        tube: frames of a tubelet.
        frames: of a clip.
        frame_stride: frames of the video from one frame of a clip to the next.
        window_stride: frames from one clip to the next in long videos; None for one clip per video, drawn anew in every
            epoch in train and from the middle otherwise.
        permutation_seed: one fixed permutation of all pixels (psMNIST, with `tokenizer=pixel`); None for none.
        class_token: `front`, `middle` or `end`, which is then what the head reads; None pools all positions.
        positions: `learned`, `sincos` or `none`; None for none with pixels and learned otherwise.
        mean: of each channel between 0 and 1; None measures it on train.
        std: likewise.
        levels: values per channel of a pixel model.
        mask_fraction: share of the cells that masked_patch hides.
        hflip: probability of mirroring left and right.
        shift: pixels of a padded random crop.
        scale: smallest and largest share of the area of a random resized crop; None for none.
        color_jitter: strength of random brightness, contrast and saturation.
        auto_augment: timm's policy, such as `rand-m9-mstd0.5-inc1`.
        erase: probability of blacking out a rectangle.
    """

    domain, token_unit = "vision", "dim"

    def __init__(
        self,
        *,
        task: str,
        train: Source | None = None,
        val: Source | None = None,
        test: Source | None = None,
        predict: Source | None = None,
        batch_size: int = 32,
        max_tokens: int | None = None,
        num_workers: int = 0,
        seed: int = 1,
        path_column: str = "path",
        label_column: str | Sequence[str] | None = "label",
        header: bool = True,
        root: str | None = None,
        image_key: str | None = None,
        label_key: str | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        on_bad: str = "error",
        tokenizer: str = "patch",
        size: int | Sequence[int] | None = None,
        test_size: int | Sequence[int] | None = None,
        resize: str = "crop",
        channels: int | None = None,
        patch: int | None = None,
        stem: str | None = None,
        tube: int = 2,
        frames: int = 8,
        frame_stride: int = 1,
        window_stride: int | None = None,
        permutation_seed: int | None = None,
        class_token: str | None = None,
        positions: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        levels: int = 256,
        mask_fraction: float = 0.5,
        hflip: float = 0.0,
        shift: int = 0,
        scale: Sequence[float] | None = None,
        color_jitter: float = 0.0,
        auto_augment: str | None = None,
        erase: float = 0.0,
    ) -> None:
        super().__init__(task=task, batch_size=batch_size, max_tokens=max_tokens, num_workers=num_workers, seed=seed)
        self.video = tokenizer == "tubelet"
        check_options(
            task, tokenizer, on_bad, resize, channels, class_token, permutation_seed, frames, frame_stride, window_stride
        )
        if not 0.0 < mask_fraction < 1.0:
            raise ConfigError(f"data.mask_fraction must lie between 0 and 1, found {mask_fraction}")
        if std is not None and any(deviation <= 0 for deviation in std):
            raise ConfigError(f"data.std must hold numbers above 0, found {list(std)}")
        self.sources: dict[str, Any] = {"train": train, "val": val, "test": test, "predict": predict}
        self.read_options = ReadOptions(
            video=self.video,
            path_column=path_column,
            label_column=label_column if task in LABELLED else None,
            header=header,
            root=root,
            image_key=image_key,
            label_key=label_key,
            split_column=split_column,
            group_column=group_column,
        )
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.on_bad, self.resize = on_bad, resize
        self.kind, self.size, self.test_size, self.patch, self.tube = tokenizer, size, test_size, patch, tube
        self.stem = stem
        if stem is not None and (tokenizer != "patch" or task not in LABELLED):
            raise ConfigError(
                f"data.stem={stem} gives features of images: it needs data.tokenizer=patch and a task with labels, found "
                f"data.tokenizer={tokenizer} and task={task}"
            )
        self.frames, self.frame_stride, self.window_stride = frames if self.video else 1, frame_stride, window_stride
        self.permutation_seed, self.class_token, self.positions = permutation_seed, class_token, positions
        self._channels, self._mean, self._std = channels, mean, std
        self.values, self.mask_fraction = PixelValues(levels), mask_fraction
        self.augment_options: dict[str, Any] = {
            "hflip": hflip,
            "shift": shift,
            "scale": scale,
            "color_jitter": color_jitter,
            "auto_augment": auto_augment,
            "erase": erase,
        }
        self.labels: tuple[str, ...] = ()
        self.tokenizer: CellTokenizer
        self.channels: int
        self.mean: list[float]
        self.std: list[float]

    # -- reading

    def setup(self, stage: str | None = None) -> None:
        """Reads the files once; later calls do nothing."""
        if self.splits:
            return
        records = self._read_splits()
        records, labels = self._encode_labels(records)
        train = records["train"]
        self.tokenizer = self._make_tokenizer(train)
        self.channels = self._channels or int(train.sizes[:, 3].max())
        self._count_changes(records)
        size = self.tokenizer.size
        *measured, brightest = preparation.pixel_statistics(train, self.channels, size, self.resize, self.seed)
        if brightest < preparation.DARK:
            self.counts["dark"] = (
                f"the brightest pixel seen in train is {brightest} of 255; of files with 16 bits the upper half is read, so "
                "fewer bits (a camera's 12) want scaling to the whole range first"
            )
        self.mean, self.std = (
            list(own) if own is not None else m for own, m in zip((self._mean, self._std), measured, strict=True)
        )
        for name, part in records.items():
            self.splits[name] = self._make_rows(name, part, labels[name])

    def _read_splits(self) -> dict[str, Records]:
        source = self.sources["train"]
        if source is None:
            self.counts["demo"] = demo.NOTE + (", each moving over 16 x 16 pixels" if self.video else "")
            parts = demo.demo_records(self.seed, self.frames * self.frame_stride if self.video else None)
        else:
            found = read_source(source, self.read_options)
            parts = {"train": preparation.choose_split(found, "train", source)}
            parts |= {name: found[name] for name in ("val", "test") if name in found}
        for name in ("val", "test", "predict"):
            own = self.sources[name]
            if own is not None:
                parts[name] = preparation.choose_split(read_source(own, self.read_options), name, own)
        predict = parts.pop("predict", None)
        parts = {name: self._scan(name, part) for name, part in parts.items()}
        parts, how = preparation.fill_splits(parts, self.fractions, self.seed)
        self.counts |= preparation.shared_files(parts)
        if how:
            self.counts["split"] = how
        return parts if predict is None else {**parts, "predict": self._scan("predict", predict)}

    def _scan(self, name: str, records: Records) -> Records:
        if not len(records):
            raise DataError(f"data.{name}: there are no records")
        kept, messages = preparation.scan(records, self.on_bad)
        if messages:
            self.counts[f"skipped in {name}, unreadable"] = f"{len(messages)}, the first: {messages[0]}"
        if records.ignored:
            self.counts[f"ignored files in {name}"] = ", ".join(
                f"{count} {suffix}" for suffix, count in records.ignored.items()
            )
        return kept

    def _encode_labels(self, records: dict[str, Records]) -> tuple[dict[str, Records], dict[str, np.ndarray | None]]:
        if self.task_name not in LABELLED:
            return records, dict.fromkeys(records)
        train = records["train"]
        encode: Any = {"classification": encode_classes, "multilabel": encode_multilabel, "regression": encode_numbers}[
            self.task_name
        ]
        names: Any = {"classification": class_names, "multilabel": multilabel_names}.get(self.task_name)
        self.labels = train.label_names if names is None else names(train)
        labels: dict[str, np.ndarray | None] = {}
        for name, part in records.items():
            if name == "predict":
                labels[name] = None
                continue
            codes, bad = encode(part, self.labels)
            if len(bad):
                if self.on_bad == "error" or len(bad) == len(part):
                    raise unknown_label(part, int(bad[0]), self.labels, len(bad), self.task_name != "regression")
                self.counts[f"skipped in {name}, unknown label"] = f"{len(bad)}, the first: {part.where(int(bad[0]))}"
                good = np.setdiff1d(np.arange(len(part)), bad)
                records, codes = {**records, name: part.select(good)}, codes[good]
            labels[name] = codes
        return records, labels

    def _make_tokenizer(self, train: Records) -> CellTokenizer:
        size = preparation.choose_size(train, self.size, self.kind, self.patch)
        if self.stem is not None:
            return StemTokenizer(self.kind, size, stem=self.stem)
        patch = 1 if self.kind == "pixel" else self.patch or default_patch(size)
        return CellTokenizer(self.kind, size, self.frames, patch, self.tube if self.video else 1)

    def _tokenizer_of(self, split: str) -> CellTokenizer:
        if self.test_size is None or split not in ("test", "predict"):
            return self.tokenizer
        sides = [self.test_size] * 2 if isinstance(self.test_size, int) else list(self.test_size)
        return self.tokenizer.at((int(sides[0]), int(sides[1])))

    def _count_changes(self, records: dict[str, Records]) -> None:
        for name, part in records.items():
            frames, height, width, channels = part.sizes.T
            size = self._tokenizer_of(name).size
            resized = int(((height != size[0]) | (width != size[1])).sum())
            if resized:
                self.counts[f"resized in {name}"] = f"{resized} of {len(part)} to {size[0]} x {size[1]} ({self.resize})"
            converted = int((channels != self.channels).sum())
            if converted:
                self.counts[f"converted in {name}"] = f"{converted} of {len(part)} to {'RGB' if self.channels == 3 else 'grey'}"
            paged = 0 if self.video else int((frames > 1).sum())
            if paged:
                self.counts[f"first page alone in {name}"] = (
                    f"{paged} of {len(part)} files hold several images (pages of a TIFF, frames of an animation)"
                )
            short = int((frames < (self.frames - 1) * self.frame_stride + 1).sum()) if self.video else 0
            if short:
                self.counts[f"shorter than a clip in {name}"] = f"{short} of {len(part)}; their last frame is repeated"

    def _make_rows(self, name: str, records: Records, labels: np.ndarray | None) -> PixelRows:
        train = name == "train"
        if self.video:
            clips = make_clips(records.sizes[:, 0], self.frames, self.frame_stride, self.window_stride)
        else:
            index = np.arange(len(records))
            clips = Clips(index, np.zeros_like(index), np.ones_like(index), 1, 1)
        tokenizer = self._tokenizer_of(name)
        augmentation = Augmentation(tokenizer.size, **self.augment_options)
        options: dict[str, Any] = {
            "tokenizer": tokenizer,
            "channels": self.channels,
            "resize": self.resize,
            "seed": self.seed,
            "augmentation": augmentation if train and augmentation.active else None,
            "draw_starts": train and self.video and self.window_stride is None,
        }
        own_labels = None if labels is None else labels[clips.items]
        if self.task_name == "lm":
            return PixelModelRows(records, clips, own_labels, values=self.values, **options)
        if self.task_name == "masked_patch":
            return MaskedRows(records, clips, own_labels, mask_fraction=self.mask_fraction, fixed_masks=not train, **options)
        length = tokenizer.length + (1 if self.class_token else 0)
        return PixelRows(records, clips, own_labels, length=length, **options)

    # -- predicting

    @classmethod
    def options_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        described, embedding = config.get("tokenizer", {}), config.get("embedding", {})
        found = {name: described[name] for name in ("size", "channels", "resize", "levels") if name in described}
        # A published checkpoint describes its embedding alone.
        published = {"size": embedding.get("size"), "channels": embedding.get("n_channels")}
        found = {name: value for name, value in published.items() if value is not None} | found
        if embedding.get("name") == "stem":
            return {**found, "tokenizer": "patch", "stem": embedding["model"]}
        found["tokenizer"] = embedding["name"] if embedding.get("name") in ("patch", "tubelet") else "pixel"
        if found["tokenizer"] == "tubelet":
            frames = {"frames": embedding["frames"]} if "frames" in embedding else {}
            found |= frames | {name: described[name] for name in ("frames", "frame_stride") if name in described}
        names = ("patch", "tube", "class_token", "mean", "std")
        return found | {name: embedding[name] for name in names if name in embedding}

    def setup_predict(self, config: Mapping[str, Any]) -> None:
        """Reads `data.predict` alone, without labels; images are brought to the model's size and channels."""
        source = self.sources["predict"]
        if source is None:
            raise ConfigError("data.predict must name the images or videos to predict: a file, a folder, a table or an array")
        records = self._scan("predict", read_unlabelled(source, self.read_options))
        self.labels = tuple(config.get("labels", ()))
        self.tokenizer = self._make_tokenizer(records)
        self.channels = self._channels or int(records.sizes[:, 3].max())
        # The model's own standardisation is part of its embedding.
        self.mean, self.std = list(self._mean or [0.0] * self.channels), list(self._std or [1.0] * self.channels)
        self._count_changes({"predict": records})
        self.splits["predict"] = self._make_rows("predict", records, None)

    # -- what the model and the report need

    @property
    def grid(self) -> tuple[int, ...]:
        """Cells along (H, W), or (T, H, W) of videos, for backbones that read them in several orders."""
        return self.tokenizer.grid

    @property
    def grid_token(self) -> int | None:
        """Place of the class token in the sequence."""
        return None if self.class_token is None else class_place(self.class_token, self.tokenizer.length + 1)

    @property
    def max_length(self) -> int:
        """The most positions of a row in any split."""
        return max(int(rows.lengths.max()) for rows in self.splits.values())

    def rows(self, split: str) -> PixelRows:
        """A split's rows."""
        found = self.splits[split]
        assert isinstance(found, PixelRows)
        return found

    def task_options(self) -> dict[str, Any]:
        if self.task_name == "lm":
            return {"vocab_size": self.values.vocab_size, "unit": "dim"}
        if self.task_name == "masked_patch":
            return self.cell_options()
        options: dict[str, Any] = {"labels": list(self.labels)}
        labels = self.rows("train").labels
        assert labels is not None
        if self.task_name == "classification":
            # The shared task with top-5 accuracy beside it.
            options["_target_"] = "longseq.domains.vision.tasks.ImageClassification"
            options["class_counts"] = np.bincount(labels, minlength=len(self.labels)).tolist()
        if self.task_name == "regression":
            options |= {"mean": labels.mean(0).tolist(), "std": labels.std(0).tolist()}
        return options

    def cell_options(self) -> dict[str, Any]:
        """What the data say of the task masked_patch."""
        mean, std = overall(self.mean, self.std)
        return {"n_values": self.channels * self.tokenizer.tube * self.tokenizer.patch**2, "mean": mean, "std": std}

    def self_supervised(self, causal: bool) -> DomainData:
        """The images of train and val with hidden cells, or for causal backbones with the next cell as target."""
        return HiddenCells(self, causal)

    def model_options(self, backbone: Backbone) -> dict[str, Any]:
        described: dict[str, Any] = {
            "name": self.kind,
            "size": list(self.tokenizer.size),
            "channels": self.channels,
            "resize": self.resize,
            "frames": self.frames,
            "frame_stride": self.frame_stride,
        }
        n_positions = int(self.splits["train"].lengths[0])
        if self.task_name == "lm":
            described |= {"name": "pixel_values", "levels": self.values.levels}
            embedding: dict[str, Any] = {"name": "token", "vocab_size": self.values.vocab_size}
        else:
            self._check_backbone(backbone)
            embedding = self.tokenizer.embedding() | {"n_channels": self.channels, "mean": self.mean, "std": self.std}
            embedding["positions"] = self.positions or ("none" if self.kind == "pixel" else "learned")
            optional = {
                "class_token": self.class_token,
                "mask_token": self.task_name == "masked_patch",
                "permutation_seed": self.permutation_seed,
            }
            embedding |= {name: value for name, value in optional.items() if value not in (None, False)}
        return {"embedding": embedding, "tokenizer": described, "n_positions": n_positions}

    def _check_backbone(self, backbone: Backbone) -> None:
        if self.task_name == "masked_patch" and backbone.causal:
            raise ConfigError(
                "task=masked_patch fills in cells from all sides, but this backbone sees only those before: "
                "add backbone.bidirectional=true"
            )
        orders = [layer for layer in backbone.modules() if isinstance(layer, Reordered)]
        # In front of every order, a token of causal layers sees nothing whatever the orders are.
        blind = bool(orders) and self.class_token == "front" and all(layer.mixer.causal for layer in orders)
        if blind or (backbone.causal and self.class_token in ("front", "middle")):
            raise ConfigError(
                f"data.class_token={self.class_token} sees only what stands before it in a causal backbone: set "
                "data.class_token=end or null, or backbone.bidirectional=true"
            )

        if orders and self.permutation_seed is not None:
            raise ConfigError(
                "data.permutation_seed puts the pixels into an order of its own, where rows and columns mean nothing: set it "
                "or backbone.scan_orders to null"
            )
        check_grid(self, backbone)

    def head_options(self, backbone: Backbone, head: dict[str, Any]) -> dict[str, Any]:
        del backbone
        if self.class_token is None or head["name"] != "pool":
            return head
        return {"name": "class_token", "place": self.class_token, "n_outputs": head["n_outputs"], "dropout": head["dropout"]}

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        batch = {"index": torch.tensor([row["index"] for row in rows])}
        if self.task_name == "lm":
            batch["inputs"], batch["mask"] = pad_rows([row["inputs"] for row in rows], self.values.begin)
            batch["labels"], _ = pad_rows([row["targets"] for row in rows], 0)
            return batch
        for name in ("inputs", "targets", "hidden"):
            if name in rows[0]:
                batch[name] = torch.from_numpy(np.stack([row[name] for row in rows]))
        if rows[0].get("label") is not None:
            batch["labels"] = torch.from_numpy(np.stack([row["label"] for row in rows]))
        return batch

    def summary(self) -> dict[str, Any]:
        found = {}
        for name in self.splits:
            rows = self.rows(name)
            tokenizer = rows.tokenizer
            pixels = " x ".join(map(str, ([tokenizer.frames] if self.video else []) + [*tokenizer.size, self.channels]))
            facts: dict[str, Any] = {
                "rows": len(rows),
                "records": len(rows.records),
                "pixels": pixels,
                "positions": int(rows.lengths[0]),
            }
            if self.task_name == "classification" and rows.labels is not None:
                counts = np.bincount(rows.labels, minlength=len(self.labels))
                facts["labels"] = dict(zip(self.labels, counts.tolist(), strict=True))
            found[name] = facts
        return found

    def baselines(self, task: Task) -> dict[str, Row]:
        if self.task_name == "lm":
            train, test = self.splits["train"], self.splits["test"]
            assert isinstance(train, PixelModelRows) and isinstance(test, PixelModelRows)
            return baselines.pixel_model_baselines(train, test, self.seed)
        if self.task_name == "masked_patch":
            test = self.splits["test"]
            assert isinstance(test, MaskedRows) and isinstance(task, MaskedPatch)
            return baselines.masked_baselines(test, task)
        return baselines.label_baselines({name: self.rows(name) for name in ("train", "val", "test")}, task, self.seed)

    def row_names(self, split: str, index: np.ndarray) -> dict[str, Sequence[Any]]:
        rows = self.rows(split)
        items = rows.records.items[rows.clips.items[index]]
        names: dict[str, Sequence[Any]] = {"id": [rows.records.store.name(int(item)) for item in items]}
        if self.video:
            names["first_frame"] = rows.clips.starts[index].tolist()
        return names


def check_grid(data: VisionData, network: nn.Module) -> None:
    """Raises ConfigError if some split has another grid of cells than the orders in which the network's layers read it."""
    known = next((layer.grid for layer in network.modules() if isinstance(layer, Reordered)), None)
    for name in data.splits:
        found = data.rows(name).tokenizer.grid
        if known is not None and found != known:
            cells, own = (" x ".join(map(str, grid)) for grid in (found, known))
            raise ConfigError(
                f"the images of {name} have {cells} cells, but backbone.scan_orders are orders of {own}: leave data.test_size "
                "out, or train without scan_orders"
            )


def check_options(
    task: str,
    tokenizer: str,
    on_bad: str,
    resize: str,
    channels: int | None,
    class_token: str | None,
    permutation_seed: int | None,
    frames: int,
    frame_stride: int,
    window_stride: int | None,
) -> None:
    """Raises ConfigError for an option out of range, or two that exclude each other."""
    choices: Mapping[str, tuple[Any, Sequence[Any]]] = {
        "data.tokenizer": (tokenizer, ("pixel", "patch", "tubelet")),
        "data.on_bad": (on_bad, ("error", "skip")),
        "data.resize": (resize, RESIZES),
        "data.channels": (channels, (None, 1, 3)),
        "data.class_token": (class_token, (None, "front", "middle", "end")),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise ConfigError(
                f"{name} must be one of {', '.join('null' if k is None else str(k) for k in known)}; found {value!r}"
            )
    if task not in TASKS:
        raise ConfigError(f"domain=vision has no task={task}; it has {', '.join(TASKS)}")
    if task == "lm" and tokenizer != "pixel":
        raise ConfigError(f"task=lm predicts the next pixel and needs data.tokenizer=pixel, found data.tokenizer={tokenizer}")
    if task not in LABELLED and class_token is not None:
        raise ConfigError(
            f"task={task} answers at every position and has no place for data.class_token={class_token}: set it to null"
        )
    if permutation_seed is not None and (tokenizer != "pixel" or task not in LABELLED):
        raise ConfigError("data.permutation_seed shuffles pixels: it needs data.tokenizer=pixel and a task with labels")
    for name, number in (("frames", frames), ("frame_stride", frame_stride), ("window_stride", window_stride or 1)):
        if number < 1:
            raise ConfigError(f"data.{name} must be 1 or more, found {number}")


def overall(mean: Sequence[float], std: Sequence[float]) -> tuple[float, float]:
    """Mean and deviation over all channels, from those of each."""
    means, deviations = np.asarray(mean), np.asarray(std)
    whole = float(means.mean())
    return whole, float(np.sqrt((deviations**2 + (means - whole) ** 2).mean()))
