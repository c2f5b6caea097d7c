"""What the server knows of its model, and how requests become the model's rows."""

import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from longseq.domains.base import DomainData
from longseq.domains.requests import Asked, Requests
from longseq.errors import CheckpointError, ConfigError, LongseqError
from longseq.inference import Inference, Port
from longseq.pipelines.cli import nearest
from longseq.pipelines.run_folder import MODEL
from longseq.pipelines.serving.answers import Answers
from longseq.pipelines.serving.folder import cannot_stream, check_folder
from longseq.pipelines.serving.limits import Limits, Refusal
from longseq.pipelines.serving.payload import Upload
from longseq.pipelines.trained import Trained
from longseq.version import __version__

logger = logging.getLogger(__name__)
# Where neither the model nor the command sets a limit.
LONGEST = 2**20


class Served:
    """A model as its clients see it; its weights are in the worker.

    Args:
        cfg: of the verb.

    Raises:
        ConfigError: if options make no sense, or the domain cannot be served.
        CheckpointError: if the folder holds no usable model.
    """

    def __init__(self, cfg: DictConfig) -> None:
        folder = Path(str(cfg.model)) if cfg.model is not None else Path(str(cfg.run))
        is_run = cfg.run is not None or ((folder / MODEL / "config.json").is_file() and not (folder / "config.json").is_file())
        names = {"run": str(folder), "model": None} if is_run else {"run": None, "model": str(folder)}
        if cfg.run is not None and cfg.model is not None:
            raise ConfigError("name either a run folder (run=) or a model folder (model=), not both")
        self.limits = limits(cfg, None)
        check_folder(folder / MODEL if is_run else folder)
        given = OmegaConf.create({**names, "device": cfg.device, "data": {}, "module": {}})
        try:
            self.trained = Trained(given)
        except LongseqError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # Options that no part of a model knows.
            raise CheckpointError(f"{folder}: config.json describes no model that this version can build: {error}") from None
        self.device = self.trained.device
        self.folder = self.trained.folder
        self.config = dict(self.trained.config)
        self.options = {} if cfg.rc_average is None else {"rc_average": bool(cfg.rc_average)}
        if is_run and cfg.rc_average is None:
            self.options = {"rc_average": bool(self.trained.base.module.get("rc_average", False))}
        inference = Inference(self.trained.model, **self.options)
        self.task, self.inputs, self.outputs = inference.task, inference.inputs, inference.outputs
        self.takes_mask = inference.takes_mask
        self.model_length = inference.max_length
        self.cannot_stream = cannot_stream(inference)
        self._check_labels()
        self.limits = limits(cfg, self.model_length)
        self.requests = self._requests()
        self.answers = Answers(self.config, self.task, self.outputs[0].name, self.requests)
        # The worker loads its own.
        del inference
        self.trained.model = self.trained.model.to("meta")

    def _check_labels(self) -> None:
        """Raises CheckpointError if the names of the answers are not as many as the answers."""
        labels, count = self.config.get("labels"), self.outputs[0].axes[-1]
        if labels is not None and isinstance(count, int) and len(labels) != count:
            raise CheckpointError(f"{self.folder}/config.json has {len(labels)} labels, but the model puts out {count} numbers")

    def _requests(self) -> Requests:
        name = f"{self.trained.package}.requests"
        try:
            reader: type[Requests] = import_module(name).Requests
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ConfigError(f"domain={self.trained.domain} cannot be served: it has no requests.py") from None
        return reader(self.config, self._open_file, self.limits.max_length, self.limits.max_rows)

    def _open_file(self, path: Path, options: Mapping[str, Any]) -> DomainData:
        data = self.trained.data({"predict": str(path), **options})
        data.setup_predict(self.config)
        return data

    # -- requests

    def from_json(self, body: dict[str, Any]) -> Asked:
        """The rows of a JSON body.

        Raises:
            Refusal: 422 for whatever is wrong with it.
        """
        keys = list(self.requests.keys)
        unknown = [key for key in body if key not in keys]
        if unknown:
            raise Refusal(422, f"there is no key {unknown[0][:60]!r}{nearest(unknown[0][:60], keys)}; keys: {', '.join(keys)}")
        inputs = keys if self.trained.domain == "dna" else keys[:1]
        if not any(key in body for key in inputs):
            raise Refusal(422, f"the body lacks {' or '.join(inputs)}; the example of /info shows what is expected")
        return self._checked(refusing(lambda: self.requests.read(body)))

    def from_files(self, files: Sequence[Upload]) -> Asked:
        """The rows of uploaded files.

        Raises:
            Refusal: 422 for whatever is wrong with one.
        """
        parts = [self._checked(self._from_file(file)) for file in files]
        return Asked([row for part in parts for row in part.rows], [name for part in parts for name in part.names])

    def _from_file(self, file: Upload) -> Asked:
        with tempfile.TemporaryDirectory(prefix="longseq-") as folder:
            # The name is the server's own; the client's is for messages.
            path = Path(folder) / f"upload{file.suffix}"
            path.write_bytes(file.data)
            stem = Path(file.name).stem
            # Series are called like their files.
            shown = {str(path): file.name, path.name: file.name, repr(path.stem): repr(stem)}
            asked = refusing(lambda: self.requests.read_file(path), shown)
        for names in asked.names:
            if isinstance(names.get("id"), str):
                names["id"] = re.sub(r"^.*\bupload(\.\w+)?$", stem, names["id"].replace(str(path), file.name))
        return asked

    def _checked(self, asked: Asked) -> Asked:
        """The same rows, if each is what the model takes."""
        if len(asked.rows) > self.limits.max_rows:
            raise Refusal(422, f"{len(asked.rows)} inputs in one request, at most {self.limits.max_rows} are allowed")
        for row, names in zip(asked.rows, asked.names, strict=True):
            where = f"input {names.get('id', '?')}"
            if self.takes_mask and not 0 < len(row) <= self.limits.max_length:
                raise Refusal(422, f"{where} has length {len(row)}, expected 1 to {self.limits.max_length}")
            if not fits(row, self.inputs[0]):
                raise Refusal(422, f"{where} has the shape {row.shape}, the model takes {self.inputs[0].axes[1:]}")
        asked.rows = [np.ascontiguousarray(row, dtype=self.inputs[0].dtype) for row in asked.rows]
        return asked

    def chunk(self, message: Mapping[str, Any] | bytes | str) -> np.ndarray:
        """The next piece of a streamed input."""
        piece = refusing(lambda: self.requests.chunk(message))
        return np.ascontiguousarray(piece, dtype=self.inputs[0].dtype)

    def results(self, outputs: Sequence[np.ndarray], asked: Asked, full: bool) -> list[dict[str, Any]]:
        """The answers, one per row."""
        rows = zip(outputs, asked.rows, asked.names, strict=True)
        # What a forecast follows upon is large, and the client has it.
        hidden = () if full else ("history",)
        return [
            self.answers.row(answer, row, {key: value for key, value in names.items() if key not in hidden}, full)
            for answer, row, names in rows
        ]

    def info(self) -> dict[str, Any]:
        """What `/info` says."""
        limit = self.limits
        return {
            "longseq": __version__,
            "domain": self.trained.domain,
            "task": self.task,
            "backbone": self.config["backbone"]["name"],
            "labels": self.config.get("labels"),
            "max_length": limit.max_length if self.takes_mask else None,
            "device": str(self.device),
            "input": {"name": self.inputs[0].name, "dtype": self.inputs[0].dtype, "axes": list(self.inputs[0].axes)},
            "output": {"name": self.outputs[0].name, "axes": list(self.outputs[0].axes)},
            **self.requests.facts(),
            "json": dict(self.requests.keys),
            "example": self.requests.example(),
            "files": list(self.requests.suffixes),
            "stream": self.cannot_stream is None,
            "stream_reason": self.cannot_stream,
            "limits": {
                "body_mb": limit.max_body_mb,
                "rows": limit.max_rows,
                "concurrent_requests": limit.max_concurrent,
                "streams": limit.max_streams,
                "timeout_s": limit.timeout_s,
            },
        }


