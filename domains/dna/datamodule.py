"""Reads a user's DNA files, or the embedded demo data, and gives batches of token ids."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from longseq.backbone import Backbone
from longseq.domains.base import DomainData, DomainModule, Row
from longseq.domains.dna import baselines, demo, demo_tasks, positions
from longseq.domains.dna.bad_rows import BadRows
from longseq.domains.dna.genome import IntervalSequences
from longseq.domains.dna.labels import (
    class_names,
    drop_unknown_classes,
    drop_unusable,
    encode_classes,
    encode_multilabel,
    multilabel_names,
    numeric_labels,
)
from longseq.domains.dna.metrics import language_scores
from longseq.domains.dna.position_baselines import label_baselines, profile_baselines
from longseq.domains.dna.position_predictions import PositionPredictions
from longseq.domains.dna.position_splits import demo_splits, read_splits
from longseq.domains.dna.positions import POSITION_TASKS, PositionOptions
from longseq.domains.dna.prediction_rows import GenomeSequences, UnlabelledRows, read_unlabelled
from longseq.domains.dna.record_windows import RecordWindows
from longseq.domains.dna.rows import RowIds, SequenceRows, WindowRows
from longseq.domains.dna.sequences import SequenceTable
from longseq.domains.dna.sources import Source, read_sequences
from longseq.domains.dna.splits import drop_leaks, find_leaks, make_split, region_rule, split_regions
from longseq.domains.dna.statistics import describe
from longseq.domains.dna.targets import TargetRows
from longseq.domains.dna.tasks import WindowVote
from longseq.domains.dna.token_cache import build_token_cache
from longseq.domains.dna.tokenizer import COMPLEMENT_IDS, NucleotideTokenizer
from longseq.domains.dna.windows import GenomeWindows
from longseq.domains.likelihood import LikelihoodOptions, LikelihoodPredictions
from longseq.domains.loading import pad_rows
from longseq.domains.prediction import Predictions
from longseq.domains.tasks import IGNORE, Batch, Task
from longseq.errors import ConfigError, DataError

LANGUAGE_TASKS = ("lm", "mlm")
TABLE_TASKS = ("classification", "multilabel", "regression")
LANGUAGE_WINDOW, PROFILE_WINDOW = 1024, 2048


class DNAData(DomainData):
    """DNA from csv, tsv, parquet, FASTA, FASTQ, GenBank or BED with a genome; windows of genomes for language models.

    Args:
        task: `classification`, `multilabel`, `regression`, `profile`, `base_labels`, `lm` or `mlm`.
        train: the training file(s), or all data, which is then split; None for the embedded synthetic demo data.
        val: a file; None takes rows of `train`.
        test: a file; None takes rows of `train`.
        predict: a file to predict.
        batch_size: rows per process and step.
        max_tokens: if set, batches hold at most so many positions, padding included.
        num_workers: loader processes.
        seed: of splits, shuffling and augmentation.
        sequence_column: name or number (from 1) of the column with the letters.
        label_column: name or number; a list, a pattern (`tf_*`) or a range of numbers (`3-921`) for several targets; None
            for none.
        id_column: name or number of the rows' names.
        header: whether csv and tsv files name their columns.
        label_pattern: regular expression on FASTA headers whose group is the label.
        label_table: csv, tsv or parquet with record ids and labels.
        genome: FASTA of BED files and coordinate tables.
        length: bases that intervals are resized to, around their centre.
        invalid: `error` refuses characters that are no nucleotide codes, `N` reads them as N.
        split_column: column with train, val, test; a column named split is used by itself.
        val_chroms: chromosomes for val.
        test_chroms: chromosomes for test.
        group_column: rows of one group stay in one split.
        val_fraction: share of the rows where no rule or file says.
        test_fraction: likewise.
        drop_leaks: remove from train what also stands in val or test, on either strand.
        max_length: the longest sequence the model takes; None for the longest there is.
        on_long: `crop` keeps the middle of longer sequences and counts them, `error` refuses them; where predicting, `window`
            cuts them into windows of max_length, each a row.
        rc_augment: reverse-complement half of the training rows, chosen anew in every epoch.
        window: bases of a window. Language models (None: 1024) and profiles (None: 2048) of genomes read windows; with other
            tasks each record is cut into windows, all in one split, whose classes vote for the record.
        stride: bases from one window to the next in train; None for `window`. Val and test never overlap. Where predicting:
            between windows of long sequences; None for half a window.
        mask_fraction: share of the bases that a masked language model has to fill in.
        cache_dir: for the token caches of genomes; None for LONGSEQ_CACHE or ~/.cache/longseq.
        demo_rows: training rows of the demo data.
        tracks: bedGraph or bigWig file(s), by name or as a list: what `profile` predicts over bins and `regression` as the
            mean over each interval.
        bin_size: bases of a bin.
        other_strand: for each track, the number (from 0) of the one that takes its place on the other strand; None: itself.
        annotation: BED, bedGraph, GFF3 or GTF file with the labels of bases.
        features: its labels or feature types to use; None for all; `splice_sites` makes donors and acceptors from exons.
        on_bad: `error` refuses rows that cannot be used, `skip` leaves them out and counts them.
    """

    domain, token_unit = "dna", "base"

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
        sequence_column: str | int = "sequence",
        label_column: str | int | Sequence[str | int] | None = "label",
        id_column: str | int | None = None,
        header: bool = True,
        label_pattern: str | None = None,
        label_table: str | None = None,
        genome: str | None = None,
        length: int | None = None,
        invalid: str = "error",
        split_column: str | None = None,
        val_chroms: Sequence[str] = (),
        test_chroms: Sequence[str] = (),
        group_column: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        drop_leaks: bool = False,
        max_length: int | None = None,
        on_long: str = "crop",
        rc_augment: bool = False,
        window: int | None = None,
        stride: int | None = None,
        mask_fraction: float = 0.15,
        cache_dir: str | None = None,
        demo_rows: int = 1000,
        tracks: str | Sequence[str] | Mapping[str, str] | None = None,
        bin_size: int = 128,
        other_strand: Sequence[int] | None = None,
        annotation: str | None = None,
        features: str | Sequence[str] | None = None,
        on_bad: str = "error",
    ) -> None:
        super().__init__(task=task, batch_size=batch_size, max_tokens=max_tokens, num_workers=num_workers, seed=seed)
        if on_long not in ("crop", "error", "window"):
            raise ConfigError(f"data.on_long must be crop, error or, where predicting, window; found {on_long!r}")
        check_options(task, invalid, annotation, features, tracks, other_strand)
        check_numbers(
            window=window, stride=stride, length=length, max_length=max_length, bin_size=bin_size, mask_fraction=mask_fraction
        )
        self.sources = {"train": train, "val": val, "test": test, "predict": predict}
        self.read_options = {
            "sequence_column": sequence_column,
            "label_column": label_column,
            "id_column": id_column,
            "header": header,
            "label_pattern": label_pattern,
            "label_table": label_table,
            "genome": genome,
            "length": length,
            "invalid": invalid,
            "cache_dir": cache_dir,
        }
        self.split_options: dict[str, Any] = {
            "split_column": split_column,
            "val_chroms": tuple(val_chroms),
            "test_chroms": tuple(test_chroms),
            "group_column": group_column,
        }
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.remove_leaks, self.on_long, self.rc_augment = drop_leaks, on_long, rc_augment
        # Sequences longer than a window are read as several, also where they are predicted.
        if window is not None and task in (*TABLE_TASKS, "base_labels"):
            self.on_long, max_length = "window", window
        self.record_window = window
        self.window = window or LANGUAGE_WINDOW
        self.stride, self.mask_fraction = stride, mask_fraction
        self.position_options = PositionOptions(tracks, bin_size, other_strand, annotation, features, label_column)
        BadRows(on_bad)
        self.on_bad = on_bad
        self.invalid, self.cache_dir, self.demo_rows = invalid, cache_dir, demo_rows
        self._max_length = max_length
        self.tokenizer = NucleotideTokenizer()
        self.tables: dict[str, SequenceTable] = {}
        self.labels: tuple[str, ...] = ()
        self.background = "none"

    # -- reading

    def setup(self, stage: str | None = None) -> None:
        """Reads the files once; later calls do nothing."""
        if self.splits:
            return
        if self.task_name in LANGUAGE_TASKS:
            self._setup_windows()
        elif self.task_name in POSITION_TASKS:
            self._setup_positions()
        else:
            self._setup_tables()

    def _setup_tables(self) -> None:
        if self.on_long == "window" and self.record_window is None:
            raise ConfigError("data.on_long=window is for longseq predict; training rows are cropped or refused")
        if self.stride is not None and self.record_window is None:
            raise ConfigError(f"data.stride={self.stride} is from one window to the next: give data.window as well")
        self.tables = self._read_tables()
        self._check_leaks()
        if self._max_length is None:
            self._max_length = max(int(table.sequences.lengths.max()) for table in self.tables.values())
        encoded = self._encode_labels()
        for name, table in self.tables.items():
            store, labels = table.sequences, encoded[name]
            if self.record_window is None:
                self._count_long(name, table)
            else:
                store = RecordWindows(store, self.record_window, self.stride if name == "train" else None)
                labels = labels[store.records]
            self.splits[name] = SequenceRows(
                store,
                labels,
                max_length=self._max_length,
                seed=self.seed,
                augment=self.rc_augment and name == "train",
            )

    def _read_tables(self) -> dict[str, SequenceTable]:
        if self.sources["train"] is None and self.task_name != "classification":
            self.counts["synthetic"] = demo_tasks.ABOUT[self.task_name]
            table = demo_tasks.make_labelled(self.task_name, self.demo_rows, max(50, self.demo_rows // 5), self.seed)
            return {name: table.select(np.flatnonzero(table.frame["split"] == name)) for name in ("train", "val", "test")}
        if self.sources["train"] is None:
            self.counts["synthetic"] = "two motifs whose orientation towards each other, not their presence, decides the class"
            n_val = max(50, self.demo_rows // 5)
            table = demo.make_pairing_task(self.demo_rows, n_val, n_val, seed=self.seed)
            return {name: table.select(np.flatnonzero(table.frame["split"] == name)) for name in ("train", "val", "test")}
        tables = {
            name: self._read(name, source) for name, source in self.sources.items() if source is not None and name != "predict"
        }
        if len(tables) == 3:
            return tables
        everything = tables["train"]
        # A share of the whole, also where one of the parts is a file of its own.
        shares: dict[str, Any] = {
            f"{name}_fraction": 0.0 if name in tables else share for name, share in self.fractions.items()
        }
        split = make_split(everything, **self.split_options, **shares, seed=self.seed)
        self.counts["split"] = split.rule
        parts = {"train": split.train, "val": split.val, "test": split.test}
        for name, rows in parts.items():
            if name == "train" or name not in tables:
                if not len(rows):
                    raise DataError(
                        f"no rows are left for {name} ({split.rule}); "
                        f"give data.{name}= a file, or a larger data.{name}_fraction"
                    )
                tables[name] = everything.select(rows)
        return {name: tables[name] for name in ("train", "val", "test")}

    def _read(self, name: str, source: Source) -> SequenceTable:
        """One of the user's files, without the rows that cannot be used."""
        bad = BadRows(self.on_bad)
        beside = self.position_options.tracks is not None or self.position_options.annotation is not None
        table = read_sequences(source, **self.read_options, labels="none" if beside else "required", bad=bad)
        if self.read_options["length"] is not None and not isinstance(table.sequences, IntervalSequences):
            raise ConfigError(
                f"data.length={self.read_options['length']} resizes intervals of a genome, and {', '.join(table.files[:3])} "
                "holds sequences: crop those with data.max_length"
            )
        if bad.skip:
            table = drop_unusable(table, self.task_name, bad)
        if bad.count:
            self.counts[f"skipped in {name}"] = bad.message()
        if not len(table):
            raise DataError(f"no row of {name} can be used; data.on_bad=error says what is wrong with the first")
        return table

    def _check_leaks(self) -> None:
        reports = [find_leaks(self.tables["train"].sequences, self.tables[name].sequences, name) for name in ("val", "test")]
        if self.remove_leaks:
            before = len(self.tables["train"])
            self.tables["train"] = drop_leaks(self.tables["train"], reports)
            self.counts["leaks removed from train"] = before - len(self.tables["train"])
        for report in reports:
            if len(report.rows) or report.n_overlapping or report.part == "test":
                self.counts[f"leaks in {report.part}"] = report.message()

    def _count_long(self, name: str, table: SequenceTable) -> None:
        lengths = table.sequences.lengths
        long = np.flatnonzero(lengths > self.max_length)
        if not len(long):
            return
        if self.on_long == "error":
            raise DataError(
                f"{table.where(int(long[0]))}: {lengths[long[0]]} bases, more than data.max_length={self.max_length} "
                f"({len(long)} such rows in {name}); raise data.max_length, or set data.on_long=crop to keep their middle"
            )
        self.counts[f"cropped to {self.max_length} in {name}"] = len(long)

    def _encode_labels(self) -> dict[str, np.ndarray]:
        train = self.tables["train"]
        if self.task_name not in TABLE_TASKS:
            raise ConfigError(
                f"domain=dna has no task={self.task_name}; it has {', '.join((*TABLE_TASKS, *POSITION_TASKS, *LANGUAGE_TASKS))}"
            )
        if self.position_options.tracks is not None:
            if self.task_name != "regression":
                raise ConfigError(f"data.tracks are for task=profile and task=regression, not for task={self.task_name}")
            tracks = positions.read_tracks(self.position_options, self.tables, self.counts)
            self.labels = tuple(track.name for track in tracks)
            return {name: positions.track_means(table, tracks) for name, table in self.tables.items()}
        if self.on_bad == "skip" and self.task_name != "regression":
            self._drop_unknown(class_names(train) if self.task_name == "classification" else multilabel_names(train))
        if self.task_name == "classification":
            self.labels = class_names(train)
            return {name: encode_classes(table, self.labels) for name, table in self.tables.items()}
        if self.task_name == "multilabel":
            self.labels = multilabel_names(train)
            return {name: encode_multilabel(table, self.labels) for name, table in self.tables.items()}
        self.labels = train.label_names
        return {name: numeric_labels(table).reshape(len(table), -1) for name, table in self.tables.items()}

    def _drop_unknown(self, names: tuple[str, ...]) -> None:
        for name, table in self.tables.items():
            bad = BadRows("skip")
            self.tables[name] = drop_unknown_classes(table, names, self.task_name, bad)
            if bad.count:
                self.counts[f"labels in {name} that train lacks"] = bad.message()

    def _setup_positions(self) -> None:
        options = self.position_options
        if self.sources["train"] is not None and self.task_name == "profile" and options.tracks is None:
            raise ConfigError("task=profile needs data.tracks: bedGraph or bigWig files")
        if self.task_name == "base_labels" and options.annotation is None and positions.is_genome(self.sources["train"]):
            raise ConfigError(
                "task=base_labels of a genome needs data.annotation: a BED, bedGraph, GFF3 or GTF file; or give a table with a "
                "letter for each base in data.label_column"
            )
        if self.sources["train"] is None:
            self.counts["synthetic"] = demo_tasks.ABOUT[self.task_name]
            found = demo_splits(self.task_name, self.demo_rows, options.bin_size, augment=self.rc_augment, seed=self.seed)
        else:
            found = read_splits(
                self.task_name,
                self._position_tables(),
                options,
                self.counts,
                window=self.record_window,
                stride=self.stride,
                max_length=self._max_length,
                augment=self.rc_augment,
                seed=self.seed,
            )
        self.tables, self.labels, self.background = dict(found.tables), found.labels, found.background
        self.splits |= found.rows
        self.position_options = replace(options, bin_size=found.bin_size)
        self._max_length = max(int(rows.lengths.max()) for rows in found.rows.values())

    def _position_tables(self) -> dict[str, SequenceTable]:
        options, train = self.position_options, self.sources["train"]
        if not positions.is_genome(train) or (options.tracks is None and options.annotation is None):
            self.tables = self._read_tables()
            self._check_leaks()
            return self.tables
        if self.sources["val"] is not None or self.sources["test"] is not None:
            raise ConfigError(
                "with a genome as data.train, val and test are parts of it: give data.val_chroms and data.test_chroms"
            )
        self.counts["split"] = region_rule(self.split_options["val_chroms"], self.split_options["test_chroms"])
        return positions.genome_windows(
            str(train),
            window=self.record_window or PROFILE_WINDOW,
            stride=self.stride,
            val_chroms=self.split_options["val_chroms"],
            test_chroms=self.split_options["test_chroms"],
            fractions=self.fractions,
            cache_dir=self.cache_dir,
        )

    def _setup_windows(self) -> None:
        if self.sources["train"] is None:
            self.counts["synthetic"] = "a genome whose bases repeat those 24 before them, beyond a Markov model's reach"
            store, names = demo.make_demo_genome(seed=self.seed)
        else:
            store = build_token_cache(fasta_files(self.sources["train"]), self.cache_dir, invalid=self.invalid)
            names = store.names
        # A part that has files of its own is read whole, and takes nothing from train.
        own = {name for name in ("val", "test") if self.sources[name] is not None}
        fractions: dict[str, Any] = {f"{name}_fraction": 0.0 if name in own else s for name, s in self.fractions.items()}
        chroms = {f"{name}_chroms": () if name in own else self.split_options[f"{name}_chroms"] for name in ("val", "test")}
        if self.sources["train"] is not None:
            self.counts["split"] = region_rule(**chroms, files=own)
        stores: dict[str, Any] = dict.fromkeys(("train", "val", "test"), store)
        regions: dict[str, Any] = dict(split_regions(store, names, **chroms, **fractions))
        for name, files in self.sources.items():
            if name in own and files is not None:
                stores[name] = build_token_cache(fasta_files(files), self.cache_dir, invalid=self.invalid)
                regions[name] = None
        for name in ("train", "val", "test"):
            # A causal model predicts from the second base on: one more base, shared with the next window.
            extra = 1 if self.task_name == "lm" else 0
            stride = self.stride if name == "train" and self.stride else self.window
            windows = GenomeWindows(
                stores[name], self.window + extra, stride=stride, regions=regions[name], min_length=min(self.window, 2 + extra)
            )
            self.splits[name] = WindowRows(
                windows,
                seed=self.seed,
                augment=self.rc_augment and name == "train",
                mask_fraction=self.mask_fraction if self.task_name == "mlm" else None,
                fixed_masks=name != "train",
            )

    def self_supervised(self, causal: bool) -> "DNAData":
        """The sequences of train and val as a language model's, masked or causal."""
        if self.task_name in LANGUAGE_TASKS:
            raise ConfigError(f"self_pretrain: task={self.task_name} needs no labels as it is; train it for more epochs")
        other = copy.copy(self)
        other.task_name = "lm" if causal else "mlm"
        # Filters of a fixed length must be the task's own.
        other.window = self.max_length
        other.splits = {}
        for name in ("train", "val"):
            rows = copy.copy(self.splits[name])
            assert isinstance(rows, (SequenceRows, TargetRows))
            # The language model's rows turn sequences round themselves.
            rows.augment = False
            other.splits[name] = WindowRows(
                RowIds(rows),
                seed=self.seed,
                augment=self.rc_augment and name == "train",
                mask_fraction=None if causal else self.mask_fraction,
                fixed_masks=name != "train",
            )
        return other

    def setup_predict(self, config: Mapping[str, Any]) -> None:
        """Reads `data.predict` alone: any format, without labels; the model's own labels and length hold."""
        source = self.sources["predict"]
        if source is None:
            raise ConfigError("data.predict must name the sequences to predict: a file, a folder, a list or a pattern")
        bad = BadRows(self.on_bad)
        table = self.tables["predict"] = read_unlabelled(source, self.read_options, bad)
        if bad.count:
            self.counts["skipped in predict"] = bad.message()
        self.labels = tuple(config.get("labels", ()))
        limits = [limit for limit in (self._max_length, config["backbone"].get("max_length")) if limit is not None]
        self._max_length = min(limits) if limits else None
        if self.task_name in (*LANGUAGE_TASKS, *POSITION_TASKS):
            self.splits["predict"] = UnlabelledRows(table, max_length=None, on_long="crop", stride=None)
            return
        if self._max_length is not None and self.on_long != "window":
            self._count_long("predict", table)
        self.splits["predict"] = UnlabelledRows(table, max_length=self._max_length, on_long=self.on_long, stride=self.stride)

    def long_predictions(self, module: DomainModule, options: Mapping[str, Any]) -> Predictions | None:
        table, chosen = self.tables["predict"], LikelihoodOptions(**options)
        if self.task_name in POSITION_TASKS:
            given = {"window": self.record_window, "max_length": self._max_length}
            window = self.long_window(self.task_name, given)
            assert window is not None
            return PositionPredictions(module, table, chosen, window=window, batch_size=self.batch_size)
        if self.task_name not in LANGUAGE_TASKS:
            return None
        return LikelihoodPredictions(
            module,
            GenomeSequences(table),
            chosen,
            batch_size=self.batch_size,
            trained_window=self.window,
        )

    @staticmethod
    def long_window(task: str, options: Mapping[str, Any], sample_rate_hz: int | None = None) -> int | None:
        del sample_rate_hz
        if task in POSITION_TASKS:
            return options.get("window") or options.get("max_length") or PROFILE_WINDOW
        return (options.get("window") or LANGUAGE_WINDOW) if task in LANGUAGE_TASKS else None

    # -- what the model and the report need

    @property
    def max_length(self) -> int:
        """Of the sequences as the model sees them, in bases."""
        if self.task_name in LANGUAGE_TASKS:
            return self.window
        assert self._max_length is not None
        return self._max_length

    def task_options(self) -> dict[str, Any]:
        if self.task_name in LANGUAGE_TASKS:
            return {"vocab_size": NucleotideTokenizer.padded_vocab_size, "unit": "base"}
        options: dict[str, Any] = {"labels": list(self.labels)}
        train = self.splits["train"]
        if isinstance(train, TargetRows):
            return options | self._position_task_options(train)
        assert isinstance(train, SequenceRows)
        if self.task_name == "classification" and self.record_window is not None:
            options["_target_"] = f"{WindowVote.__module__}.{WindowVote.__qualname__}"
        if self.task_name == "classification":
            options["class_counts"] = np.bincount(train.labels, minlength=len(self.labels)).tolist()
        if self.task_name == "regression":
            options |= {"mean": train.labels.mean(0).tolist(), "std": train.labels.std(0).tolist()}
        return options

    def _position_task_options(self, train: TargetRows) -> dict[str, Any]:
        if self.task_name == "base_labels":
            return {"background": self.background, "class_counts": positions.label_counts(train, len(self.labels))}
        options = self.position_options
        return {
            "bin_size": options.bin_size,
            "other_strand": None if options.other_strand is None else list(options.other_strand),
            **positions.track_statistics(train),
        }

    def model_options(self, backbone: Backbone) -> dict[str, Any]:
        embedding: dict[str, Any] = {"name": "token", "vocab_size": NucleotideTokenizer.padded_vocab_size}
        if backbone.reverse_complement:
            embedding |= {"name": "strand", "complement": padded_complement()}
        return {"embedding": embedding, "tokenizer": self.tokenizer.to_dict(), "input_length": self.max_length}

    def head_options(self, backbone: Backbone, head: dict[str, Any]) -> dict[str, Any]:
        if not backbone.reverse_complement:
            return head
        if self.position_options.other_strand is not None:
            raise ConfigError("data.other_strand needs a backbone without reverse_complement, which turns every track alike")
        if head["name"] == "token":
            tie = head.get("tie", False)
            return {"name": "strand_token", "n_outputs": head["n_outputs"], "complement": padded_complement(), "tie": tie}
        return {**head, "name": f"strand_{head['name']}"}

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        ids, mask = pad_rows([row["ids"] for row in rows], NucleotideTokenizer.pad_id)
        batch = {"inputs": ids.long(), "mask": mask, "index": torch.tensor([row["index"] for row in rows])}
        if "record" in rows[0]:
            batch["record"] = torch.tensor([row["record"] for row in rows])
        if "targets" in rows[0]:
            real = np.issubdtype(rows[0]["targets"].dtype, np.floating)
            batch["labels"], _ = pad_rows([row["targets"] for row in rows], math.nan if real else IGNORE)
        elif rows[0].get("label") is not None:
            batch["labels"] = torch.from_numpy(np.stack([row["label"] for row in rows]))
        return batch

    def summary(self) -> dict[str, Any]:
        found = {}
        for name, rows in self.splits.items():
            if isinstance(rows, UnlabelledRows):
                found[name] = {"rows": len(rows), "bases": int(rows.lengths.sum()), "longest": int(rows.lengths.max())}
                continue
            assert isinstance(rows, (SequenceRows, WindowRows, TargetRows))
            store: Any = rows.store
            facts = describe(store)
            if isinstance(rows.store, RecordWindows):
                facts = {"records": len(self.tables[name]), **facts}
            if isinstance(rows, SequenceRows) and self.task_name == "classification":
                counts = np.bincount(rows.labels, minlength=len(self.labels))
                facts["labels"] = dict(zip(self.labels, counts.tolist(), strict=True))
            found[name] = facts
        return found

    def baselines(self, task: Task) -> dict[str, Row]:
        if self.task_name in LANGUAGE_TASKS:
            return self._markov_baselines()
        if self.task_name in POSITION_TASKS:
            found = {name: split for name, split in self.splits.items() if isinstance(split, TargetRows)}
            if self.task_name == "profile":
                return profile_baselines(found, task, self.position_options.bin_size)
            return label_baselines(found, task, len(self.labels))
        rows: dict[str, SequenceRows] = {}
        for name, split in self.splits.items():
            assert isinstance(split, SequenceRows)
            rows[name] = split
        train, targets = rows["train"].store, rows["train"].labels
        if isinstance(train, RecordWindows):
            # Windows over each other would only count the same bases again.
            train, labels = RecordWindows(train.store, train.window), dict(zip(train.records.tolist(), targets, strict=True))
            targets = np.array([labels[record] for record in train.records.tolist()])
        fitted = baselines.fit_baselines(
            train,
            targets,
            rows["val"].store,
            rows["val"].labels,
            task=self.task_name,
            n_classes=len(self.labels),
        )
        test = rows["test"].store
        batch = {"labels": torch.from_numpy(rows["test"].labels)}
        if isinstance(test, RecordWindows):
            batch["record"] = torch.from_numpy(test.records)
        scores: dict[str, Row] = {}
        for baseline in fitted:
            predicted = torch.from_numpy(baseline.predict(test)).float().reshape(len(rows["test"]), -1)
            metrics = task.metrics()
            task.update(metrics, task.outputs_from(predicted), batch)
            scores[baseline.name] = {name: float(value) for name, value in metrics.compute().items()}
        return scores

    def _markov_baselines(self) -> dict[str, Row]:
        stores = {}
        for name in ("train", "test"):
            rows = self.splits[name]
            assert isinstance(rows, WindowRows)
            stores[name] = rows.store
        bits = baselines.MarkovModel(order=9).fit(stores["train"]).bits_per_base(stores["test"])
        best = min(bits, key=lambda order: bits[order])
        names = {0: "base composition", 5: "Markov order 5", best: f"Markov order {best} (the best up to 9)"}
        return {name: language_scores(bits[order]) for order, name in sorted(names.items())}

    def row_names(self, split: str, index: np.ndarray) -> dict[str, Sequence[Any]]:
        rows = self.splits[split]
        if isinstance(rows, UnlabelledRows):
            return rows.names(index)
        table = self.tables[split]
        store = getattr(rows, "store", None)
        if isinstance(store, RecordWindows):
            spans: dict[str, Sequence[Any]] = {"start": store.starts[index].tolist(), "end": store.ends[index].tolist()}
            return {"id": table.ids[store.records[index]].tolist(), "record": store.records[index].tolist(), **spans}
        names: dict[str, Sequence[Any]] = {"id": table.ids[index].tolist()}
        for column in ("chrom", "start", "end", "strand"):
            if column in table.frame:
                names[column] = table.frame[column].iloc[index].tolist()
        return {**names, "length": table.sequences.lengths[index].tolist()}


