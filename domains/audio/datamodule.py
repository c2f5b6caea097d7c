"""Reads people's recordings, or makes the demo's, and gives batches of samples or mu-law levels with their labels."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from longseq.backbone import Backbone
from longseq.domains.audio import demo
from longseq.domains.audio.baselines import score_baselines
from longseq.domains.audio.clips import Clips, cut_windows, open_clips
from longseq.domains.audio.labels import join_lists, read_events
from longseq.domains.audio.options import augmentation, check_fit, check_task
from longseq.domains.audio.recordings import FramePredictions, Recordings, SoundSequences
from longseq.domains.audio.rows import ClipRows, HiddenClipRows, feature_statistics
from longseq.domains.audio.sources import ReadOptions, Source, read_source
from longseq.domains.audio.splits import SPEAKERS, make_split, recording_leaks, speaker_leaks
from longseq.domains.audio.targets import Labelled, encode_targets
from longseq.domains.audio.tasks import own_target
from longseq.domains.audio.tokenizer import LEVELS, SILENCE, AudioTokenizer
from longseq.domains.audio.usable import leave_out
from longseq.domains.base import DomainData, DomainModule, Row
from longseq.domains.likelihood import LikelihoodOptions, LikelihoodPredictions
from longseq.domains.loading import pad_rows
from longseq.domains.prediction import Predictions
from longseq.domains.tasks import IGNORE, Batch, Task
from longseq.errors import ConfigError, DataError

# Tasks that answer along a recording, which is then never cut.
WHOLE = ("ctc", "frames", "lm")
# Window of a language model where none is asked for.
WINDOW_S = 1.0
# Window of recordings to predict that the model cannot hear in one pass, where data.clip_s does not say.
HEARD_S = 30.0
# So much sound is decoded once before training, to find what is damaged.
DECODE_LIMIT_S = 3 * 3600.0


class AudioData(DomainData):
    """Sound from a folder per class, a folder of telling file names, or a manifest; wav, flac, ogg, mp3.

    Only headers are read before training, and samples when a batch needs them, so that a collection may be larger than
    memory.

    Args:
        task: `classification`, `multilabel`, `regression`, `ctc`, `frames`, `lm` or `masked_sound`.
        train: the training data, or all data, which is then split; None for the embedded synthetic demo data.
        val: data; None takes rows of `train`.
        test: data; None takes rows of `train`.
        predict: data to predict.
        batch_size: rows per process and step.
        max_tokens: if set, batches hold at most so many samples, padding included.
        num_workers: loader processes.
        seed: of splits, shuffling and augmentation.
        path_column: of manifests; None for path, file, filename, audio and the like.
        label_column: class, tags or number of each clip; a list for several numbers.
        text_column: transcript of each clip (ctc).
        start_column: seconds into the file at which a clip begins; need not be there.
        duration_column: its seconds; need not be there.
        audio_dir: where a manifest's relative paths start; None for its own folder.
        path_pattern: regular expression on paths whose named groups become columns, such as label, speaker, text.
        tag_separator: between the tags of one clip.
        events: table of filename, onset, offset and event_label (frames).
        vocabulary: symbols of transcripts, a list or a file with one a line; None for the characters of train.
        lowercase: transcripts in lower case.
        split_column: says train, val or test; a column split is used by itself.
        test_pattern: regular expression on paths of test files.
        val_pattern: likewise for val.
        group_column: clips of one group, such as a speaker, stay in one split.
        test_groups: groups held out for test.
        val_groups: groups held out for val.
        val_fraction: share of the clips where no rule says.
        test_fraction: likewise.
        on_bad: `error` refuses bad files and rows, `skip` leaves them out and counts them.
        decode: decode everything once before training to find damage, NaN and silence; None: if rows are to be skipped, or
            there are less than three hours.
        sample_rate_hz: that everything is resampled to; None for the commonest of the data.
        clip_s: longest clip in seconds; None for the longest there is (language models: 1 s).
        on_long: `crop`, `window` (each window a row) or `error` for longer ones.
        hop_s: seconds from one window to the next in train; None for clip_s, as in val and test.
        tokenizer: `waveform`, `mulaw`, `logmel` or `mfcc`.
        stem_strides: of the waveform's convolutions; empty for a linear map of single samples.
        stem_kernels: their kernels; None for twice the strides.
        n_mels: mel filters.
        n_mfcc: cepstral coefficients.
        frame_s: seconds of an analysis window.
        frame_hop_s: seconds from one to the next.
        f_min: lowest frequency in Hz.
        f_max: highest; None for half the sampling rate.
        hide: share of the sound that is hidden (masked_sound).
        hide_s: mean length of a hidden stretch in seconds.
        demo_rows: training clips of the demo data.
        **augment: the fields of `longseq.domains.audio.augment.Augmentation`.
    """

    domain, token_unit = "audio", "sample"

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
        path_column: str | None = None,
        label_column: str | Sequence[str] = "label",
        text_column: str = "text",
        start_column: str = "start",
        duration_column: str = "duration",
        audio_dir: str | None = None,
        path_pattern: str | None = None,
        tag_separator: str = ";",
        events: str | None = None,
        vocabulary: str | Sequence[str] | None = None,
        lowercase: bool = False,
        split_column: str | None = None,
        test_pattern: str | None = None,
        val_pattern: str | None = None,
        group_column: str | None = None,
        test_groups: Sequence[str] = (),
        val_groups: Sequence[str] = (),
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        on_bad: str = "error",
        decode: bool | None = None,
        sample_rate_hz: int | None = None,
        clip_s: float | None = None,
        on_long: str = "crop",
        hop_s: float | None = None,
        tokenizer: str = "waveform",
        stem_strides: Sequence[int] = (4, 4),
        stem_kernels: Sequence[int] | None = None,
        n_mels: int = 64,
        n_mfcc: int = 20,
        frame_s: float = 0.025,
        frame_hop_s: float = 0.010,
        f_min: float = 64.0,
        f_max: float | None = None,
        hide: float = 0.4,
        hide_s: float = 0.1,
        demo_rows: int = 400,
        **augment: Any,
    ) -> None:
        super().__init__(task=task, batch_size=batch_size, max_tokens=max_tokens, num_workers=num_workers, seed=seed)
        check_task(task)
        for name, value, known in (("on_bad", on_bad, ("error", "skip")), ("on_long", on_long, ("crop", "window", "error"))):
            if value not in known:
                raise ConfigError(f"data.{name} must be one of {', '.join(known)}, found {value!r}")
        if not 0.0 < hide < 1.0:
            raise ConfigError(f"data.hide must lie between 0 and 1, found {hide}")
        for name, seconds in (("clip_s", clip_s), ("hop_s", hop_s), ("hide_s", hide_s)):
            if seconds is not None and seconds <= 0:
                raise ConfigError(f"data.{name} must be above 0 seconds, found {seconds}")
        check_fit(
            task,
            own_data=train is not None,
            tokenizer=tokenizer,
            clip_s=clip_s,
            on_long=on_long,
            hop_s=hop_s,
            events=events,
            vocabulary=vocabulary,
            lowercase=lowercase,
        )
        self.sources = {"train": train, "val": val, "test": test, "predict": predict}
        self.read_options = ReadOptions(path_column, start_column, duration_column, audio_dir, path_pattern)
        self.label_columns = [label_column] if isinstance(label_column, str) else list(label_column)
        self.text_column, self.tag_separator, self.events, self.lowercase = text_column, tag_separator, events, lowercase
        self.split_options: dict[str, Any] = {
            "split_column": split_column,
            "test_pattern": test_pattern,
            "val_pattern": val_pattern,
            "group_column": group_column,
            "test_groups": tuple(test_groups),
            "val_groups": tuple(val_groups),
        }
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.on_bad, self.decode, self.demo_rows = on_bad, decode, demo_rows
        self.clip_s, self.on_long, self.hop_s = clip_s, "window" if task == "lm" else on_long, hop_s
        self.given_vocabulary = vocabulary
        self.hide, self.hide_s = hide, hide_s
        # Of a pretraining on another task's sounds: whether the next position is told; None as the task's config says.
        self.ahead: bool | None = None
        # Language models predict levels, whatever the default of the other tasks is.
        self.tokenizer_name = "mulaw" if task == "lm" else tokenizer
        self.tokenizer_options: dict[str, Any] = {
            "stem_strides": tuple(stem_strides),
            "stem_kernels": None if stem_kernels is None else tuple(stem_kernels),
            "n_mels": n_mels,
            "n_mfcc": n_mfcc,
            "frame_s": frame_s,
            "hop_s": frame_hop_s,
            "f_min": f_min,
            "f_max": f_max,
        }
        self.augmentation = augmentation(augment, task, self.tokenizer_name)
        self._sample_rate_hz = sample_rate_hz
        self.clips: dict[str, Clips] = {}
        self.labelled: Labelled | None = None
        self.statistics: dict[str, Sequence[float]] = {}

    # -- reading

    def setup(self, stage: str | None = None) -> None:
        """Reads tables and headers once; later calls do nothing."""
        if self.splits:
            return
        self.clips = self._demo() if self.sources["train"] is None else self._read()
        if self.on_bad == "skip":
            self.clips = leave_out(
                self.clips,
                self.task_name,
                label_columns=self.label_columns,
                text_column=self.text_column,
                tag_separator=self.tag_separator,
                counts=self.counts,
            )
        self._choose_rate()
        self._fit_lengths()
        self.labelled = encode_targets(
            self.clips,
            self.task_name,
            self.tokenizer,
            label_columns=self.label_columns,
            text_column=self.text_column,
            tag_separator=self.tag_separator,
            vocabulary=self.given_vocabulary,
            lowercase=self.lowercase,
        )
        self.counts |= self.labelled.counts
        for name, clips in self.clips.items():
            if self.task_name == "masked_sound":
                self.splits[name] = self._hidden_rows(name)
                continue
            targets = None if name == "predict" else self.labelled.targets.get(name)
            options: dict[str, Any] = {"augmentation": self.augmentation} if name == "train" else {}
            self.splits[name] = ClipRows(
                clips,
                self.tokenizer,
                max_samples=self._max_samples,
                seed=self.seed,
                targets=targets,
                n_classes=len(self.labelled.labels) if self.task_name == "classification" else None,
                next_token=self.task_name == "lm",
                **options,
            )
        self.statistics = feature_statistics(self.rows("train"))

    def _hidden_rows(self, name: str) -> HiddenClipRows:
        augmentation: dict[str, Any] = {}
        if name == "train":
            # Labels are not mixed where there are none, and what is hidden is hidden once.
            augmentation = {"augmentation": replace(self.augmentation, mixup=0.0, time_masks=0, freq_masks=0)}
        return HiddenClipRows(
            self.clips[name],
            self.tokenizer,
            max_samples=self._max_samples,
            seed=self.seed,
            hide=self.hide,
            hide_s=self.hide_s,
            fixed=name != "train",
            **augmentation,
        )

    def self_supervised(self, causal: bool) -> DomainData:
        """The sounds of train and val with hidden stretches; for causal backbones the next level or the next frame."""
        if self.task_name in ("lm", "masked_sound"):
            raise ConfigError(f"self_pretrain: task={self.task_name} needs no labels as it is; train it for more epochs")
        other = copy.copy(self)
        other.ahead = causal
        other.task_name = "lm" if causal and self.tokenizer.discrete else "masked_sound"
        other.labelled, other.splits = Labelled(), {}
        for name in ("train", "val"):
            other.splits[name] = other._next_rows(name) if other.task_name == "lm" else other._hidden_rows(name)
        return other

    def _next_rows(self, name: str) -> ClipRows:
        return ClipRows(self.clips[name], self.tokenizer, max_samples=self._max_samples, seed=self.seed, next_token=True)

    def rows(self, split: str) -> ClipRows:
        """A split's rows."""
        rows = self.splits[split]
        assert isinstance(rows, ClipRows)
        return rows

    def _demo(self) -> dict[str, Clips]:
        # Sound without labels is that of a task with labels.
        task = "classification" if self.task_name == "masked_sound" else self.task_name
        self.counts["synthetic"] = demo.DESCRIPTIONS[task]
        return demo.make_demo(task, self.demo_rows, seed=self.seed)

    def _read(self) -> dict[str, Clips]:
        frames = {name: read_source(source, self.read_options) for name, source in self.sources.items() if source is not None}
        self._add_events(frames)
        parts = {name: self._open(name, frame) for name, frame in frames.items()}
        if "val" not in parts or "test" not in parts:
            everything = parts["train"]
            shares: dict[str, Any] = {
                f"{name}_fraction": 0.0 if name in parts else share for name, share in self.fractions.items()
            }
            column = self.label_columns[0] if self.task_name == "classification" else None
            rows, rule = make_split(everything, **self.split_options, **shares, label_column=column, seed=self.seed)
            self.counts["split"] = rule
            for name in ("train", "val", "test"):
                if name == "train" or name not in parts:
                    if not len(rows[name]):
                        raise DataError(
                            f"no clips are left for {name} ({rule}); give data.{name}= a folder or manifest, or a larger "
                            f"data.{name}_fraction"
                        )
                    parts[name] = everything.select(rows[name])
        self.counts |= speaker_leaks(parts, self.split_options["group_column"]) | recording_leaks(parts)
        return {name: parts[name] for name in ("train", "val", "test", "predict") if name in parts}

    def _add_events(self, frames: Mapping[str, pd.DataFrame]) -> None:
        """A column of events, from one table for the recordings of all splits."""
        if self.events is None or self.task_name != "frames":
            return
        found, skipped = read_events(self.events, [path for frame in frames.values() for path in frame["path"]], self.on_bad)
        if skipped:
            self.counts["skipped in data.events"] = f"{len(skipped)} rows; the first: {skipped[0]}"
        for name, frame in frames.items():
            if name != "predict":
                frame["events"] = [found.get(path, []) for path in frame["path"]]

    def _open(self, name: str, frame: pd.DataFrame) -> Clips:
        if name != "predict" and self.task_name in ("classification", "multilabel", "regression", "ctc"):
            columns = [self.text_column] if self.task_name == "ctc" else self.label_columns
            frame = join_lists(frame, columns, self.task_name, self.tag_separator)
        checked = open_clips(frame, on_bad=self.on_bad, decode=self.decode, decode_limit_s=DECODE_LIMIT_S)
        if checked.skipped:
            self.counts[f"skipped in data.{name}"] = (
                f"{len(checked.skipped)} of {len(frame)} rows; the first: {checked.skipped[0]}"
            )
        if checked.channels:
            self.counts[f"mixed down to mono in data.{name}"] = f"{checked.channels} files"
        return checked.clips

    def _choose_rate(self) -> None:
        rates = np.concatenate([clips.rate_hz for name, clips in self.clips.items() if name != "predict"])
        values, n = np.unique(rates, return_counts=True)
        rate = int(values[np.argmax(n)]) if self._sample_rate_hz is None else self._sample_rate_hz
        if rate < 1:
            raise ConfigError(f"data.sample_rate_hz must be above 0, found {rate}")
        self.tokenizer = AudioTokenizer(self.tokenizer_name, rate, **self.tokenizer_options)
        # Says at once what is wrong with its options.
        self.tokenizer.front_end()
        others = {f"{value:,} Hz: {count}" for value, count in zip(values.tolist(), n.tolist(), strict=True) if value != rate}
        if others:
            text = f"{int((rates != rate).sum())} of {len(rates)} clips ({', '.join(sorted(others))})"
            self.counts[f"resampled to {rate:,} Hz"] = text
            warnings.warn(f"resampling to {rate} Hz: {text}", stacklevel=2)

    def _fit_lengths(self) -> None:
        limit_s = WINDOW_S if self.task_name == "lm" and self.clip_s is None else self.clip_s
        rate = self.tokenizer.sample_rate_hz
        if limit_s is None:
            self._max_samples = max(int(clips.lengths(rate).max()) for clips in self.clips.values())
            return
        self._max_samples = max(2 if self.task_name == "lm" else 1, round(limit_s * rate))
        for name, clips in self.clips.items():
            long = np.flatnonzero(clips.seconds > limit_s * (1 + 1e-6))
            if not len(long):
                continue
            if self.on_long == "error" or self.task_name == "ctc":
                hint = (
                    "a part of a clip has no transcript; raise data.clip_s"
                    if self.task_name == "ctc"
                    else "raise it, or set data.on_long=crop or window"
                )
                row = int(long[0])
                raise DataError(f"{clips.where(row)}: {clips.seconds[row]:.2f} s, more than data.clip_s={limit_s:g}; {hint}")
            if self.on_long == "window":
                hop = self.hop_s if name in ("train", "predict") and self.hop_s is not None else limit_s
                # No sample is told twice in a language model's bits per sample.
                apart = self.task_name == "lm" and name in ("val", "test")
                self.clips[name] = cut_windows(clips, limit_s, hop, apart=apart)
                if self.task_name != "lm":
                    self.counts[f"cut into windows in {name}"] = f"{len(long)} of {len(clips)} clips"
            else:
                self.counts[f"cropped to {limit_s:g} s in {name}"] = f"{len(long)} of {len(clips)} clips"
        if self.task_name == "lm":
            # A single sample has no next one.
            self.clips = {n: clips.select(np.flatnonzero(clips.lengths(rate) > 1)) for n, clips in self.clips.items()}

    # -- predicting

    @classmethod
    def options_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(config.get("tokenizer", {}))
        renamed = {"name": "tokenizer", "hop_s": "frame_hop_s"}
        return {renamed.get(name, str(name)): value for name, value in found.items()}

    def setup_predict(self, config: Mapping[str, Any]) -> None:
        """Reads `data.predict` alone, without labels; sounds are resampled to the model's rate."""
        source = self.sources["predict"]
        if source is None:
            raise ConfigError("data.predict must name the sounds to predict: a file, a folder, a pattern or a manifest")
        if self.task_name == "masked_sound":
            raise ConfigError(
                "this model was pretrained on hidden sound and has nothing to predict: fine-tune it (longseq finetune "
                "pretrained=...), or take its features (longseq embed)"
            )
        self.clips = {"predict": self._open("predict", read_source(source, self.read_options))}
        rate = self._sample_rate_hz or int(config["tokenizer"]["sample_rate_hz"])
        self.tokenizer = AudioTokenizer(self.tokenizer_name, rate, **self.tokenizer_options)
        others = int((self.clips["predict"].rate_hz != rate).sum())
        if others:
            self.counts[f"resampled to {rate:,} Hz"] = f"{others} of {len(self.clips['predict'])} clips"
        limit = config["backbone"].get("max_length")
        if limit is not None and self.clip_s is None and self.task_name not in WHOLE:
            longest_s = limit * self.tokenizer.stride / rate
            self.clip_s = longest_s if self.clips["predict"].seconds.max() > longest_s else None
        if self.task_name in WHOLE:
            self._max_samples = int(self.clips["predict"].lengths(rate).max())
        else:
            self._fit_lengths()
        self.splits["predict"] = ClipRows(self.clips["predict"], self.tokenizer, max_samples=self._max_samples, seed=self.seed)

    def long_predictions(self, module: DomainModule, options: Mapping[str, Any]) -> Predictions | None:
        if self.task_name not in WHOLE:
            return None
        recordings = Recordings(self.clips["predict"], self.tokenizer)
        chosen = LikelihoodOptions(**options)
        window = self.long_window(self.task_name, {"clip_s": self.clip_s}, self.sample_rate_hz)
        assert window is not None
        if self.task_name != "lm":
            return FramePredictions(module, self, recordings, chosen, window)
        sounds = SoundSequences(recordings, self)
        return LikelihoodPredictions(module, sounds, chosen, batch_size=self.batch_size, trained_window=window)

    @staticmethod
    def long_window(task: str, options: Mapping[str, Any], sample_rate_hz: int | None = None) -> int | None:
        if task not in WHOLE or sample_rate_hz is None:
            return None
        return round((options.get("clip_s") or (WINDOW_S if task == "lm" else HEARD_S)) * sample_rate_hz)

    # -- what the model and the report need

    @property
    def max_length(self) -> int:
        """Of the sequences as the backbone sees them, in positions."""
        return self.tokenizer.n_positions(self._max_samples)

    @property
    def sample_rate_hz(self) -> int:
        """Of what the model hears."""
        return self.tokenizer.sample_rate_hz

    def task_options(self) -> dict[str, Any]:
        assert self.labelled is not None
        options: dict[str, Any] = own_target(self.task_name)
        if self.task_name == "lm":
            return {"vocab_size": LEVELS, "unit": "sample"}
        if self.task_name == "masked_sound":
            found: dict[str, Any] = {"n_values": self.tokenizer.n_values}
            return found if self.ahead is None else {**found, "ahead": self.ahead}
        if self.task_name == "ctc":
            assert self.labelled.vocabulary is not None
            return {"vocabulary": self.labelled.vocabulary.symbols}
        options["labels"] = list(self.labelled.labels)
        train = self.labelled.arrays.get("train")
        if self.task_name == "classification" and train is not None:
            options["class_counts"] = np.bincount(train, minlength=len(self.labelled.labels)).tolist()
        if self.task_name == "regression" and train is not None:
            options |= {"mean": train.mean(0).tolist(), "std": train.std(0).tolist()}
        return options

    def model_options(self, backbone: Backbone) -> dict[str, Any]:
        del backbone
        return {"embedding": {**self.tokenizer.embedding(), **self.statistics}, "tokenizer": self.tokenizer.to_dict()}

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        inputs, mask = pad_rows([row["inputs"] for row in rows], SILENCE if self.tokenizer.discrete else 0.0)
        batch = {"inputs": inputs, "mask": mask, "index": torch.tensor([row["index"] for row in rows])}
        if "hidden" in rows[0]:
            batch["hidden"], _ = pad_rows([row["hidden"] for row in rows], False)
        if "masks" in rows[0]:
            batch["spectrum_masks"] = torch.from_numpy(np.stack([row["masks"] for row in rows]))
        if "targets" in rows[0]:
            batch["labels"], _ = pad_rows([row["targets"] for row in rows], IGNORE)
        elif "frames" in rows[0]:
            batch["labels"], _ = pad_rows([row["frames"] for row in rows], IGNORE)
        elif "symbols" in rows[0]:
            batch |= self._transcripts(rows)
        elif "label" in rows[0]:
            batch["labels"] = torch.from_numpy(np.stack([row["label"] for row in rows]))
        if self.task_name == "ctc":
            batch["output_lengths"] = torch.tensor([self.tokenizer.n_positions(len(row["inputs"])) for row in rows])
        return batch

    @staticmethod
    def _transcripts(rows: list[dict[str, Any]]) -> Batch:
        # An empty transcript still needs a column.
        symbols, _ = pad_rows([np.append(row["symbols"], 0) for row in rows], 0)
        codes, _ = pad_rows([np.array([*map(ord, row["text"]), 0], dtype=np.int32) for row in rows], 0)
        lengths = torch.tensor([len(row["symbols"]) for row in rows])
        return {"labels": symbols, "label_lengths": lengths, "references": codes}

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        columns = (self.split_options["group_column"], *SPEAKERS)
        speaker = next((c for c in columns if c is not None and all(c in clips.frame for clips in self.clips.values())), None)
        for name, clips in self.clips.items():
            seconds = np.minimum(clips.seconds, self._max_samples / self.sample_rate_hz)
            facts: dict[str, Any] = {
                "rows": len(clips),
                "minutes": float(seconds.sum() / 60),
                "shortest, s": float(seconds.min()),
                "median, s": float(np.median(seconds)),
                "longest, s": float(seconds.max()),
                "sampling rate, Hz": self.sample_rate_hz,
            }
            if speaker is not None:
                facts["speakers"] = len(set(clips.frame[speaker]))
            if self.labelled is not None and self.task_name == "classification" and name in self.labelled.arrays:
                counts = np.bincount(self.labelled.arrays[name], minlength=len(self.labelled.labels))
                facts["labels"] = dict(zip(self.labelled.labels, counts.tolist(), strict=True))
            found[name] = facts
        return found

    def row_names(self, split: str, index: np.ndarray) -> dict[str, Sequence[Any]]:
        clips = self.clips[split]
        names: dict[str, Sequence[Any]] = {"id": clips.frame["id"].iloc[index].astype(str).tolist()}
        for column in SPEAKERS:
            if column in clips.frame:
                names[column] = clips.frame[column].iloc[index].astype(str).tolist()
        names["start_s"] = (clips.first[index] / clips.rate_hz[index]).round(4).tolist()
        return {**names, "duration_s": clips.seconds[index].round(4).tolist()}

    def baselines(self, task: Task) -> dict[str, Row]:
        assert self.labelled is not None
        rows = {name: self.rows(name) for name in ("train", "val", "test")}
        return score_baselines(rows, self.labelled, task)
