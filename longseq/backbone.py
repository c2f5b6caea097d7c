"""The contracts of a token mixer and of a whole backbone, and `Stack`, the residual stack that most backbones are.

Shape letters: B batch, L length, D width. `mask_BL` is bool with True at real positions; `segment_ids_BL` are integers that
are equal along one packed document and change at the next; documents packed in one row do not see each other.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longseq.layers.drop_path import DropPath
from longseq.layers.marks import KeepsMarks
from longseq.layers.mlp import MLP
from longseq.layers.norms import Norm, build_norm
from longseq.layers.segments import number_segments
from longseq.ops.tracing import is_exporting

# A state is a tensor, or a dict or list of states. It is fp32 and differentiable, and its first dimension is the batch.
State = Any
# A residual stream, and what is still to be added to it: the sum is made together with the norm that follows.
Pending = tuple[Tensor, Tensor | None]


class Mixer(KeepsMarks, ABC):
    """One token-mixing layer, `(B, L, D) -> (B, L, D)`, with one signature for each way of running it.

    A causal mixer gives the same numbers in three ways: `forward` over a whole sequence, `forward_chunk` over consecutive
    chunks of any sizes, and `step` over single positions. A mixer that sees the future only has `forward`.

    Attributes:
        causal: position t never depends on positions after t.
        can_step: `init_state`, `forward_chunk` and `step` work.
        state_grows: the state's memory grows with the number of positions seen (up to `max_length` if that is set).
        max_length: the longest sequence it accepts, in positions; None for any length.
    """

    causal: bool = True
    can_step: bool = True
    state_grows: bool = False
    max_length: int | None = None

    @abstractmethod
    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        """Mixes whole sequences; what stands at masked positions changes no real position's output."""

    def init_state(self, batch_size: int) -> State:
        """The state before the first position, on the parameters' device, in fp32."""
        raise self.cannot_step()

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        """Continues from `state` over the next L positions; masked positions may only pad the row's beginning or end."""
        raise self.cannot_step()

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Continues from `state` by one position."""
        y_BLD, state = self.forward_chunk(x_BD.unsqueeze(1), state)
        return y_BLD.squeeze(1), state

    def cannot_step(self) -> ValueError:
        """The error of a network that needs the whole sequence."""
        return ValueError(
            f"{type(self).__name__} is not causal here, so it has no state to carry: run `forward` on whole sequences, "
            "or build the backbone with a causal form (list_backbones and `longseq list backbones` say which can step)"
        )


class Backbone(Mixer):
    """A whole network under the mixer's contract, `(B, L, d_model) -> (B, L, d_model)`.

    Masked positions come out as zeros.

    Attributes beyond the mixer's:
        d_model: width in and out.
        reverse_complement: the two halves of the width are the two strands, see `longseq.layers.reverse_complement`.
    """

    d_model: int
    reverse_complement: bool = False
    _state_form: Any = None

    def check_input(self, x_BLD: Tensor, mask_BL: Tensor | None, segment_ids_BL: Tensor | None = None) -> None:
        """Raises TypeError or ValueError that names the argument, what was found and what was expected."""
        if not x_BLD.is_floating_point():
            raise TypeError(f"x must be floating point, found {x_BLD.dtype}: embed token ids first (longseq.embeddings)")
        if x_BLD.ndim != 3 or x_BLD.shape[-1] != self.d_model:
            raise ValueError(f"x must be (batch, length, d_model={self.d_model}), found {tuple(x_BLD.shape)}")
        if is_exporting():
            return
        if x_BLD.shape[1] == 0:
            raise ValueError("x has length 0; the shortest sequence is one position")
        if mask_BL is not None and mask_BL.dtype != torch.bool:
            raise TypeError(f"mask must be bool with True at real positions, found {mask_BL.dtype}")
        if segment_ids_BL is not None and (segment_ids_BL.is_floating_point() or segment_ids_BL.dtype == torch.bool):
            raise TypeError(f"segment_ids must be integers, found {segment_ids_BL.dtype}")
        for name, tensor in (("mask", mask_BL), ("segment_ids", segment_ids_BL)):
            if tensor is not None and tensor.shape != x_BLD.shape[:2]:
                raise ValueError(f"{name} must be (batch, length) = {tuple(x_BLD.shape[:2])}, found {tuple(tensor.shape)}")
        if self.max_length is not None and x_BLD.shape[1] > self.max_length:
            raise ValueError(
                f"sequence of {x_BLD.shape[1]} positions is longer than max_length={self.max_length}: "
                "build the backbone with a larger max_length, or crop the sequences"
            )

    def check_step(self, x_BD: Tensor) -> None:
        """Raises TypeError or ValueError if a step's input is not `(batch, d_model)`."""
        if not x_BD.is_floating_point():
            raise TypeError(f"x must be floating point, found {x_BD.dtype}: embed token ids first (longseq.embeddings)")
        if x_BD.ndim != 2 or x_BD.shape[-1] != self.d_model:
            raise ValueError(f"a step's x must be (batch, d_model={self.d_model}), found {tuple(x_BD.shape)}")

    def check_state(self, batch_size: int, state: State) -> None:
        """Raises ValueError if the state was made for another batch size, or by another network."""
        for tensor in state_tensors(state):
            if tensor.ndim > 0 and tensor.shape[0] != batch_size:
                raise ValueError(
                    f"the state is for batch size {tensor.shape[0]}, the input has batch size {batch_size}: "
                    f"make it with init_state({batch_size})"
                )
        if torch.compiler.is_compiling():
            return
        if self._state_form is None:
            self._state_form = _form(self.init_state(1), self.state_grows)
        misfit = _misfit(self._state_form, _form(state, self.state_grows), "state")
        if misfit is not None:
            raise ValueError(f"{misfit}: the state is of another backbone; make it with init_state({batch_size})")