def check_options(task: str, invalid: str, annotation: Any, features: Any, tracks: Any, other_strand: Any) -> None:
    """Raises ConfigError for an option that has no such value, or that this task would pass over in silence."""
    if invalid not in ("error", "N"):
        raise ConfigError(f"data.invalid must be error or N, found {invalid!r}")
    if annotation is not None and task not in POSITION_TASKS:
        raise ConfigError(f"data.annotation is for task=base_labels, not for task={task}")
    if features is not None and annotation is None:
        raise ConfigError(f"data.features={features} chooses from an annotation: give data.annotation as well")
    if other_strand is not None and tracks is None:
        raise ConfigError("data.other_strand is about tracks: give data.tracks as well")


def check_numbers(*, mask_fraction: float, **sizes: int | None) -> None:
    """Raises ConfigError for sizes below 1 and a share that is none."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ConfigError(f"data.{name} must be 1 or more, found {size}")
    if not 0 < mask_fraction < 1:
        raise ConfigError(f"data.mask_fraction must lie between 0 and 1, found {mask_fraction}")


def fasta_files(source: Source) -> str | list[str]:
    """The FASTA files that a language model's `train` names: a file, a list, or a pattern."""
    import glob

    if isinstance(source, Mapping):
        raise ConfigError("data.train must be a FASTA file, a list or a pattern for a language model, found a mapping")
    if not isinstance(source, str):
        return [str(path) for path in source] if isinstance(source, Sequence) else str(source)
    if glob.has_magic(source):
        found = sorted(glob.glob(source))  # noqa: PTH207  Path.glob takes no absolute pattern
        if not found:
            raise DataError(f"{source}: no file matches this pattern")
        return found
    return source


def padded_complement() -> list[int]:
    """The complementary id of each row of the embedding, whose last rows are never used."""
    return [*COMPLEMENT_IDS, *range(len(COMPLEMENT_IDS), NucleotideTokenizer.padded_vocab_size)]
