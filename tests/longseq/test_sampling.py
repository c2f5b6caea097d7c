"""The sampler: seeds, cuts of the distribution, and steps in constant memory."""

from typing import Any

import pytest
import torch

from longseq.backbone import state_bytes
from longseq.errors import ConfigError
from longseq.model import SequenceModel, build_model
from longseq.sampling import draw, generate, sample_tokens


def language_model(**backbone: Any) -> SequenceModel:
    torch.manual_seed(0)
    options = {"name": "mamba", "d_model": 16, "n_layers": 1, **backbone}
    config = {
        "backbone": options,
        "embedding": {"name": "token", "vocab_size": 8},
        "head": {"name": "token", "n_outputs": 8},
        "task": "lm",
    }
    model = build_model(config).eval()
    torch.nn.init.normal_(model.head.projection.weight)  # type: ignore[union-attr, arg-type]
    return model


PROMPT = torch.tensor([[1, 2, 3], [3, 2, 1]])


def test_the_same_seed_gives_the_same_tokens() -> None:
    model = language_model()
    first = generate(model, PROMPT, 30, seed=1)
    assert first.shape == (2, 30) and first.dtype == torch.int64
    assert torch.equal(first, generate(model, PROMPT, 30, seed=1))
    assert not torch.equal(first, generate(model, PROMPT, 30, seed=2))


def test_greedy_generation_equals_whole_passes() -> None:
    model = language_model()
    found, ids = generate(model, PROMPT, 12, temperature=0), PROMPT
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, ids[:, 3:])


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = language_model(), torch.randint(0, 8, (1, 50), generator=torch.Generator().manual_seed(0))
    whole = generate(model, prompt, 10, temperature=0)
    monkeypatch.setattr("longseq.sampling.PREFILL", 7)
    assert torch.equal(whole, generate(model, prompt, 10, temperature=0))


def test_the_state_stays_as_large_as_it_was() -> None:
    sizes = {state_bytes(state) for _, state in sample_tokens(language_model(), PROMPT, 40)}
    assert len(sizes) == 1


LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.79}, {0, 1}),
        ({"top_p": 0.81}, {0, 1, 2}),
        ({"top_p": 0.01}, {0}),
        ({"allowed": [1, 3]}, {1, 3}),
        ({"allowed": [1, 3], "temperature": 0.0}, {1}),
        ({"temperature": 0.01}, {0}),
    ],
)
def test_cuts_of_the_distribution(options: dict[str, Any], possible: set[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = draw(LOGITS.expand(400, -1), generator, **options)
    assert set(drawn.tolist()) == possible


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"n_tokens": -1}, "max_new_tokens"),
        ({"prompt_BL": torch.zeros(1, 0, dtype=torch.int64)}, "at least one token"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(language_model(), **{"prompt_BL": PROMPT, "n_tokens": 2, **options})


def test_models_that_cannot_continue_say_why() -> None:
    with pytest.raises(ConfigError, match="sees both sides"):
        generate(language_model(bidirectional=True), PROMPT, 1)
    model = language_model()
    model.config["task"] = "frames"
    with pytest.raises(ConfigError, match="task=frames"):
        generate(model, PROMPT, 1)
    with pytest.raises(ConfigError, match="10 positions"):
        generate(language_model(name="hyena", max_length=10), PROMPT, 20)
