"""The model's outputs for one row as JSON values, by task."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from longseq.domains.requests import Requests
from longseq.pipelines.serving.limits import Refusal

# Tasks whose numbers at each position belong to labels, which stand beside them.
NAMED = ("frames", "base_labels", "profile")


class Answers:
    """Says what the model answers.

    Args:
        config: the model's config.json.
        task: what it was trained for.
        output: name of the model's output, such as `probabilities`.
        requests: the domain's reader, which may add to answers.
    """

    def __init__(self, config: Mapping[str, Any], task: str, output: str, requests: Requests) -> None:
        self.config, self.task, self.output, self.requests = config, task, output, requests

    def row(self, outputs: np.ndarray, inputs: np.ndarray, names: Mapping[str, Any], full: bool) -> dict[str, Any]:
        """The answer for a row.

        Args:
            outputs: without the batch axis and without padding.
            inputs: the row as the model took it.
            names: what identifies it.
            full: with what is large and rarely wanted: the logits of language models, the scores of every symbol.

        Raises:
            Refusal: 422 if the answer is no number.
        """
        found = self._special(outputs, inputs, names, full) if self.task in SPECIAL else self.chunk(outputs)
        return {**names, **found, **self.requests.more(outputs, names)}

    def _special(self, outputs: np.ndarray, inputs: np.ndarray, names: Mapping[str, Any], full: bool) -> dict[str, Any]:
        found = SPECIAL[self.task](self, outputs, inputs, names)
        return {**found, self.output: plain(outputs)} if full else found

    def chunk(self, outputs: np.ndarray) -> dict[str, Any]:
        """The answer as the task's own numbers, for a piece of a stream or where a task needs nothing else."""
        if self.task not in ("classification", "multilabel", "regression"):
            found: dict[str, Any] = {self.output: plain(outputs)}
            return {"labels": self._labels(outputs.shape[-1]), **found} if self.task in NAMED else found
        labels = self._labels(len(outputs))
        if not np.isfinite(outputs).all():
            raise Refusal(422, "the model's answer is not a number: the input holds values far from those of its training data")
        values = dict(zip(labels, outputs.tolist(), strict=True))
        if self.task == "classification":
            return {"label": labels[int(outputs.argmax())], self.output: values}
        if self.task == "multilabel":
            return {"labels": [label for label, value in values.items() if value > 0.5], self.output: values}
        return {self.output: values}

    def _labels(self, count: int) -> list[str]:
        return [str(label) for label in self.config.get("labels") or range(count)]

    # -- tasks with more to say

    def _forecast(self, outputs: np.ndarray, inputs: np.ndarray, names: Mapping[str, Any]) -> dict[str, Any]:
        del inputs, names
        return {"quantiles": self.config.get("quantiles"), self.output: plain(outputs)}

    def _likelihood(self, outputs: np.ndarray, inputs: np.ndarray, names: Mapping[str, Any]) -> dict[str, Any]:
        """Natural logarithms of what the model gave each token, knowing those before it; the first token has none."""
        del names
        scores = outputs[:-1].astype(np.float64)
        scores -= scores.max(-1, keepdims=True, initial=-np.inf)
        log_chances = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        given = log_chances[np.arange(len(scores)), inputs[1:].astype(np.int64)]
        bits = -given.mean() / np.log(2) if len(given) else None
        return {"log_likelihood": float(given.sum()), "bits_per_token": bits, "log_likelihoods": [None, *plain(given)]}

    def _text(self, outputs: np.ndarray, inputs: np.ndarray, names: Mapping[str, Any]) -> dict[str, Any]:
        """The text itself is what the domain adds."""
        del outputs, inputs, names
        return {}


# Methods by task.
SPECIAL: dict[str, Callable[[Answers, np.ndarray, np.ndarray, Mapping[str, Any]], dict[str, Any]]] = {
    "forecasting": Answers._forecast,
    "lm": Answers._likelihood,
    "ctc": Answers._text,
}


def plain(array: np.ndarray) -> list[Any]:
    """Nested lists; what is no number is null, for JSON has no other word."""
    if np.isfinite(array).all():
        return array.tolist()
    found = array.astype(object)
    found[~np.isfinite(array)] = None
    return found.tolist()