def state_tensors(state: State) -> list[Tensor]:
    """All tensors of a nested state."""
    if isinstance(state, Tensor):
        return [state]
    if state is None:
        return []
    children = state.values() if isinstance(state, dict) else state
    return [tensor for child in children for tensor in state_tensors(child)]


def _form(state: State, grows: bool) -> Any:
    """A state with the sizes behind the batch in place of its tensors; without the second dimension where it may grow."""
    if isinstance(state, Tensor):
        return (None, *state.shape[2:])[: state.ndim - 1] if grows else tuple(state.shape[1:])
    if isinstance(state, dict):
        return {key: _form(child, grows) for key, child in state.items()}
    return [_form(child, grows) for child in state] if isinstance(state, (list, tuple)) else type(state).__name__


def _misfit(expected: Any, found: Any, name: str) -> str | None:
    """Where two forms of states differ first, in words; None if they do not."""
    if expected == found:
        return None
    keys = [list(form) if isinstance(form, dict) else range(len(form)) for form in (expected, found)]
    if type(expected) is not type(found) or isinstance(expected, tuple) or keys[0] != keys[1]:
        return f"{name}: expected {_in_words(expected)}, found {_in_words(found)}"
    return next(filter(None, (_misfit(expected[key], found[key], f"{name}[{key!r}]") for key in keys[0])))


def _in_words(form: Any) -> str:
    if isinstance(form, tuple):
        return f"a tensor ({', '.join(['batch', *('any' if size is None else str(size) for size in form)])})"
    if isinstance(form, dict):
        return f"a dict of {', '.join(form)}"
    return f"a list of {len(form)}" if isinstance(form, list) else form


def state_bytes(state: State) -> int:
    """Memory that a state takes, in bytes; what is expanded over the batch counts once."""
    return sum(_own_bytes(tensor) for tensor in state_tensors(state))


def _own_bytes(tensor: Tensor) -> int:
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)
    return math.prod(sizes) * tensor.element_size()


def without_views(state: State) -> State:
    """The same state in memory of its own: a slice of a chunk's tensor would keep the whole chunk alive."""
    if isinstance(state, Tensor):
        is_slice = state.untyped_storage().nbytes() > 2 * _own_bytes(state)
        return state.clone() if is_slice else state
    if isinstance(state, dict):
        return {key: without_views(child) for key, child in state.items()}
    return state if state is None else [without_views(child) for child in state]


