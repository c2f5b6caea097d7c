"""Features on disk: a growing .npy file with a table of ids beside it, or one parquet file; written in parts."""

import io
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import pandas as pd

from longseq.errors import ConfigError
from longseq.pipelines.prediction_files import check_place, writing

FORMATS = (".npy", ".parquet")


class FeatureWriter(ABC):
    """Takes parts in order. The output stands under its name only when it is complete.

    Args:
        path: of the output.
        per_position: rows have several vectors, one behind the other.
    """

    def __init__(self, path: Path, *, per_position: bool) -> None:
        self.path, self.per_position = path, per_position
        self.partial = path.with_name(f".{path.name}.partial")
        check_place(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def add(self, names: pd.DataFrame, rows: list[np.ndarray]) -> None:
        """The next rows: what names each, and its vectors, (D,) or (L, D)."""

    @abstractmethod
    def finish(self) -> list[Path]:
        """Closes the output, gives it its name, and returns what was written."""

    @abstractmethod
    def abort(self) -> None:
        """Removes what was begun."""


def open_writer(path: Path, *, per_position: bool) -> FeatureWriter:
    """The writer for a path.

    Raises:
        ConfigError: for an unknown ending.
    """
    if path.suffix == ".npy":
        return NpyWriter(path, per_position=per_position)
    if path.suffix == ".parquet":
        return ParquetWriter(path, per_position=per_position)
    raise ConfigError(f"output must end with {' or '.join(FORMATS)}, found {path.name}")


class NpyWriter(FeatureWriter):
    """One float32 array (rows, D), or (all positions, D) with `vector_start` and `vector_end` of each row in the table of ids.

    The header is written again at the end: numpy leaves room in it for the length to grow.
    """

    def __init__(self, path: Path, *, per_position: bool) -> None:
        super().__init__(path, per_position=per_position)
        self.names = path.with_suffix(".csv")
        self.partial_names = self.names.with_name(f".{self.names.name}.partial")
        if self.names.exists() and not path.exists():
            # Not of an earlier command: perhaps the very file that is read.
            raise ConfigError(
                f"output={path} puts the rows' ids into {self.names}, which is there already: choose another name, or .parquet"
            )
        with writing(path):
            self.file = self.partial.open("wb")
        self.n_vectors, self.width = 0, 0
        self._has_names = False

    def add(self, names: pd.DataFrame, rows: list[np.ndarray]) -> None:
        vectors = np.concatenate([np.atleast_2d(row) for row in rows]).astype("<f4", copy=False)
        if not self.width:
            self.width = vectors.shape[1]
            self.file.write(self._header())
        if self.per_position:
            ends = self.n_vectors + np.cumsum([len(row) for row in rows])
            names = names.assign(vector_start=ends - [len(row) for row in rows], vector_end=ends)
        vectors.tofile(self.file)
        self.n_vectors += len(vectors)
        names.to_csv(self.partial_names, mode="a" if self._has_names else "w", header=not self._has_names, index=False)
        self._has_names = True

    def _header(self) -> bytes:
        out = io.BytesIO()
        facts = {"descr": "<f4", "fortran_order": False, "shape": (self.n_vectors, self.width)}
        np.lib.format.write_array_header_1_0(out, facts)
        return out.getvalue()

    def finish(self) -> list[Path]:
        self.file.seek(0)
        self.file.write(self._header())
        self.file.close()
        self.partial_names.replace(self.names)
        self.partial.replace(self.path)
        return [self.path, self.names]

    def abort(self) -> None:
        self.file.close()
        self.partial.unlink(missing_ok=True)
        self.partial_names.unlink(missing_ok=True)


class ParquetWriter(FeatureWriter):
    """One row per input row: what names it, and `embedding`, a list of D numbers, or a list of such lists."""

    def __init__(self, path: Path, *, per_position: bool) -> None:
        super().__init__(path, per_position=per_position)
        self.writer = None

    def add(self, names: pd.DataFrame, rows: list[np.ndarray]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        width = rows[0].shape[-1]
        flat = pa.array(np.concatenate([np.atleast_2d(row) for row in rows]).astype(np.float32, copy=False).ravel())
        vectors = pa.FixedSizeListArray.from_arrays(flat, width)
        if self.per_position:
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
            vectors = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), vectors)
        table = pa.Table.from_pandas(names, preserve_index=False).append_column("embedding", vectors)
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.partial, table.schema)
        self.writer.write_table(table.cast(self.writer.schema))

    def finish(self) -> list[Path]:
        if self.writer is not None:
            self.writer.close()
            self.partial.replace(self.path)
        return [self.path]

    def abort(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.partial.unlink(missing_ok=True)
