"""Longformer: attention over a sliding window, with a few tokens that see and are seen by everything.

Equation: y_i = sum_j softmax_j(q_i k_j / sqrt(P)) v_j over |i - j| <= window and the global positions j
          y_g likewise over all j for a global token g, with projections of its own.
Good at documents, whose meaning is local but for a few tokens. Not full attention with a mask, which costs O(L^2), and not
attention in blocks: every position has its own window.

Paper: Longformer: The Long-Document Transformer, https://arxiv.org/abs/2004.05150.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from longseq.backbone import Mixer, State, zero_padding
from longseq.layers.compaction import Compaction, rows_from
from longseq.layers.rotary import Rotary
from longseq.ops.window_attention import window_attention
from longseq.registry import register_backbone


@register_backbone(
    "longformer",
    summary="sliding-window attention with global tokens, or causal with a fixed-size state",
    paper="https://arxiv.org/abs/2004.05150",
    cost="O(L * window)",
    state="window * dilation * (2 * d_model + 1), causal form only",
)
class Longformer(Mixer):
    """Window attention with rotary positions, and projections of their own for the global tokens.

    The bidirectional form lets each position see `window` neighbours on each side and the global tokens, which see
    everything; these are the first `n_global` real positions of each document, unless `global_mask_BL` names others
    (`global_tokens` does so for a whole backbone). The causal form sees `window` positions back, has no global tokens,
    and carries the last `window * dilation` keys and values as its state, however long the stream.

    Not to be confused with the published configuration's `attention_window`, which counts both sides: 512 there is 256
    here. At d_model 768 and window 256 a layer's attention costs as much as full attention over 513 positions.

    Args:
        d_model: width in and out, a multiple of n_heads.
        n_heads: heads of d_model / n_heads channels each (an even number for rotary positions).
        window: neighbours on each side; one number, or one per layer (repeated over depth).
        dilation: distance between neighbours; one number, or one per layer, such as `[1, 1, 2, 4]`.
        causal: the form for streams and language modelling.
        n_global: leading real positions that are global tokens; by default 1 (bidirectional) or 0 (causal).
        rotary: rotary positions; without them the positions must be in the embedding (as published checkpoints have).
        rotary_base: of the angles.
        bias: biases on the projections, as published checkpoints have.
        layer_index: place in the stack, which picks from `window` and `dilation`.

    Raises:
        ValueError: for heads that do not divide d_model, or global tokens in the causal form.

    Cost: time O(L (window + n_global) d_model) for the attention and O(L d_model^2) for the projections; memory
    O(L window) at most, never L^2.

    Paper: https://arxiv.org/abs/2004.05150, section 3.1; the global projections start as copies of the local ones, as in
    section 3.1 there. Differs from the authors' code in its rotary positions (off for parity) and in needing no padding
    of the length to a multiple of the window.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 4,
        window: int | Sequence[int] = 256,
        dilation: int | Sequence[int] = 1,
        causal: bool = False,
        n_global: int | None = None,
        rotary: bool = True,
        rotary_base: float = 10_000.0,
        bias: bool = True,
        layer_index: int = 0,
    ) -> None:
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"d_model={d_model} must be a multiple of n_heads={n_heads}")
        self.n_heads = n_heads
        self.window = _of_layer("window", window, layer_index, smallest=0)
        self.dilation = _of_layer("dilation", dilation, layer_index, smallest=1)
        self.causal = self.can_step = causal
        self.n_global = (0 if causal else 1) if n_global is None else n_global
        if self.n_global < 0 or (causal and self.n_global):
            raise ValueError(f"n_global={n_global}, causal={causal}: expected 0 or more, and 0 in the causal form")
        self.rotary = Rotary(d_model // n_heads, rotary_base) if rotary else None
        self.query, self.key, self.value = (nn.Linear(d_model, d_model, bias=bias) for _ in range(3))
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)
        if self.n_global:
            self.query_global, self.key_global, self.value_global = (_copy(x) for x in (self.query, self.key, self.value))
        self.global_mask_BL: Tensor | None = None

    def forward(
        self,
        x_BLD: Tensor,
        mask_BL: Tensor | None = None,
        segment_ids_BL: Tensor | None = None,
        global_mask_BL: Tensor | None = None,
    ) -> Tensor:
        """Mixes whole sequences; `global_mask_BL` (bool, True = global token) overrides the leading positions."""
        x_BLD = zero_padding(x_BLD, mask_BL)
        if global_mask_BL is None:
            global_mask_BL = self.global_mask_BL
        if global_mask_BL is not None and not self.n_global:
            raise ValueError("global tokens need the global projections: build the longformer with n_global=1 or more")
        max_global = None
        if global_mask_BL is None and self.n_global:
            global_mask_BL = leading_positions(x_BLD, self.n_global, mask_BL, segment_ids_BL)
            # Known without counting, which keeps the graph traceable; packed documents have leading tokens each.
            max_global = self.n_global if segment_ids_BL is None else None
        position_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        q_BLHP, k_BLHP, v_BLHP = self._project(x_BLD, position_L, self.query, self.key, self.value)
        rows: tuple[Tensor | None, ...] = (None, None, None)
        if global_mask_BL is not None:
            rows = self._project(x_BLD, position_L, self.query_global, self.key_global, self.value_global)
        y_BLHP = window_attention(
            q_BLHP,
            k_BLHP,
            v_BLHP,
            window=self.window,
            causal=self.causal,
            dilation=self.dilation,
            global_mask_BL=global_mask_BL,
            q_global_BLHP=rows[0],
            k_global_BLHP=rows[1],
            v_global_BLHP=rows[2],
            mask_BL=mask_BL,
            segment_ids_BL=segment_ids_BL,
            max_global=max_global,
        )
        return self.out_proj(y_BLHP.flatten(-2))

    def init_state(self, batch_size: int) -> State:
        """Keys before rotation, values, and 1.0 where a real position stood: the window before the next position."""
        if not self.causal:
            raise self.cannot_step()
        weight = self.query.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        reach, shape = self.window * self.dilation, (self.n_heads, weight.shape[0] // self.n_heads)

        def empty(*sizes: int) -> Tensor:
            return torch.zeros(batch_size, reach, *sizes, dtype=dtype, device=weight.device)

        return {"key": empty(*shape), "value": empty(*shape), "real": empty()}

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        if not self.causal:
            raise self.cannot_step()
        if mask_BL is None:
            return self._continue(x_BLD, state, None)
        # A row's window holds its real positions alone, wherever the chunk's padding stands.
        compaction = Compaction(mask_BL)
        y_BLD, state = self._continue(compaction.to_front(zero_padding(x_BLD, mask_BL)), state, compaction.count_B)
        return compaction.to_place(y_BLD), state

    def _continue(self, x_BLD: Tensor, state: State, count_B: Tensor | None) -> tuple[Tensor, State]:
        """The next positions of each row; the first `count` of them are real."""
        length, reach = x_BLD.shape[1], state["key"].shape[1]
        q_BLHP, k_BLHP, v_BLHP = (self._heads(layer(x_BLD)) for layer in (self.query, self.key, self.value))
        real_BL = x_BLD.new_ones(x_BLD.shape[:2])
        if count_B is not None:
            real_BL = (torch.arange(length, device=x_BLD.device) < count_B.unsqueeze(1)).to(x_BLD.dtype)
        fresh = {"key": k_BLHP, "value": v_BLHP, "real": real_BL}
        # The state keeps keys unrotated: distances alone matter, so no position is ever counted or runs out of digits.
        k_BMHP, v_BMHP, real_BM = (torch.cat((state[name].to(x.dtype), x), dim=1) for name, x in fresh.items())
        position_M = torch.arange(reach + length, device=x_BLD.device)
        y_BLHP = window_attention(
            self._rotate(q_BLHP, position_M[reach:]),
            self._rotate(k_BMHP, position_M),
            v_BMHP,
            window=self.window,
            causal=True,
            dilation=self.dilation,
            mask_BL=real_BM.bool(),
        )
        whole = {"key": k_BMHP, "value": v_BMHP, "real": real_BM}
        cut = {name: x[:, length:] if count_B is None else rows_from(x, count_B, reach) for name, x in whole.items()}
        kept = {name: x.to(state[name].dtype) for name, x in cut.items()}
        return self.out_proj(y_BLHP.flatten(-2)), kept

    def _project(
        self, x_BLD: Tensor, position_L: Tensor, query: nn.Linear, key: nn.Linear, value: nn.Linear
    ) -> tuple[Tensor, Tensor, Tensor]:
        q_BLHP, k_BLHP = (self._rotate(self._heads(layer(x_BLD)), position_L) for layer in (query, key))
        return q_BLHP, k_BLHP, self._heads(value(x_BLD))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.n_heads, -1))

    def _rotate(self, x_BLHP: Tensor, position_L: Tensor) -> Tensor:
        return x_BLHP if self.rotary is None else self.rotary(x_BLHP, position_L)

    def extra_repr(self) -> str:
        return f"window={self.window}, dilation={self.dilation}, causal={self.causal}, n_global={self.n_global}"


