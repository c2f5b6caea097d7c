"""One token per nucleotide, with the ids of HyenaDNA and Caduceus.

Both published tokenizers give A, C, G, T and N the ids 7 to 11 after seven special tokens; checkpoints of either
are used without a remapping. Unlike HyenaDNA's own tokenizer, lower case (soft-masked repeats) is read as upper
case and not as [UNK].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longseq.errors import DataError

if TYPE_CHECKING:
    import torch

SPECIAL_TOKENS = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]")
TOKENS = (*SPECIAL_TOKENS, "A", "C", "G", "T", "N")
CLS_ID, SEP_ID, BOS_ID, MASK_ID, PAD_ID, RESERVED_ID, UNK_ID, A_ID, C_ID, G_ID, T_ID, N_ID = range(12)
AMBIGUITY_CODES = "RYSWKMBDHV"

# A and T, C and G change places; everything else, N included, is its own complement.
COMPLEMENT_IDS = (0, 1, 2, 3, 4, 5, 6, T_ID, G_ID, C_ID, A_ID, N_ID)

# Amino-acid letters that are no nucleotide code: one of them in "DNA" means that a protein was given.
_PROTEIN_ONLY = frozenset("EFILPQXZ*")
_CHARACTER_IDS = {"A": A_ID, "C": C_ID, "G": G_ID, "T": T_ID, "U": T_ID, "N": N_ID} | dict.fromkeys(AMBIGUITY_CODES, N_ID)


def _byte_table(character_ids: dict[str, int]) -> bytes:
    table = bytearray([UNK_ID]) * 256
    for character, token in character_ids.items():
        table[ord(character.upper())] = table[ord(character.lower())] = token
    return bytes(table)


# bytes.translate with a 256-entry table runs at memory speed; numpy.take would widen every index to 64 bits first.
ENCODE_TABLE = _byte_table(_CHARACTER_IDS)
_DECODE_TABLE = bytes(ord(TOKENS[i]) if A_ID <= i <= N_ID else ord("?") for i in range(256))
_COMPLEMENT_ID_TABLE = bytes(COMPLEMENT_IDS) + bytes(range(12, 256))
# The ambiguity codes pair up as well: R (A or G) with Y (C or T), K with M, B with V, D with H; S and W with themselves.
_COMPLEMENT_CHARACTERS = bytes.maketrans(b"ACGTURYKMBVDHacgturykmbvdh", b"TGCAAYRMKVBHDtgcaayrmkvbhd")


def invalid_characters(text: str | bytes) -> str:
    """Describes the characters of `text` that are no nucleotide codes, for error messages; empty if there are none."""
    data = _as_bytes(text)
    bad = data.translate(None, bytes(i for i in range(256) if ENCODE_TABLE[i] != UNK_ID))
    if not bad:
        return ""
    letters = bad.decode("latin-1").upper()
    shown = ", ".join(repr(character) for character in sorted(set(letters), key=letters.index)[:8])
    position = next(i for i, byte in enumerate(data) if ENCODE_TABLE[byte] == UNK_ID)
    text_shown = f"{shown} (first at base {position + 1}, {len(bad)} in all)"
    if _PROTEIN_ONLY & set(letters):
        return f"{text_shown}; this looks like protein"
    if set(letters) <= {"-", "."}:
        return f"{text_shown}; gaps of an alignment must be removed"
    return text_shown


def _as_bytes(sequence: str | bytes | bytearray | memoryview | NDArray[np.uint8]) -> bytes:
    if isinstance(sequence, str):
        # A character outside ASCII becomes '?', which is no nucleotide, and keeps the length.
        return sequence.encode("ascii", "replace")
    if isinstance(sequence, np.ndarray):
        return np.ascontiguousarray(sequence, dtype=np.uint8).tobytes()
    return bytes(sequence)


def encode_bytes(data: bytes | bytearray) -> NDArray[np.uint8]:
    """Turns characters into token ids without looking for invalid ones, which become [UNK].

    Args:
        data: The characters, one byte each.

    Returns:
        Token ids, uint8, read-only, as long as `data`.

    Cost: one pass at memory speed.
    """
    return np.frombuffer(data.translate(ENCODE_TABLE), dtype=np.uint8)


def reverse_complement_text(sequence: str) -> str:
    """The other strand, read 5' to 3': reversed, with A-T and C-G (and the ambiguity codes) exchanged; case is kept."""
    return sequence.encode("ascii").translate(_COMPLEMENT_CHARACTERS)[::-1].decode("ascii")


def reverse_complement_ids(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The other strand of an id array: reversed along the last axis, 7-10 and 8-9 exchanged.

    Args:
        ids: Token ids, uint8, any shape whose last axis is the sequence.

    Returns:
        A new array of the same shape.
    """
    flat = np.frombuffer(np.ascontiguousarray(ids, dtype=np.uint8).tobytes().translate(_COMPLEMENT_ID_TABLE), dtype=np.uint8)
    return np.ascontiguousarray(flat.reshape(ids.shape)[..., ::-1])


