"""Hyena: long convolutions with implicit filters, between gates that depend on the data.

Equation: v <- k * (x1 v) + b x1 v, a convolution as long as the sequence, with kernels k(lag) from a small network
          y = W (x0 v), where x0, x1 and v are short convolutions of the input.
Good at DNA and other sequences of known greatest length. Not a state-space model: its state is the whole gated past, and the
kernels do not depend on the input.

Paper: Hyena Hierarchy, https://arxiv.org/abs/2302.10866; HyenaDNA, https://arxiv.org/abs/2306.15794, whose checkpoints this
layer holds: `filter.layers`, `filter.freq` and `filter.output` are the published `filter_fn.implicit_filter` with its one
shared frequency, and `filter.deltas` and `filter.bias` are `filter_fn.modulation.deltas` and `filter_fn.bias`.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.backbone import Mixer, State, zero_padding
from longseq.layers.compaction import Compaction
from longseq.layers.marks import mark_all
from longseq.layers.segments import find_segments, pack, segment_mask, unpack
from longseq.ops.autocast import without_autocast
from longseq.ops.causal_conv1d import causal_conv1d
from longseq.ops.fft_conv import fft_conv
from longseq.ops.tracing import is_exporting
from longseq.registry import register_backbone

# The published standard deviation of every linear layer's weight, that of the filter's network too.
_INIT_STD = 0.02


class WideLinear(nn.Linear):
    """A linear layer that computes in its input's dtype: weights in bfloat16 are widened, the input is not narrowed."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype))


class ChannelsFirstLinear(WideLinear):
    """The same from (L, in) to (L, out), each output channel's values side by side in memory, as the convolution reads them."""

    def forward(self, input: Tensor) -> Tensor:
        return (self.weight.to(input.dtype) @ input.mT).mT


class HyenaFilter(nn.Module):
    """The kernels of a Hyena layer as a small network of the lag, times a window that decays with it.

    `k(t) = mlp([t, cos(f w), -sin(f w)]) * (exp(-t |delta|) + shift)` with `t = lag / (max_length - 1)` and
    `w = 2 pi lag / max_length`: the same weights with another `max_length` are other kernels. Always computed in fp32
    (fp64 for fp64 weights), whatever the autocast, and never decayed by the optimiser.

    Args:
        d_model: width of one convolution.
        n_filters: how many convolutions follow each other.
        max_length: the lag, in positions, that time is measured against.
        width: of the hidden layers.
        emb_dim: features of the lag: t, and a cosine and a sine per frequency; odd, at least 3.
        n_inner: hidden layers after the first.
        activation_freq: initial factor inside the sines, which all hidden layers share.
        fast_decay_pct: the fastest window falls to `target` at this fraction of max_length.
        slow_decay_pct: the slowest one at this one.
        target: see above.
        shift: added to the window, so that a filter need not vanish at long lags.
    """

    deltas: Tensor

    def __init__(
        self,
        d_model: int,
        n_filters: int,
        max_length: int,
        *,
        width: int,
        emb_dim: int,
        n_inner: int,
        activation_freq: float,
        fast_decay_pct: float,
        slow_decay_pct: float,
        target: float,
        shift: float,
    ) -> None:
        super().__init__()
        if emb_dim < 3 or emb_dim % 2 == 0:
            raise ValueError(f"emb_dim must be odd and at least 3 (time, cosines and sines), found {emb_dim}")
        if not 0.0 < target < 1.0 or fast_decay_pct <= 0 or slow_decay_pct <= 0:
            found = f"target={target}, fast_decay_pct={fast_decay_pct}, slow_decay_pct={slow_decay_pct}"
            raise ValueError(f"the window needs 0 < target < 1 and positive decay fractions, found {found}")
        self.max_length = max_length
        self.n_bands = (emb_dim - 1) // 2
        self.shift = shift
        self.layers = nn.ModuleList(WideLinear(emb_dim if i == 0 else width, width) for i in range(n_inner + 1))
        self.freq = nn.Parameter(torch.full((1, width), float(activation_freq)))
        self.output = ChannelsFirstLinear(width, n_filters * d_model, bias=False)
        self.bias = nn.Parameter(torch.randn(n_filters * d_model))
        slow, fast = math.log(target) / slow_decay_pct, math.log(target) / fast_decay_pct
        self.register_buffer("deltas", torch.linspace(slow, fast, n_filters * d_model).reshape(1, 1, -1))
        mark_all(self, weight_decay=0.0)

    @property
    def dtype(self) -> torch.dtype:
        """Of the kernels: float32, or float64 for float64 weights."""
        return torch.float64 if self.freq.dtype == torch.float64 else torch.float32

    def forward(self, start: int, stop: int) -> Tensor:
        """The kernels (stop - start, n_filters * d_model) at lags `start` to `stop - 1`, in positions.

        In memory the lags of a channel lie side by side: turned round they are what the convolution takes, without a copy.
        """
        device = self.freq.device
        lag_L1 = torch.arange(start, stop, device=device, dtype=self.dtype)[:, None]
        t_L1 = lag_L1 / max(1, self.max_length - 1)
        # Under autocast the network would run in half precision, and a filter is as exact as its inputs are.
        with without_autocast(lag_L1):
            h_LD = self.embed(lag_L1, t_L1)
            freq = self.freq.to(self.dtype)
            for layer in self.layers:
                h_LD = torch.sin(freq * layer(h_LD))
            h_LD = self.output(h_LD)
        window_DL = torch.exp(-self.deltas.to(self.dtype).abs().view(-1, 1) * t_L1.mT)
        # At a million positions each pass over a window takes a millisecond.
        window_DL = window_DL + self.shift if self.shift else window_DL
        return (h_LD.mT * window_DL).mT

    def embed(self, lag_L1: Tensor, t_L1: Tensor) -> Tensor:
        """`[t, cos(f w), -sin(f w)]`, from the lag at each call: stored in bfloat16 it would tell 256 lags apart."""
        f_E = torch.linspace(1e-4, self.n_bands - 1, self.n_bands, device=lag_L1.device, dtype=self.dtype)
        angle_LE = (2 * math.pi / self.max_length) * lag_L1 * f_E
        return torch.cat([t_L1, angle_LE.cos(), -angle_LE.sin()], dim=-1)


