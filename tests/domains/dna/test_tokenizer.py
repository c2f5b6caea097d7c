"""Ids, strands and the saved form of the nucleotide tokenizer."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from longseq.domains.dna.tokenizer import (
    COMPLEMENT_IDS,
    TOKENS,
    NucleotideTokenizer,
    reverse_complement_batch,
    reverse_complement_ids,
    reverse_complement_text,
)
from longseq.errors import DataError


def test_ids_are_those_of_hyenadna_and_caduceus() -> None:
    assert TOKENS == ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
    tokenizer = NucleotideTokenizer()
    assert tokenizer.encode("ACGTN").tolist() == [7, 8, 9, 10, 11]
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.pad_id, tokenizer.unk_id) == (0, 1, 3, 4, 6)


@pytest.mark.parametrize("kind", [str, bytes, bytearray, memoryview, np.ndarray])
def test_every_kind_of_text_is_read(kind: type) -> None:
    data = b"acgtuACGTURYKMSWBDHVn"
    given = {str: data.decode(), np.ndarray: np.frombuffer(data, np.uint8)}.get(kind)
    ids = NucleotideTokenizer().encode(kind(data) if given is None else given)  # type: ignore[arg-type]
    assert ids.dtype == np.uint8
    assert ids.tolist() == [7, 8, 9, 10, 10] * 2 + [11] * 11


@pytest.mark.parametrize(
    ("text", "found"),
    [("ACGE", "protein"), ("MKTAYIAKQR", "protein"), ("AC-GT", "gaps"), ("AC GT", "' '"), ("ACé", r"'\?'"), ("AC1", "'1'")],
)
def test_other_characters_are_refused_and_named(text: str, found: str) -> None:
    with pytest.raises(DataError, match=found):
        NucleotideTokenizer().encode(text, name="record 'x'")
    assert NucleotideTokenizer().encode(text, unknown="token").tolist().count(6) >= 1


def test_special_tokens_and_decoding() -> None:
    tokenizer = NucleotideTokenizer(add_cls=True, add_sep=True)
    ids = tokenizer.encode("ACGTN")
    assert ids.tolist() == [0, 7, 8, 9, 10, 11, 1]
    assert tokenizer.decode(ids) == "ACGTN"
    assert tokenizer.decode(ids, skip_special=False) == "[CLS]ACGTN[SEP]"
    with pytest.raises(ValueError, match=r"0\.\.11"):
        tokenizer.decode(np.array([12]))


def test_reverse_complement_of_text_and_ids_agree() -> None:
    text = "AACGTNNRYacg"
    assert reverse_complement_text(text) == "cgtRYNNACGTT"
    tokenizer = NucleotideTokenizer()
    expected = tokenizer.encode(reverse_complement_text(text))
    assert reverse_complement_ids(tokenizer.encode(text)).tolist() == expected.tolist()
    assert tokenizer.reverse_complement(expected).tolist() == tokenizer.encode(text).tolist()
    rows = np.random.default_rng(0).integers(0, 12, (3, 7), dtype=np.uint8)
    assert np.array_equal(reverse_complement_ids(reverse_complement_ids(rows)), rows)
    assert [COMPLEMENT_IDS[i] for i in COMPLEMENT_IDS] == list(range(12))


@pytest.mark.parametrize("side", ["left", "right"])
def test_reverse_complement_of_a_batch_leaves_the_padding_in_place(side: str) -> None:
    tokenizer = NucleotideTokenizer()
    texts = ["ACGTTN", "G", "AAC"]
    ids_BL, mask_BL = torch.full((3, 6), 4), torch.zeros(3, 6, dtype=torch.bool)
    for row, text in enumerate(texts):
        place = slice(0, len(text)) if side == "right" else slice(6 - len(text), 6)
        ids_BL[row, place] = torch.from_numpy(tokenizer.encode(text).copy()).long()
        mask_BL[row, place] = True
    other_BL = reverse_complement_batch(ids_BL, mask_BL)
    assert [tokenizer.decode(row.numpy()) for row in other_BL] == [reverse_complement_text(text) for text in texts]
    assert torch.equal(other_BL == 4, ~mask_BL)
    assert torch.equal(reverse_complement_batch(other_BL, mask_BL), ids_BL)
    assert torch.equal(reverse_complement_batch(ids_BL[:1])[0], other_BL[0])


def test_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer = NucleotideTokenizer(add_sep=True)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = NucleotideTokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.to_dict() == tokenizer.to_dict()
    assert loaded.encode("acgu").tolist() == [7, 8, 9, 10, 1]
    characters = tokenizer.to_dict()["characters"]
    assert (characters["a"], characters["U"], characters["R"]) == (7, 10, 11)
    assert "X" not in characters


def test_another_tokenizers_description_is_refused() -> None:
    values = NucleotideTokenizer().to_dict()
    with pytest.raises(DataError, match="'nucleotide'"):
        NucleotideTokenizer.from_dict(values | {"type": "bpe"})
    with pytest.raises(DataError, match="in A, C"):
        NucleotideTokenizer.from_dict(values | {"vocab": values["vocab"] | {"A": 8, "C": 7}})


def test_the_benchmark_runs_and_beats_the_character_loop() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "bench_dna_tokenizer.py"
    spec = importlib.util.spec_from_file_location("bench_dna_tokenizer", path)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    rates = bench.measure(megabases=0.5)
    assert rates["NucleotideTokenizer.encode, bytes"] > 3 * rates["character loop"]