def reverse_complement_batch(ids_BL: torch.Tensor, mask_BL: torch.Tensor | None = None) -> torch.Tensor:
    """The other strand of a padded batch; padding stays where it is.

    Each row's real positions, one contiguous run, are reversed among themselves, so that right- and left-padded
    rows keep their mask. A plain flip would move right padding to the front.

    Args:
        ids_BL: Token ids, integer, (B, L).
        mask_BL: True where real, (B, L); None if nothing is padded.

    Returns:
        Token ids, (B, L), same dtype and device.
    """
    import torch

    complement = torch.arange(max(16, len(COMPLEMENT_IDS)), dtype=ids_BL.dtype, device=ids_BL.device)
    complement[: len(COMPLEMENT_IDS)] = torch.tensor(COMPLEMENT_IDS, dtype=ids_BL.dtype, device=ids_BL.device)
    other_BL = complement[ids_BL.long()]
    if mask_BL is None:
        return other_BL.flip(-1)
    position_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
    first_B1 = mask_BL.int().argmax(dim=1, keepdim=True)
    length_B1 = mask_BL.sum(dim=1, keepdim=True)
    mirrored_BL = 2 * first_B1 + length_B1 - 1 - position_L
    source_BL = torch.where(mask_BL, mirrored_BL, position_L.expand_as(ids_BL))
    return other_BL.gather(1, source_BL)


class NucleotideTokenizer:
    """Single-nucleotide tokenizer; ids as in HyenaDNA and Caduceus.

    Lower case is read as upper case, U as T, the IUPAC ambiguity codes (R, Y, S, ...) as N. It must not be confused
    with k-mer tokenizers: every base is one token, so positions in the model are positions in the sequence.

    Args:
        add_cls: Put [CLS] before the sequence, as HyenaDNA's tokenizer does outside its own recipes.
        add_sep: Put [SEP], the end token of both models, behind the sequence.
    """

    vocab_size = len(TOKENS)
    # The published embedding tables have 16 rows; the last four are never looked up.
    padded_vocab_size = 16
    cls_id, sep_id, bos_id, mask_id, pad_id, unk_id, n_id = CLS_ID, SEP_ID, BOS_ID, MASK_ID, PAD_ID, UNK_ID, N_ID
    eos_id = SEP_ID
    base_ids = (A_ID, C_ID, G_ID, T_ID)
    complement_ids = COMPLEMENT_IDS

    def __init__(self, add_cls: bool = False, add_sep: bool = False) -> None:
        self.add_cls = add_cls
        self.add_sep = add_sep

    def encode(
        self,
        sequence: str | bytes | bytearray | memoryview | NDArray[np.uint8],
        *,
        name: str = "the sequence",
        unknown: str = "error",
    ) -> NDArray[np.uint8]:
        """Turns one sequence into token ids.

        Args:
            sequence: The letters, as text or as ASCII bytes (an array holds character codes, not ids).
            name: What to call the sequence in an error.
            unknown: "error" refuses characters that are no nucleotide codes; "token" reads them as [UNK].

        Returns:
            Token ids, uint8, (L,), plus one for each of [CLS] and [SEP] that is added.

        Raises:
            DataError: A character is no nucleotide code and `unknown` is "error".

        Cost: about one nanosecond a base.
        """
        data = _as_bytes(sequence)
        ids = encode_bytes(data)
        if unknown == "error" and (ids == UNK_ID).any():
            raise DataError(f"{name} is not DNA: it holds {invalid_characters(data)}; expected A, C, G, T, U, N or IUPAC codes")
        if self.add_cls or self.add_sep:
            return self.add_special_tokens(ids)
        return ids

    def add_special_tokens(self, ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Puts [CLS] before and [SEP] behind the ids, as the tokenizer is set."""
        before = [CLS_ID] if self.add_cls else []
        behind = [SEP_ID] if self.add_sep else []
        return np.concatenate([np.array(before, np.uint8), ids, np.array(behind, np.uint8)])

    def decode(self, ids: NDArray[Any], *, skip_special: bool = True) -> str:
        """Turns ids back into letters; special tokens are left out or written as [PAD] and so on."""
        flat = np.asarray(ids).ravel()
        if flat.size and (flat.min() < 0 or flat.max() >= self.vocab_size):
            raise ValueError(f"ids must lie in 0..{self.vocab_size - 1}, found {flat.min()}..{flat.max()}")
        if skip_special:
            flat = flat[flat >= A_ID]
        elif (flat < A_ID).any():
            return "".join(TOKENS[i] for i in flat)
        return flat.astype(np.uint8).tobytes().translate(_DECODE_TABLE).decode("ascii")

    def reverse_complement(self, ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The other strand of an id array (without [CLS] and [SEP])."""
        return reverse_complement_ids(ids)

    def to_dict(self) -> dict[str, Any]:
        """Everything another program needs to encode alike, as plain JSON values."""
        return {
            "type": "nucleotide",
            "vocab": {token: i for i, token in enumerate(TOKENS)},
            "characters": {chr(byte): token for byte, token in enumerate(ENCODE_TABLE) if token != UNK_ID},
            "complement": list(COMPLEMENT_IDS),
            "add_cls": self.add_cls,
            "add_sep": self.add_sep,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NucleotideTokenizer:
        """Rebuilds the tokenizer that `to_dict` described.

        Raises:
            DataError: The description is of another tokenizer or gives a token another id.
        """
        if values.get("type") != "nucleotide":
            raise DataError(f"tokenizer type must be 'nucleotide', found {values.get('type')!r}")
        expected = {token: i for i, token in enumerate(TOKENS)}
        found = values.get("vocab", expected)
        if found != expected:
            differing = sorted({str(token) for token, _ in set(found.items()) ^ set(expected.items())})
            raise DataError(f"the tokenizer's vocabulary differs from the nucleotide one in {', '.join(differing)}")
        return cls(add_cls=bool(values.get("add_cls", False)), add_sep=bool(values.get("add_sep", False)))

    def save(self, path: str | Path) -> None:
        """Writes `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> NucleotideTokenizer:
        """Reads what `save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
