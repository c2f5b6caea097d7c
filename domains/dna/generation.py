"""Sequences that a language model of DNA makes up, as FASTA."""

from pathlib import Path

import numpy as np

from longseq.checkpoint import write_atomically
from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.domains.generation import Generation

LINE = 60


class Generated(Generation):
    """Letters in, letters out; without a prompt each sample begins with a base drawn at random: a model needs one."""

    suffixes = (".fa", ".fasta", ".fna")
    allowed = NucleotideTokenizer.base_ids
    default_tokens = 1000

    def prompt(self, given: str | None, n_samples: int, seed: int) -> np.ndarray:
        if not given:
            bases = np.array(NucleotideTokenizer.base_ids)
            return np.random.default_rng(seed).choice(bases, (n_samples, 1)).astype(np.int64)
        ids = NucleotideTokenizer().encode(given.strip(), name="prompt").astype(np.int64)
        return np.tile(ids, (n_samples, 1))

    def write(self, given: str | None, prompt: np.ndarray, drawn: np.ndarray, output: Path | None) -> list[Path]:
        tokenizer, records = NucleotideTokenizer(), []
        for i, ids in enumerate(np.concatenate([prompt, drawn], 1), start=1):
            letters = tokenizer.decode(ids)
            lines = [letters[start : start + LINE] for start in range(0, len(letters), LINE)]
            about = f"prompt={prompt.shape[1]} generated={drawn.shape[1]}"
            records.append("\n".join([f">sample_{i} {about}", *lines]) + "\n")
        if output is None:
            print("".join(records), end="")
            return []
        write_atomically(output, "".join(records))
        return [output]