def leading_positions(x_BLD: Tensor, n_global: int, mask_BL: Tensor | None, segment_ids_BL: Tensor | None) -> Tensor:
    """(B, L) True at the first `n_global` real positions of each row, or of each document in a packed row."""
    real_BL = torch.ones_like(x_BLD[..., 0], dtype=torch.bool) if mask_BL is None else mask_BL
    count_BL = real_BL.long().cumsum(dim=1)
    if segment_ids_BL is not None:
        changes_BL = torch.zeros_like(real_BL)
        changes_BL[:, 1:] = segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
        # What was counted before a document began; the count never falls, so the latest start is the largest.
        before_BL = torch.where(changes_BL, count_BL - real_BL.long(), 0).cummax(dim=1).values
        count_BL = count_BL - before_BL
    return real_BL & (count_BL <= n_global)


@contextmanager
def global_tokens(module: nn.Module, global_mask_BL: Tensor) -> Iterator[None]:
    """Names the global tokens for every Longformer layer inside a module, for the duration of a `with` block.

    Args:
        module: a backbone, or anything that holds one.
        global_mask_BL: bool (B, L), True = global token, such as a question's tokens in question answering.

    Raises:
        ValueError: when the module holds no Longformer layer.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, Longformer)]
    if not layers:
        raise ValueError(f"{type(module).__name__} holds no longformer layer, so it has no global tokens to set")
    before = [layer.global_mask_BL for layer in layers]
    try:
        for layer in layers:
            layer.global_mask_BL = global_mask_BL
        yield
    finally:
        for layer, mask_BL in zip(layers, before, strict=True):
            layer.global_mask_BL = mask_BL


def _of_layer(name: str, value: int | Sequence[int], layer_index: int, smallest: int) -> int:
    values = [value] if isinstance(value, int) else list(value)
    if not values or min(values) < smallest:
        raise ValueError(f"{name}={value}: expected numbers of {smallest} or more, one for all layers or one per layer")
    return int(values[layer_index % len(values)])


def _copy(layer: nn.Linear) -> nn.Linear:
    copy = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    copy.load_state_dict(layer.state_dict())
    return copy
