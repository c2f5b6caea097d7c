"""Sequences that clients of a served model send: letters in JSON, or files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from longseq.domains.dna.formats import FASTA_SUFFIXES, FASTQ_SUFFIXES
from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.domains.requests import Asked, OpenFile, kind
from longseq.domains.requests import Requests as BaseRequests
from longseq.errors import DataError


class Requests(BaseRequests):
    """DNA: `{"sequence": "ACGT"}`, `{"sequences": [...]}`, FASTA, FASTQ, csv."""

    keys: ClassVar[Mapping[str, str]] = {"sequence": "letters", "sequences": "a list of them"}
    suffixes = (*FASTA_SUFFIXES, *FASTQ_SUFFIXES, ".csv", ".tsv", ".txt")
    file_options: ClassVar[Mapping[str, Any]] = {"on_long": "error"}

    def __init__(self, config: Mapping[str, Any], open_file: OpenFile, max_length: int, max_rows: int) -> None:
        super().__init__(config, open_file, max_length, max_rows)
        if config.get("tokenizer"):
            # Raises DataError if the model was trained with other ids.
            NucleotideTokenizer.from_dict(config["tokenizer"])

    def read(self, body: Mapping[str, Any]) -> Asked:
        if "sequence" in body and "sequences" in body:
            raise DataError("give either sequence or sequences, not both")
        if "sequence" in body:
            return Asked([self.ids(body["sequence"], "sequence")], [{"id": "0"}])
        given = body["sequences"]
        if not isinstance(given, list):
            raise DataError(f"sequences must be a list of texts, found {kind(given)}")
        self.check_rows(len(given))
        rows = [self.ids(letters, f"sequences[{index}]") for index, letters in enumerate(given)]
        return Asked(rows, [{"id": str(index)} for index in range(len(rows))])

    def ids(self, letters: Any, name: str) -> np.ndarray:
        """Token ids (L,) of a sequence."""
        if not isinstance(letters, str):
            raise DataError(f"{name} must be text such as ACGT, found {kind(letters)}")
        self.check_length(len(letters), name, "letters")
        return NucleotideTokenizer().encode(letters, name=name).astype(np.int64)

    def check_file(self, path: Path) -> None:
        super().check_file(path)
        if path.suffix in (".csv", ".tsv", ".txt"):
            self.check_table(path, 2 + self.max_rows)
            return
        mark = b"\n>" if path.suffix in FASTA_SUFFIXES else b"\n@"
        data = path.read_bytes()
        # Qualities of FASTQ may begin with an @ as well: every second one at most.
        count = 1 + data.count(mark)
        self.check_rows(count if mark == b"\n>" else (count + 1) // 2)

    def chunk(self, message: Mapping[str, Any] | bytes | str) -> np.ndarray:
        if isinstance(message, (bytes, str)):
            letters = message if isinstance(message, str) else message.decode("latin-1")
        elif set(message) == {"sequence"}:
            letters = message["sequence"]
        else:
            raise DataError(f'a message must be letters, or {{"sequence": "ACGT"}}; found the keys {", ".join(message) or "-"}')
        return self.ids(letters, "sequence")

    def more(self, outputs: np.ndarray, names: Mapping[str, Any]) -> dict[str, Any]:
        del names
        if self.config.get("task") == "profile":
            return {"bin_size": self.config["head"]["bin_size"]}
        return {"stretches": self.stretches(outputs)} if self.config.get("task") == "base_labels" else {}

    def stretches(self, chances_LO: np.ndarray) -> list[dict[str, Any]]:
        """Stretches of one label, without those of the background; counted from 0, the end excluded."""
        labels, said = self.config["labels"], chances_LO.argmax(1)
        starts = np.flatnonzero(np.diff(said, prepend=-1))
        ends = np.append(starts[1:], len(said))
        return [
            {"start": int(start), "end": int(end), "label": labels[said[start]]}
            for start, end in zip(starts, ends, strict=True)
            if labels[said[start]] != self.config.get("background")
        ]

    def example(self) -> dict[str, Any]:
        return {"sequence": "GATTACA" * 8}
