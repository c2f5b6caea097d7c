"""Reads a user's DNA files, or the embedded demo data, and gives batches of token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from longseq.backbone import Backbone
from longseq.domains.base import DomainData, Row
from longseq.domains.dna import baselines, demo
from longseq.domains.dna.labels import class_names, encode_classes, encode_multilabel, multilabel_names, numeric_labels
from longseq.domains.dna.metrics import language_scores
from longseq.domains.dna.rows import SequenceRows, WindowRows
from longseq.domains.dna.sequences import SequenceTable
from longseq.domains.dna.sources import Source, read_sequences
from longseq.domains.dna.splits import drop_leaks, find_leaks, make_split, split_regions
from longseq.domains.dna.statistics import describe
from longseq.domains.dna.token_cache import build_token_cache
from longseq.domains.dna.tokenizer import COMPLEMENT_IDS, NucleotideTokenizer
from longseq.domains.dna.windows import GenomeWindows
from longseq.domains.loading import pad_rows
from longseq.domains.tasks import IGNORE, Batch, Task
from longseq.errors import ConfigError, DataError

LANGUAGE_TASKS = ("lm", "mlm")


class DNAData(DomainData):
    """DNA from csv, tsv, parquet, FASTA, FASTQ, GenBank or BED with a genome; windows of genomes for language models.

    Args:
        task: `classification`, `multilabel`, `regression`, `lm` or `mlm`.
        train: the training file(s), or all data, which is then split; None for the embedded synthetic demo data.
        val: a file; None takes rows of `train`.
        test: a file; None takes rows of `train`.
        predict: a file to predict.
        batch_size: rows per process and step.
        max_tokens: if set, batches hold at most so many positions, padding included.
        num_workers: loader processes.
        seed: of splits, shuffling and augmentation.
        sequence_column: name or number (from 1) of the column with the letters.
        label_column: name or number; a list for several targets; None for none.
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
        on_long: `crop` keeps the middle of longer sequences and counts them, `error` refuses them.
        rc_augment: reverse-complement half of the training rows, chosen anew in every epoch.
        window: bases of a language model's window.
        stride: bases from one window to the next in train; None for `window`. Val and test never overlap.
        mask_fraction: share of the bases that a masked language model has to fill in.
        cache_dir: for the token caches of genomes; None for LONGSEQ_CACHE or ~/.cache/longseq.
        demo_rows: training rows of the demo data.
    """

    domain = "dna"

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
        window: int = 1024,
        stride: int | None = None,
        mask_fraction: float = 0.15,
        cache_dir: str | None = None,
        demo_rows: int = 1000,
    ) -> None:
        super().__init__(task=task, batch_size=batch_size, max_tokens=max_tokens, num_workers=num_workers, seed=seed)
        if on_long not in ("crop", "error"):
            raise ConfigError(f"data.on_long must be crop or error, found {on_long!r}")
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
        self.window, self.stride, self.mask_fraction = window, stride, mask_fraction
        self.invalid, self.cache_dir, self.demo_rows = invalid, cache_dir, demo_rows
        self._max_length = max_length
        self.tokenizer = NucleotideTokenizer()
        self.tables: dict[str, SequenceTable] = {}
        self.labels: tuple[str, ...] = ()

    # -- reading

    def setup(self, stage: str | None = None) -> None:
        """Reads the files once; later calls do nothing."""
        if self.splits:
            return
        if self.task_name in LANGUAGE_TASKS:
            self._setup_windows()
        else:
            self._setup_tables()

    def _setup_tables(self) -> None:
        self.tables = self._read_tables()
        self._check_leaks()
        if self._max_length is None:
            self._max_length = max(int(table.sequences.lengths.max()) for table in self.tables.values())
        encoded = self._encode_labels()
        for name, table in self.tables.items():
            self._count_long(name, table)
            self.splits[name] = SequenceRows(
                table.sequences,
                encoded[name],
                max_length=self._max_length,
                seed=self.seed,
                augment=self.rc_augment and name == "train",
            )

    def _read_tables(self) -> dict[str, SequenceTable]:
        if self.sources["train"] is None:
            self.counts["synthetic"] = "two motifs whose orientation towards each other, not their presence, decides the class"
            n_val = max(50, self.demo_rows // 5)
            table = demo.make_pairing_task(self.demo_rows, n_val, n_val, seed=self.seed)
            return {name: table.select(np.flatnonzero(table.frame["split"] == name)) for name in ("train", "val", "test")}
        tables = {
            name: read_sequences(source, **self.read_options, labels="required")
            for name, source in self.sources.items()
            if source is not None and name != "predict"
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
        if self.task_name == "classification":
            self.labels = class_names(train)
            return {name: encode_classes(table, self.labels) for name, table in self.tables.items()}
        if self.task_name == "multilabel":
            self.labels = multilabel_names(train)
            return {name: encode_multilabel(table, self.labels) for name, table in self.tables.items()}
        if self.task_name == "regression":
            self.labels = train.label_names
            return {name: numeric_labels(table).reshape(len(table), -1) for name, table in self.tables.items()}
        raise ConfigError(f"domain=dna has no task={self.task_name}; it has classification, multilabel, regression, lm and mlm")

    def _setup_windows(self) -> None:
        if self.sources["train"] is None:
            self.counts["synthetic"] = "a genome whose bases repeat those 24 before them, beyond a Markov model's reach"
            store, names = demo.make_demo_genome(seed=self.seed)
        else:
            store = build_token_cache(fasta_files(self.sources["train"]), self.cache_dir, invalid=self.invalid)
            names = store.names
        fractions: dict[str, Any] = {f"{name}_fraction": share for name, share in self.fractions.items()}
        chroms = {key: self.split_options[key] for key in ("val_chroms", "test_chroms")}
        regions = split_regions(store, names, **chroms, **fractions)
        for name in ("train", "val", "test"):
            # A causal model predicts from the second base on: one more base, shared with the next window.
            extra = 1 if self.task_name == "lm" else 0
            stride = self.stride if name == "train" and self.stride else self.window
            windows = GenomeWindows(
                store, self.window + extra, stride=stride, regions=regions[name], min_length=min(self.window, 2 + extra)
            )
            self.splits[name] = WindowRows(
                windows,
                seed=self.seed,
                augment=self.rc_augment and name == "train",
                mask_fraction=self.mask_fraction if self.task_name == "mlm" else None,
                fixed_masks=name != "train",
            )

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
        assert isinstance(train, SequenceRows)
        if self.task_name == "classification":
            options["class_counts"] = np.bincount(train.labels, minlength=len(self.labels)).tolist()
        if self.task_name == "regression":
            options |= {"mean": train.labels.mean(0).tolist(), "std": train.labels.std(0).tolist()}
        return options

    def model_options(self, backbone: Backbone) -> dict[str, Any]:
        embedding: dict[str, Any] = {"name": "token", "vocab_size": NucleotideTokenizer.padded_vocab_size}
        if backbone.reverse_complement:
            embedding |= {"name": "strand", "complement": padded_complement()}
        return {"embedding": embedding, "tokenizer": self.tokenizer.to_dict()}

    def head_options(self, backbone: Backbone, head: dict[str, Any]) -> dict[str, Any]:
        if not backbone.reverse_complement:
            return head
        if head["name"] == "token":
            return {"name": "strand_token", "n_outputs": head["n_outputs"], "complement": padded_complement()}
        return {**head, "name": f"strand_{head['name']}"}

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        ids, mask = pad_rows([row["ids"] for row in rows], NucleotideTokenizer.pad_id)
        batch = {"inputs": ids.long(), "mask": mask, "index": torch.tensor([row["index"] for row in rows])}
        if "targets" in rows[0]:
            batch["labels"], _ = pad_rows([row["targets"] for row in rows], IGNORE)
        elif rows[0].get("label") is not None:
            batch["labels"] = torch.from_numpy(np.stack([row["label"] for row in rows]))
        return batch

    def summary(self) -> dict[str, Any]:
        found = {}
        for name, rows in self.splits.items():
            assert isinstance(rows, (SequenceRows, WindowRows))
            facts = describe(rows.store)
            if isinstance(rows, SequenceRows) and self.task_name == "classification":
                counts = np.bincount(rows.labels, minlength=len(self.labels))
                facts["labels"] = dict(zip(self.labels, counts.tolist(), strict=True))
            found[name] = facts
        return found

    def baselines(self, task: Task) -> dict[str, Row]:
        if self.task_name in LANGUAGE_TASKS:
            return self._markov_baselines()
        rows: dict[str, SequenceRows] = {}
        for name, split in self.splits.items():
            assert isinstance(split, SequenceRows)
            rows[name] = split
        fitted = baselines.fit_baselines(
            rows["train"].store,
            rows["train"].labels,
            rows["val"].store,
            rows["val"].labels,
            task=self.task_name,
            n_classes=len(self.labels),
        )
        labels = torch.from_numpy(rows["test"].labels)
        found: dict[str, Row] = {}
        for baseline in fitted:
            predicted = torch.from_numpy(baseline.predict(rows["test"].store)).float()
            found[baseline.name] = task.score_predictions(predicted.reshape(len(labels), -1), labels)
        return found

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
        table = self.tables[split]
        names: dict[str, Sequence[Any]] = {"id": table.ids[index].tolist()}
        for column in ("chrom", "start", "end", "strand"):
            if column in table.frame:
                names[column] = table.frame[column].iloc[index].tolist()
        return {**names, "length": table.sequences.lengths[index].tolist()}


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