@register_backbone(
    "hyena",
    summary="long convolutions with implicit filters between data-dependent gates",
    paper="https://arxiv.org/abs/2302.10866",
    cost="O(L log L)",
    state="(order - 1) x d_model x positions seen, up to max_length, and as much once for the kernel",
    mlp="gelu_tanh",
)
class HyenaMixer(Mixer):
    """The Hyena operator: `y = out(x0 * (k * (x1 v) + b x1 v))` for order 2, with `x0, x1, v` short convolutions of the input.

    Of order n there are n gates, and n - 1 long convolutions follow each other: `v <- k_i * (x_i v) + b_i x_i v` for the
    gates from the last to the first but one, then `y = out(x0 v)`. The layer is linear in none of its inputs, unlike a
    state space layer, and its state is the gated past itself.

    Args:
        d_model: width in and out.
        n_layers: of the network it stands in; the output projection starts smaller in a deep one.
        max_length: the longest sequence, in positions (the published `l_max`). The filters' time is measured against it:
            weights trained with one max_length mean something else with another.
        order: gates, as the authors' code counts; the filters number one less.
        filter_order: width of the filter's network.
        emb_dim: features of the lag that it sees.
        num_inner_mlps: its hidden layers after the first.
        activation_freq: initial factor inside its sines (the published `w`): 10 for HyenaDNA, 1 for the first Hyena.
        short_filter_order: taps of the short convolution.
        fast_decay_pct: the fastest filter falls to `target` at this fraction of max_length.
        slow_decay_pct: the slowest one at this one.
        target: see above.
        shift: added to the decaying window. The authors' two implementations disagree: 0.05 in one, 0 in the other.
        implementation: of the long convolution; see `longseq.ops.fft_conv`.

    Cost: O(L log L) forward; a step at position t costs O(t d_model), since it meets the whole past once.

    Paper: Hyena Hierarchy, https://arxiv.org/abs/2302.10866, definition 3.1 and section 3.3; the sizes and the window are
    HyenaDNA's, https://arxiv.org/abs/2306.15794. Here padding and packed documents do not leak, which the authors' code
    lets them do.
    """

    state_grows = True
    max_length: int

    def __init__(
        self,
        d_model: int,
        *,
        n_layers: int = 1,
        max_length: int = 1024,
        order: int = 2,
        filter_order: int = 64,
        emb_dim: int = 5,
        num_inner_mlps: int = 2,
        activation_freq: float = 10.0,
        short_filter_order: int = 3,
        fast_decay_pct: float = 0.3,
        slow_decay_pct: float = 1.5,
        target: float = 1e-2,
        shift: float = 0.0,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("max_length", max_length, 1),
            ("order", order, 2),
            ("filter_order", filter_order, 1),
            ("num_inner_mlps", num_inner_mlps, 0),
            ("short_filter_order", short_filter_order, 1),
        ):
            if value < least:
                raise ValueError(f"hyena: {name} must be at least {least}, found {value}")
        self.d_model = d_model
        self.order = order
        self.max_length = max_length
        self.implementation = implementation
        width = (order + 1) * d_model
        self.in_proj = nn.Linear(d_model, width)
        self.short_filter = nn.Conv1d(width, width, short_filter_order, groups=width)
        self.filter = HyenaFilter(
            d_model,
            order - 1,
            max_length,
            width=filter_order,
            emb_dim=emb_dim,
            n_inner=num_inner_mlps,
            activation_freq=activation_freq,
            fast_decay_pct=fast_decay_pct,
            slow_decay_pct=slow_decay_pct,
            target=target,
            shift=shift,
        )
        self.out_proj = nn.Linear(d_model, d_model)
        self.reset_parameters(n_layers)

    def reset_parameters(self, n_layers: int) -> None:
        """The published start: normal weights, no biases, and a residual branch that shrinks with depth."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.out_proj.weight, std=_INIT_STD / math.sqrt(2 * n_layers))

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        if segment_ids_BL is not None:
            segments = find_segments(segment_ids_BL)
            return pack(self.forward(unpack(x_BLD, segments), segment_mask(mask_BL, segments)), segments)
        self._check_length(x_BLD.shape[1])
        gates, v_BLD, _ = self._project(x_BLD, mask_BL, None)
        y_BLD, _ = self._recurrence(gates, v_BLD, self._taps(self.filter(0, x_BLD.shape[1])), None)
        return self.out_proj(y_BLD)

    def init_state(self, batch_size: int) -> State:
        """Nothing seen and no kernel computed.

        The kernel is part of the state, oldest lag first, and grows with it, so that steps compute each lag once: a state
        belongs to the parameters that made it. All rows share one copy; the batch dimension is an expansion.
        """
        zeros = partial(torch.zeros, device=self.filter.freq.device, dtype=self.filter.dtype)
        return {
            "short": zeros(batch_size, self.short_filter.kernel_size[0] - 1, (self.order + 1) * self.d_model),
            "past": zeros(batch_size, 0, self.order - 1, self.d_model),
            "kernel": zeros(batch_size, 0, (self.order - 1) * self.d_model),
        }

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        if mask_BL is None:
            return self._continue(x_BLD, state, None)
        # Lags count real positions: padding may not stand between a row's past and its next position, nor stay in its past.
        compaction = Compaction(mask_BL)
        n_real_B1 = compaction.count_B[:, None]
        front_BL = torch.arange(mask_BL.shape[1], device=mask_BL.device) < n_real_B1
        y_BLD, state = self._continue(compaction.to_front(x_BLD), state, front_BL)
        past = _move_to_end(state["past"], mask_BL.shape[1] - n_real_B1)
        return compaction.to_place(y_BLD), {**state, "past": past}

    def _continue(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None) -> tuple[Tensor, State]:
        past = state["past"]
        needed = past.shape[1] + x_BLD.shape[1]
        kernel_CD = self._extend(state["kernel"][0], needed)
        gates, v_BLD, short = self._project(x_BLD, mask_BL, state["short"])
        taps = self._taps(kernel_CD[kernel_CD.shape[0] - needed :].flip(0))
        y_BLD, new = self._recurrence(gates, v_BLD, taps, past)
        past = torch.cat([past, torch.stack(new, dim=2).to(past.dtype)], dim=1)
        kernel = kernel_CD.expand(x_BLD.shape[0], -1, -1)
        return self.out_proj(y_BLD), {"short": short, "past": past, "kernel": kernel}

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        past = state["past"]
        n_past = past.shape[1]
        kernel_CD = self._extend(state["kernel"][0], n_past + 1)
        gates, v_BLD, short = self._project(x_BD.unsqueeze(1), None, state["short"])
        kernel_COD = kernel_CD[kernel_CD.shape[0] - n_past - 1 :].unflatten(-1, (self.d_model, self.order - 1)).mT
        v_BD, new = v_BLD.squeeze(1).to(past.dtype), []
        for i, gate_BLD in enumerate(reversed(gates[1:])):
            v_BD = v_BD * gate_BLD.squeeze(1)
            new.append(v_BD)
            # Lag M meets the oldest input: both stand in order of age, so the sum needs no reversal.
            v_BD = (past[:, :, i] * kernel_COD[:-1, i]).sum(dim=1) + (kernel_COD[-1, i] + self._bias()[i]) * v_BD
        y_BD = (v_BD * gates[0].squeeze(1)).to(x_BD.dtype)
        past = torch.cat([past, torch.stack(new, dim=1).unsqueeze(1)], dim=1)
        return self.out_proj(y_BD), {"short": short, "past": past, "kernel": kernel_CD.expand(x_BD.shape[0], -1, -1)}

    def _project(self, x_BLD: Tensor, mask_BL: Tensor | None, short_BKD: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor]:
        """The gates, the value, and the short convolution's state; at padding all are zero, whatever the biases are."""
        wide_BLD, short_BKD = causal_conv1d(
            self.in_proj(zero_padding(x_BLD, mask_BL)),
            self.short_filter.weight.squeeze(1),
            self.short_filter.bias,
            initial_state_BKD=short_BKD,
            mask_BL=mask_BL,
        )
        *gates, v_BLD = wide_BLD.split(self.d_model, dim=-1)
        return gates, v_BLD, short_BKD

    def _recurrence(
        self, gates: list[Tensor], v_BLD: Tensor, taps: list[Tensor], past_BMOD: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The last gate's product, and each convolution's gated input if there is a past to add it to."""
        bias_OD, new = self._bias(), []
        for i, gate_BLD in enumerate(reversed(gates[1:])):
            if past_BMOD is not None:
                new.append(v_BLD.to(past_BMOD.dtype) * gate_BLD.to(past_BMOD.dtype))
            v_BLD = fft_conv(
                v_BLD,
                taps[i],
                bias_OD[i],
                pre_gate_BLD=gate_BLD,
                post_gate_BLD=gates[0] if i == self.order - 2 else None,
                history_BMD=None if past_BMOD is None else past_BMOD[:, :, i],
                implementation=self.implementation,
            )
        return v_BLD, new

    def _taps(self, kernel_LD: Tensor) -> list[Tensor]:
        """The convolutions' kernels (d_model, lags); the filter interleaves them over its channels."""
        if self.order == 2:
            # Autograd would put the gradient of a part into a whole of zeros.
            return [kernel_LD.T]
        return list(kernel_LD.T.unflatten(0, (self.d_model, self.order - 1)).unbind(1))

    def _bias(self) -> Tensor:
        return self.filter.bias.to(self.filter.dtype).view(self.d_model, self.order - 1).T

    def _check_length(self, n_positions: int) -> None:
        # An exported length is a symbol: comparing it would fix which side of the limit it is on. (Inside torch.compile
        # `is_exporting()` is always True, so that alone would switch the check off there.)
        exporting = is_exporting()
        if not exporting and n_positions > self.max_length:
            raise ValueError(
                f"hyena: {n_positions} positions are more than max_length={self.max_length}, which its filters are "
                "measured against: build the backbone with a larger max_length, crop, or start from a new state"
            )

    def _extend(self, kernel_CD: Tensor, needed: int) -> Tensor:
        """The state's kernel, oldest lag first, with lags up to `needed - 1` at least.

        A kernel without gradients in front of a filter that wants them comes from a detached state or from before a
        training step: it is computed again, so that truncated back-propagation trains the filter too. It grows by
        doubling, so that steps compute each lag once.
        """
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.filter.parameters())
        if trains and not kernel_CD.requires_grad:
            kernel_CD = kernel_CD[:0]
        known = kernel_CD.shape[0]
        if known >= needed:
            return kernel_CD
        self._check_length(needed)
        new_CD = self.filter(known, min(self.max_length, max(needed, 2 * known)))
        return torch.cat([new_CD.flip(0), kernel_CD])


def _move_to_end(past_BMOD: Tensor, by_B1: Tensor) -> Tensor:
    """Moves each row towards its end by its own number of positions, with zeros in front."""
    source_BM = torch.arange(past_BMOD.shape[1], device=past_BMOD.device) - by_B1
    index_BMOD = source_BM.clamp(min=0)[:, :, None, None].expand_as(past_BMOD)
    return past_BMOD.gather(1, index_BMOD).masked_fill((source_BM < 0)[:, :, None, None], 0.0)
