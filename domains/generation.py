"""How a domain's language models begin a sequence, and how people want to see what they made up."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longseq.errors import ConfigError


class Generation(ABC):
    """Prompts to tokens, and tokens to files; a domain's is the class `Generated` of its file `generation.py`.

    Args:
        config: the model's config.json.

    Attributes:
        suffixes: of the files that can be written; the first is taken where none is named.
        allowed: ids that may be drawn; None for all.
        default_tokens: drawn where the user says nothing.
    """

    suffixes: Sequence[str]
    allowed: Sequence[int] | None = None
    default_tokens: int

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    @abstractmethod
    def prompt(self, given: str | None, n_samples: int, seed: int) -> np.ndarray:
        """Ids (n_samples, L) that stand before what is drawn.

        Raises:
            DataError: for what is no prompt.
        """

    @abstractmethod
    def write(self, given: str | None, prompt: np.ndarray, drawn: np.ndarray, output: Path | None) -> list[Path]:
        """Writes the samples, or prints them where that makes sense.

        Args:
            given: the prompt as the user gave it; what was not given is no part of a sample unless it had to be drawn.
            prompt: ids (n_samples, L).
            drawn: ids (n_samples, T).
            output: a file; None for the domain's usual way.

        Returns:
            The files that were written.
        """

    def check_output(self, output: Path | None) -> None:
        """Raises ConfigError for a file of another kind."""
        if output is not None and output.suffix.lower() not in self.suffixes:
            raise ConfigError(f"output={output}: the name must end in {', '.join(self.suffixes)}")


def numbered(output: Path, n_samples: int) -> list[Path]:
    """A path for each sample: sound.wav, or sound_1.wav, sound_2.wav and so on."""
    if n_samples == 1:
        return [output]
    return [output.with_name(f"{output.stem}_{i}{output.suffix}") for i in range(1, n_samples + 1)]
