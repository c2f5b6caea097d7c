"""Draws tokens from a language model, one after the other, each given all before it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from longseq.backbone import State
from longseq.errors import ConfigError
from longseq.heads import TokenHead
from longseq.model import SequenceModel

# Positions of the prompt that are read at once, which bounds the memory that a long one takes.
PREFILL = 8192


def generate(
    model: SequenceModel,
    prompt_BL: Tensor,
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    allowed: Sequence[int] | None = None,
) -> Tensor:
    """Continues prompts by drawing from the model's distribution: `p(x) ~ exp(logits / temperature)`, cut to the likeliest.

    Args:
        model: a language model whose backbone can step.
        prompt_BL: token ids `(B, L)`, at least one each.
        n_tokens: to draw for each row.
        temperature: below 1 is safer, above 1 wilder; 0 always takes the likeliest token.
        top_k: draw from so many of the likeliest tokens; None for all.
        top_p: draw from the fewest likeliest tokens whose probabilities sum up to this (nucleus sampling).
        seed: of the draws; the same seed gives the same tokens on every device.
        allowed: ids that may be drawn; None for all.

    Returns:
        The drawn ids `(B, n_tokens)`, int64, on the CPU.

    Raises:
        ConfigError: for an option out of range, or a model that cannot generate.

    Cost: the prompt once, in chunks; then one step per token, in constant time and memory where the backbone's state does not
    grow.
    Paper: nucleus sampling, https://arxiv.org/abs/1904.09751, section 3.1.
    """
    drawn = sample_tokens(
        model, prompt_BL, n_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, allowed=allowed
    )
    tokens = [token_B for token_B, _ in drawn]
    return torch.stack(tokens, 1) if tokens else torch.empty(len(prompt_BL), 0, dtype=torch.int64)


@torch.inference_mode()
def sample_tokens(
    model: SequenceModel,
    prompt_BL: Tensor,
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    allowed: Sequence[int] | None = None,
) -> Iterator[tuple[Tensor, State]]:
    """The same as `generate`, token by token: each `(B,)` of ids on the CPU, and the state before it is read."""
    check_sampling(model, prompt_BL, n_tokens, temperature, top_k, top_p)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    logits_BV, state = prefill(model, prompt_BL.to(device))
    for i in range(n_tokens):
        token_B = draw(logits_BV, generator, temperature=temperature, top_k=top_k, top_p=top_p, allowed=allowed)
        yield token_B, state
        if i + 1 < n_tokens:
            x_BLD, _ = model.embedding(token_B.unsqueeze(1).to(device))
            y_BD, state = model.backbone.step(x_BLD[:, 0], state)
            logits_BV = model.head(y_BD.unsqueeze(1))[:, 0]


def prefill(model: SequenceModel, prompt_BL: Tensor) -> tuple[Tensor, State]:
    """Reads prompts in chunks; the logits `(B, V)` behind them, and the state."""
    state = model.init_state(prompt_BL.shape[0])
    logits_BLV = torch.empty(0)
    for chunk_BL in prompt_BL.split(PREFILL, dim=1):
        logits_BLV, state = model.forward_chunk(chunk_BL, state)
    return logits_BLV[:, -1], state


def draw(
    logits_BV: Tensor,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    allowed: Sequence[int] | None = None,
) -> Tensor:
    """One id per row `(B,)`, on the CPU, where the generator's numbers are the same for every device."""
    logits_BV = logits_BV.float().cpu()
    if allowed is not None:
        kept_BV = torch.full_like(logits_BV, -torch.inf)
        kept_BV[:, list(allowed)] = logits_BV[:, list(allowed)]
        logits_BV = kept_BV
    if temperature == 0:
        return logits_BV.argmax(-1)
    # From the likeliest one down, and divided in double precision, so that no temperature above 0 gives an infinity or NaN.
    lower_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
    logits_BV = (lower_BV.double() / temperature).float()
    if top_k is not None and top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    chances_BV = logits_BV.softmax(-1)
    if top_p < 1:
        ordered_BV, places_BV = chances_BV.sort(dim=-1, descending=True, stable=True)
        # The likeliest is always kept: before it the sum is 0.
        tail_BV = ordered_BV.cumsum(-1) - ordered_BV >= top_p
        chances_BV = chances_BV.masked_fill(torch.zeros_like(tail_BV).scatter(1, places_BV, tail_BV), 0.0)
    return torch.multinomial(chances_BV, 1, generator=generator)[:, 0]


def check_sampling(
    model: SequenceModel, prompt_BL: Tensor, n_tokens: int, temperature: float, top_k: int | None, top_p: float
) -> None:
    """Raises ConfigError for an option out of range, or a model that cannot continue a sequence."""
    task = model.config.get("task", "lm")
    if task != "lm" or not isinstance(model.head, TokenHead):
        raise ConfigError(f"this model was trained with task={task}; only language models generate: train one with task=lm")
    if not model.backbone.can_step:
        raise ConfigError(
            f"{type(model.backbone).__name__} sees both sides of a position, so it cannot continue a sequence: generate with a "
            "model of a causal backbone (task=lm)"
        )
    if prompt_BL.ndim != 2 or prompt_BL.shape[1] == 0:
        raise ConfigError(f"the prompt must hold at least one token, found {tuple(prompt_BL.shape)}")
    if n_tokens < 0:
        raise ConfigError(f"max_new_tokens must be 0 or more, found {n_tokens}")
    if temperature < 0:
        raise ConfigError(f"temperature must be 0 (the likeliest token) or more, found {temperature}")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k must be at least 1, found {top_k}")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p must lie above 0 and be at most 1, found {top_p}")
    longest = model.backbone.max_length
    if longest is not None and prompt_BL.shape[1] + n_tokens > longest + 1:
        raise ConfigError(
            f"the prompt's {prompt_BL.shape[1]} tokens and max_new_tokens={n_tokens} exceed the {longest} positions that "
            "this backbone reads: ask for fewer, or give a shorter prompt"
        )