def limits(cfg: DictConfig, model_length: int | None) -> Limits:
    """The options as limits.

    Raises:
        ConfigError: for an option out of range.
    """
    numbers = ("max_body_mb", "max_rows", "max_concurrent", "max_streams", "max_connections", "timeout_s", "idle_s")
    for name in (*numbers, "max_length", "max_batch_size", "max_batch_tokens", "threads"):
        optional = name in ("max_length", "threads")
        if not (optional and cfg[name] is None) and not (isinstance(cfg[name], (int, float)) and cfg[name] > 0):
            raise ConfigError(f"{name} must be a number above 0, found {cfg[name]!r}")
    for name in ("batch_wait_s", "grace_s"):
        if not (isinstance(cfg[name], (int, float)) and cfg[name] >= 0):
            raise ConfigError(f"{name} must be a number of seconds, found {cfg[name]!r}")
    longest = min(x for x in (cfg.max_length, model_length, None if cfg.max_length else LONGEST) if x is not None)
    return Limits(**{name: cfg[name] for name in numbers}, max_length=int(longest))


def fits(row: np.ndarray, port: Port) -> bool:
    """Whether a row has the axes that a port names."""
    axes = port.axes[1:]
    return row.ndim == len(axes) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(axes, row.shape, strict=True)
    )


def refusing(call: Any, names: Mapping[str, str] | None = None) -> Any:
    """What a call returns; its error as one for the client, without the names of the server's own files.

    Raises:
        Refusal: 422.
    """
    try:
        return call()
    except LongseqError as error:
        reason = str(error)
        for own, shown in (names or {}).items():
            reason = reason.replace(own, shown)
        raise Refusal(422, re.sub(rf"{re.escape(tempfile.gettempdir())}/longseq-\w+/", "", reason)) from None
    except Refusal:
        raise
    except UnicodeEncodeError as error:
        found = ascii(error.object[error.start : error.end])
        raise Refusal(422, f"the input holds {found}, which is half of a character: write such characters whole") from None
    except Exception as error:
        # Parsers of other people's formats fail in their own ways on what is none.
        logger.warning("a request could not be read", exc_info=True)
        raise Refusal(422, f"the input cannot be read ({type(error).__name__}); the server's log says more") from None
