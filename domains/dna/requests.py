"""Sequences that clients of a served model send: letters in JSON, or files."""

from collections.abc import Mapping
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

    def chunk(self, message: Mapping[str, Any] | bytes) -> np.ndarray:
        if isinstance(message, bytes):
            letters = message.decode("latin-1")
        elif set(message) == {"sequence"}:
            letters = message["sequence"]
        else:
            raise DataError(f'a message must be letters, or {{"sequence": "ACGT"}}; found the keys {", ".join(message) or "-"}')
        return self.ids(letters, "sequence")

    def example(self) -> dict[str, Any]:
        return {"sequence": "GATTACA" * 8}