def zero_padding(x_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
    """Zeros at masked positions, also where NaN or infinity stood (a product with the mask would keep those)."""
    return x_BLD if mask_BL is None else x_BLD.masked_fill(~mask_BL.unsqueeze(-1), 0.0)


class Block(nn.Module):
    """Norm, mixer, residual, and the same with an MLP: `x + mixer(norm(x))`, or `norm(x + mixer(x))` with post-norm."""

    def __init__(
        self,
        mixer: Mixer,
        d_model: int,
        norm: str,
        norm_eps: float | None,
        prenorm: bool,
        mlp_ratio: float,
        mlp: str,
        dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.prenorm = prenorm
        self.norm1 = build_norm(norm, d_model, norm_eps)
        self.mixer = mixer
        self.norm2 = build_norm(norm, d_model, norm_eps) if mlp_ratio > 0 else None
        self.mlp = MLP(d_model, round(mlp_ratio * d_model), activation=mlp) if mlp_ratio > 0 else None
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def drop(self, update: Tensor) -> Tensor:
        """A branch's output with what training drops of it."""
        return self.drop_path(self.dropout(update))

    def add(self, x: Tensor, update: Tensor, norm: Norm) -> Tensor:
        """The residual sum, and post-norm's norm after it; any leading dimensions."""
        update = self.drop(update)
        return x + update if self.prenorm else norm.add(update, x)[0]

    def apply_mlp(self, x: Tensor) -> Tensor:
        """The second half of the block, which mixes no positions."""
        if self.mlp is None or self.norm2 is None:
            return x
        return self.add(x, self.mlp(self.norm2(x, branch_dtype(x)) if self.prenorm else x), self.norm2)

    @overload
    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor: ...

    @overload
    def forward(self, x_BLD: Pending, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Pending: ...

    def forward(
        self, x_BLD: Tensor | Pending, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None
    ) -> Tensor | Pending:
        """The block over whole sequences; a stream with a pending sum comes back as one."""
        if isinstance(x_BLD, tuple):
            return self._advance(*x_BLD, mask_BL, segment_ids_BL)
        if self.prenorm:
            x_BLD, update_BLD = self._advance(x_BLD, None, mask_BL, segment_ids_BL)
            return x_BLD if update_BLD is None else x_BLD + update_BLD
        # Rounded once for all of the mixer's projections, each of which would do so by itself.
        h_BLD = x_BLD.to(branch_dtype(x_BLD) or x_BLD.dtype)
        return self.apply_mlp(self.add(x_BLD, self.mixer(h_BLD, mask_BL, segment_ids_BL), self.norm1))

    def _advance(
        self, x_BLD: Tensor, update_BLD: Tensor | None, mask_BL: Tensor | None, segment_ids_BL: Tensor | None
    ) -> Pending:
        """A pre-norm block that makes each sum together with the norm after it, and leaves its last sum to what follows."""
        h_BLD, x_BLD = norm_pending(self.norm1, (x_BLD, update_BLD), branch_dtype(x_BLD))
        update_BLD = self.drop(self.mixer(h_BLD, mask_BL, segment_ids_BL))
        if self.mlp is None or self.norm2 is None:
            return x_BLD, update_BLD
        h_BLD, x_BLD = self.norm2.add(update_BLD, x_BLD, branch_dtype(x_BLD))
        return x_BLD, self.drop(self.mlp(h_BLD))

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        h_BLD, state = self.mixer.forward_chunk(self.norm1(x_BLD) if self.prenorm else x_BLD, state, mask_BL)
        return self.apply_mlp(self.add(x_BLD, h_BLD, self.norm1)), state

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        h_BD, state = self.mixer.step(self.norm1(x_BD) if self.prenorm else x_BD, state)
        return self.apply_mlp(self.add(x_BD, h_BD, self.norm1)), state


def branch_dtype(x: Tensor) -> torch.dtype | None:
    """What a norm hands to a branch: None, the stream's dtype; under a GPU's autocast its own, to which products round."""
    rounded = x.is_cuda and x.dtype == torch.float32 and torch.is_autocast_enabled("cuda")
    return torch.get_autocast_dtype("cuda") if rounded else None


def norm_pending(norm: Norm, pending: Pending, out_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """The norm of a stream with its pending sum, and the stream after the sum."""
    x_BLD, update_BLD = pending
    return (norm(x_BLD, out_dtype), x_BLD) if update_BLD is None else norm.add(update_BLD, x_BLD, out_dtype)


class Stack(Backbone):
    """A residual stack of blocks around the given mixers, which may be of different kinds (a hybrid).

    Args:
        mixers: one per layer, each `(B, L, d_model) -> (B, L, d_model)`.
        d_model: width in and out.
        norm: `layer` (LayerNorm), `rms` (RMSNorm), or `scalar` (one weight and one bias for all channels, as in published S4).
        norm_eps: added to the variance; None for the norm's own, 1e-5 for the first two.
        prenorm: True for `x + f(norm(x))`, False for `norm(x + f(x))`.
        final_norm: a norm after the last block (pre-norm only).
        mlp_ratio: the MLP's hidden width over d_model; 0 for no MLP.
        mlp: `gelu`, `gelu_tanh`, `relu`, `silu`, or the gated `swiglu` and `geglu`.
        dropout: on each branch's output.
        drop_path: stochastic depth; the probability of dropping a branch grows linearly over depth up to this value.
        gradient_checkpointing: recompute each block in backward, which keeps one activation per block instead of all.

    Cost: the sum of the mixers' and of the MLPs'.
    """

    def __init__(
        self,
        mixers: Sequence[Mixer],
        d_model: int,
        *,
        norm: Literal["layer", "rms", "scalar"] = "layer",
        norm_eps: float | None = None,
        prenorm: bool = True,
        final_norm: bool = True,
        mlp_ratio: float = 4.0,
        mlp: str = "gelu",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not mixers:
            raise ValueError("n_layers must be at least 1, found 0 mixers")
        if mlp_ratio < 0:
            raise ValueError(f"mlp_ratio must be 0 (no MLP) or more, found {mlp_ratio}")
        self.d_model = d_model
        self.gradient_checkpointing = gradient_checkpointing
        rates = [drop_path * i / max(1, len(mixers) - 1) for i in range(len(mixers))]
        self.blocks = nn.ModuleList(
            Block(mixer, d_model, norm, norm_eps, prenorm, mlp_ratio, mlp, dropout, rate)
            for mixer, rate in zip(mixers, rates, strict=True)
        )
        self.final_norm = build_norm(norm, d_model, norm_eps) if prenorm and final_norm else nn.Identity()
        self.causal = all(mixer.causal for mixer in mixers)
        self.can_step = all(mixer.can_step for mixer in mixers)
        self.state_grows = any(mixer.state_grows for mixer in mixers)
        limits = [mixer.max_length for mixer in mixers if mixer.max_length is not None]
        self.max_length = min(limits) if limits else None

    def layers(self) -> list[Block]:
        """The blocks in order."""
        return cast(list[Block], list(self.blocks))

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        self.check_input(x_BLD, mask_BL, segment_ids_BL)
        x_BLD, segment_ids_BL = zero_padding(x_BLD, mask_BL), number_segments(segment_ids_BL, mask_BL)
        pending: Pending = (x_BLD, None)
        for block in self.layers():
            if self.gradient_checkpointing and torch.is_grad_enabled():
                # One tensor is kept for each block, so its last sum is made within it.
                y_BLD = cast(Tensor, checkpoint(block, pending[0], mask_BL, segment_ids_BL, use_reentrant=False))
                pending = (y_BLD, None)
            elif block.prenorm:
                pending = block(pending, mask_BL, segment_ids_BL)
            else:
                pending = (block(pending[0], mask_BL, segment_ids_BL), None)
        return zero_padding(self._finish(pending), mask_BL)

    def _finish(self, pending: Pending) -> Tensor:
        """The last sum and the final norm."""
        x_BLD, update_BLD = pending
        if isinstance(self.final_norm, nn.Identity):
            return x_BLD if update_BLD is None else x_BLD + update_BLD
        return norm_pending(cast(Norm, self.final_norm), pending)[0]

    def init_state(self, batch_size: int) -> State:
        if not self.can_step:
            raise self.cannot_step()
        return [block.mixer.init_state(batch_size) for block in self.layers()]

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        if not self.can_step:
            raise self.cannot_step()
        self.check_input(x_BLD, mask_BL)
        self.check_state(x_BLD.shape[0], state)
        x_BLD = zero_padding(x_BLD, mask_BL)
        new_state = []
        for block, block_state in zip(self.layers(), state, strict=True):
            x_BLD, block_state = block.forward_chunk(x_BLD, block_state, mask_BL)
            new_state.append(block_state)
        y_BLD = zero_padding(self.final_norm(x_BLD), mask_BL)
        return y_BLD, new_state if torch.compiler.is_compiling() else without_views(new_state)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.can_step:
            raise self.cannot_step()
        self.check_step(x_BD)
        self.check_state(x_BD.shape[0], state)
        new_state = []
        for block, block_state in zip(self.layers(), state, strict=True):
            x_BD, block_state = block.step(x_BD, block_state)
            new_state.append(block_state)
        return self.final_norm(x_BD), new_state
