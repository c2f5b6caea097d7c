"""SaShiMi: state-space layers at several resolutions, pooled in time and causal at every one, for raw waveforms.

Equation: y = layers(x + up(shift(inner(down(x))))), inner being the same again at a coarser resolution,
          where `shift` hands a group's coarse position to the next group.
Good at raw sound: modelling and generating it. Not a U-net for whole signals, whose pooling looks ahead.

Paper: It's Raw! Audio Generation with State-Space Models, https://arxiv.org/abs/2202.09729.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.backbone import Backbone, Block, State, zero_padding
from longseq.layers.compaction import Compaction
from longseq.layers.norms import build_norm
from longseq.layers.segments import find_segments, number_segments, pack, segment_mask, unpack
from longseq.registry import create_mixer, register_backbone


@register_backbone(
    "sashimi",
    summary="state-space layers at several pooled resolutions, causal; for raw waveforms",
    paper="https://arxiv.org/abs/2202.09729",
    cost="O(L), most of it at the full resolution",
    state="the mixers' states, pool positions of every resolution but the coarsest, and one coarse output each",
)
class SaShiMi(Backbone):
    """A causal U-net over time: pool, mix at the coarse resolution, spread out again one step late, add, mix.

    `y = layers(x + up(shift(inner(down(x)))))`, where inner is the same again, or plain layers at the coarsest resolution.
    `down` maps p positions of width H to one of `expand H`, `up` maps back; a coarse position is known when its last fine one
    is, so `shift` passes it to the p positions after that. Unlike plain pooling this never looks ahead. Any length will do.

    Args:
        d_model: width at the full resolution.
        n_layers: layers (mixer and MLP) of each resolution.
        pool: p of each pooling, from the full resolution on; empty for no pooling.
        expand: by how much the width grows with each pooling.
        unet: layers on the way down too, which helps where nothing is generated.
        skips: add each resolution's input to what its layers make of it, and nothing before the first coarse position is
            known, as in the published checkpoints; not with `unet`.
        mixer: a causal registered backbone made of layers.
        mixer_options: its own options.
        d_state: the mixer's; None for its default.
        mlp_ratio: the MLP's hidden width over that of its resolution; 0 for none.
        norm: `layer`, `rms`, or `scalar` (one weight and one bias for all channels, as in published checkpoints).
        dropout: on each branch's output.

    Raises:
        ValueError: for a pooling or expansion below 1, or a mixer that sees the future.

    Cost: for a mixer of cost c(L, D): n_layers times c(L, d_model) + c(L / p, expand d_model) + ...; a step runs the coarse
    layers only when their pool is full.

    Paper: https://arxiv.org/abs/2202.09729, section 4.1. As in the authors' code for generation, layers stand on the way up
    alone unless `unet`. Unlike there, stepping and chunks of any size give what the whole sequence gives, in rows of
    different lengths too.
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int = 4,
        *,
        pool: Sequence[int] = (4, 4),
        expand: int = 2,
        unet: bool = False,
        skips: bool = False,
        mixer: str = "s4d",
        mixer_options: dict[str, Any] | None = None,
        d_state: int | None = None,
        mlp_ratio: float = 2.0,
        norm: str = "layer",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if any(p < 1 for p in pool) or expand < 1:
            raise ValueError(f"pool={list(pool)} and expand={expand}: expected whole numbers of 1 or more")
        if unet and skips:
            raise ValueError("skips=true belongs to the form without layers on the way down: set unet=false")
        self.d_model, self.pool = d_model, tuple(pool)
        widths = [d_model * expand**i for i in range(len(pool) + 1)]
        own = {**({} if d_state is None else {"d_state": d_state}), **(mixer_options or {})}

        def layers(width: int) -> "Layers":
            mixers = [create_mixer(mixer, width, n_layers=n_layers, layer_index=i, **own) for i in range(n_layers)]
            return Layers([Block(m, width, norm, None, True, mlp_ratio, "gelu", dropout, 0.0) for m in mixers], skips)

        # From the coarsest resolution outwards.
        inner: Layers | Resolution = layers(widths[-1])
        for i in reversed(range(len(pool))):
            inner = Resolution(
                widths[i], widths[i + 1], pool[i], layers(widths[i]) if unet else Layers([]), inner, layers(widths[i]), skips
            )
        self.outer = inner
        self.final_norm = build_norm(norm, d_model)
        mixers = [block.mixer for block in self.modules() if isinstance(block, Block)]
        if not all(m.causal and m.can_step for m in mixers):
            raise ValueError(f"mixer={mixer!r} sees the future: pooled resolutions with a shift need a causal mixer")
        self.state_grows = any(m.state_grows for m in mixers)
        # Rows are filled up to whole pools, which counts at the full resolution.
        limits = [m.max_length for m in mixers if m.max_length is not None]
        whole = math.prod(self.pool)
        self.max_length = min(limits) // whole * whole if limits else None
        if self.max_length == 0:
            raise ValueError(
                f"mixer_options.max_length={min(limits)} must be at least {whole}, the product of pool={list(pool)}"
            )

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        self.check_input(x_BLD, mask_BL, segment_ids_BL)
        x_BLD, segment_ids_BL = zero_padding(x_BLD, mask_BL), number_segments(segment_ids_BL, mask_BL)
        if segment_ids_BL is not None:
            # Pools must begin where documents do, so each gets a row of its own.
            segments = find_segments(segment_ids_BL)
            y_SLD = self._rows(unpack(x_BLD, segments), segment_mask(mask_BL, segments))
            return zero_padding(pack(y_SLD, segments), mask_BL)
        return self._rows(x_BLD, mask_BL)

    def _rows(self, x_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
        if mask_BL is None:
            return self.final_norm(self._whole(x_BLD))
        compaction = Compaction(mask_BL)
        return compaction.to_place(self.final_norm(self._whole(compaction.to_front(x_BLD))))

    def _whole(self, x_BLD: Tensor) -> Tensor:
        """Rows without padding in front: what is filled up behind them is their future."""
        length, whole = x_BLD.shape[1], math.prod(self.pool)
        if whole == 1:
            return self.outer(x_BLD, length)
        # Export specialises on a symbolic count that may be one, so it gets a pool more than it needs.
        count = (length + whole - 1) // whole if isinstance(length, int) else (length + 2 * whole - 1) // whole
        y_BLD = self.outer(F.pad(x_BLD, (0, 0, 0, count * whole - length)), count * whole)
        return y_BLD[:, :length] if isinstance(length, int) else y_BLD[:, torch.arange(length, device=y_BLD.device)]

    def init_state(self, batch_size: int) -> State:
        return self.outer.init_state(batch_size)

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        self.check_input(x_BLD, mask_BL)
        self.check_state(x_BLD.shape[0], state)
        if mask_BL is None:
            y_BLD, state = self.outer.forward_chunk(x_BLD, state, None)
            return self.final_norm(y_BLD), state
        compaction = Compaction(mask_BL)
        place_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
        front_BLD = compaction.to_front(zero_padding(x_BLD, mask_BL))
        y_BLD, state = self.outer.forward_chunk(front_BLD, state, place_L < compaction.count_B.unsqueeze(1))
        return compaction.to_place(self.final_norm(y_BLD)), state


class Layers(nn.Module):
    """Residual blocks one after the other, at one resolution."""

    def __init__(self, blocks: Sequence[Block], skip: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        # Around all of them at once, beside the residual of each.
        self.skip = skip

    def forward(self, x_BLD: Tensor, length: int) -> Tensor:
        """Whole rows."""
        del length
        input_BLD = x_BLD
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return x_BLD + input_BLD if self.skip else x_BLD

    def init_state(self, batch_size: int) -> State:
        """The mixers' states."""
        return [_mixer(block).init_state(batch_size) for block in self.blocks]

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None) -> tuple[Tensor, State]:
        """The next positions; padding stands behind the real ones."""
        states, input_BLD = [], x_BLD
        for block, old in zip(self.blocks, state, strict=True):
            assert isinstance(block, Block)
            x_BLD, new = block.forward_chunk(x_BLD, old, mask_BL)
            states.append(new)
        return (x_BLD + input_BLD if self.skip else x_BLD), states


class Resolution(nn.Module):
    """One resolution around a coarser one: layers, pooled detour, layers.

    Args:
        width: H.
        inner_width: of the coarser resolution.
        pool: p, positions of one coarse position.
        before: layers before pooling.
        inner: the coarser resolution, or plain layers.
        after: layers after the detour is added.
        late_bias: nothing comes from `up` before a coarse position is known; else its bias does.
    """

    def __init__(
        self,
        width: int,
        inner_width: int,
        pool: int,
        before: Layers,
        inner: nn.Module,
        after: Layers,
        late_bias: bool = False,
    ) -> None:
        super().__init__()
        self.pool, self.late_bias = pool, late_bias
        self.down = nn.Linear(pool * width, inner_width)
        self.up = nn.Linear(inner_width, pool * width)
        self.before, self.inner, self.after = before, inner, after

    def forward(self, x_BLD: Tensor, length: int) -> Tensor:
        """Whole rows, of a length that all pools inside divide."""
        x_BLD = self.before(x_BLD, length)
        coarse_BGD = self.inner(self.down(x_BLD.unflatten(1, (length // self.pool, self.pool)).flatten(2)), length // self.pool)
        # A group's coarse position is known at its end, so the next group is the first to get it.
        late_BGD = F.pad(self.up(coarse_BGD) if self.late_bias else coarse_BGD, (0, 0, 1, 0)).narrow(1, 0, length // self.pool)
        spread_BGD = late_BGD if self.late_bias else self.up(late_BGD)
        return self.after(x_BLD + spread_BGD.unflatten(2, (self.pool, -1)).flatten(1, 2), length)

    def init_state(self, batch_size: int) -> State:
        """States of all layers, the positions of the group that is not full yet, and the last coarse output."""
        weight = self.down.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        width = weight.shape[1] // self.pool
        return {
            "before": self.before.init_state(batch_size),
            "inner": self.inner.init_state(batch_size),  # type: ignore[operator]
            "after": self.after.init_state(batch_size),
            "waiting": torch.zeros(batch_size, self.pool - 1, width, dtype=dtype, device=weight.device),
            "n_waiting": torch.zeros(batch_size, dtype=torch.long, device=weight.device),
            "coarse": torch.zeros(batch_size, self.up.in_features, dtype=dtype, device=weight.device),
            # Whether a coarse position is known yet.
            **({"started": torch.zeros(batch_size, dtype=torch.long, device=weight.device)} if self.late_bias else {}),
        }

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None) -> tuple[Tensor, State]:
        """The next positions; padding stands behind the real ones, and rows may stand at different places of their groups."""
        x_BLD, before = self.before.forward_chunk(x_BLD, state["before"], mask_BL)
        groups = Groups(x_BLD, state["waiting"], state["n_waiting"], mask_BL, self.pool)
        coarse_BGD, inner = self._run_inner(groups, state["inner"])
        known_BGD = torch.cat((state["coarse"].to(x_BLD.dtype).unsqueeze(1), coarse_BGD), dim=1)
        up_BGD = self.up(known_BGD)
        if self.late_bias:
            # The first column is what was known before this chunk.
            first_B11 = state["started"].to(up_BGD.dtype)[:, None, None]
            up_BGD = torch.cat((up_BGD[:, :1] * first_B11, up_BGD[:, 1:]), dim=1)
        detour_BLD = groups.own_places(up_BGD.unflatten(2, (self.pool, -1)).flatten(1, 2))
        y_BLD, after = self.after.forward_chunk(x_BLD + detour_BLD, state["after"], mask_BL)
        last_B11 = groups.n_full_B[:, None, None].expand(-1, 1, known_BGD.shape[2])
        new = {
            "before": before,
            "inner": inner,
            "after": after,
            "waiting": groups.rest().to(state["waiting"].dtype),
            "n_waiting": groups.n_rest_B,
            "coarse": known_BGD.gather(1, last_B11).squeeze(1).to(state["coarse"].dtype),
        }
        if self.late_bias:
            new["started"] = torch.where(groups.n_full_B > 0, torch.ones_like(state["started"]), state["started"])
        return y_BLD, new

    def _run_inner(self, groups: "Groups", state: State) -> tuple[Tensor, State]:
        """The coarser resolution over the groups that are full now; most single steps fill none."""
        full_BG = groups.full_BG
        if full_BG.shape[1] == 0:
            empty = groups.x_BSD.new_zeros(full_BG.shape[0], 0, self.up.in_features)
            return empty, state
        everywhere = not torch.compiler.is_compiling() and bool(full_BG.all())
        coarse_BGD = self.down(groups.full_groups())
        return self.inner.forward_chunk(coarse_BGD, state, None if everywhere else full_BG)  # type: ignore[operator]


class Groups:
    """A chunk's positions behind those that were waiting, cut into groups of `pool`.

    Attributes:
        x_BSD: waiting and new positions without gaps, then padding, up to a multiple of pool.
        n_full_B: full groups of each row.
        full_BG: which groups are full; only as many columns as the fullest row needs, where that is known.
        n_rest_B: positions left over for the next chunk.
    """

    def __init__(self, x_BLD: Tensor, waiting_BPD: Tensor, n_waiting_B: Tensor, mask_BL: Tensor | None, pool: int) -> None:
        batch, length, _ = x_BLD.shape
        device = x_BLD.device
        self.pool, self.length, self.n_waiting_B = pool, length, n_waiting_B
        n_new_B = torch.full_like(n_waiting_B, length) if mask_BL is None else mask_BL.sum(1)
        width = -(-(pool - 1 + length) // pool) * pool
        place_S = torch.arange(width, device=device)
        # Slot s holds what waited for s < n_waiting, and the new position s - n_waiting after that.
        both_BSD = torch.cat((waiting_BPD.to(x_BLD.dtype), x_BLD), dim=1)
        waits_BS = place_S < n_waiting_B.unsqueeze(1)
        source_BS = torch.where(waits_BS, place_S, place_S - n_waiting_B.unsqueeze(1) + pool - 1).clamp(
            max=both_BSD.shape[1] - 1
        )
        self.x_BSD = both_BSD.gather(1, source_BS.unsqueeze(-1).expand(-1, -1, both_BSD.shape[2]))
        n_B = n_waiting_B + n_new_B
        self.n_full_B = n_B // pool
        self.n_rest_B = n_B - self.n_full_B * pool
        n_groups = width // pool
        if not torch.compiler.is_compiling():
            n_groups = int(self.n_full_B.max()) if batch else 0
        self.full_BG = torch.arange(n_groups, device=device) < self.n_full_B.unsqueeze(1)

    def full_groups(self) -> Tensor:
        """(B, G, pool x D): the positions of each group side by side."""
        n_groups = self.full_BG.shape[1]
        return self.x_BSD[:, : n_groups * self.pool].unflatten(1, (n_groups, self.pool)).flatten(2)

    def own_places(self, y_BSD: Tensor) -> Tensor:
        """Values by slot, (B, S, D), at the chunk's own positions (B, L, D); padding gets any."""
        place_L = torch.arange(self.length, device=y_BSD.device)
        slot_BL = (self.n_waiting_B.unsqueeze(1) + place_L).clamp(max=y_BSD.shape[1] - 1)
        return y_BSD.gather(1, slot_BL.unsqueeze(-1).expand(-1, -1, y_BSD.shape[2]))

    def rest(self) -> Tensor:
        """The positions that wait for the next chunk, (B, pool - 1, D), zeros behind them."""
        place_P = torch.arange(self.pool - 1, device=self.x_BSD.device)
        slot_BP = ((self.n_full_B * self.pool).unsqueeze(1) + place_P).clamp(max=self.x_BSD.shape[1] - 1)
        rest_BPD = self.x_BSD.gather(1, slot_BP.unsqueeze(-1).expand(-1, -1, self.x_BSD.shape[2]))
        return rest_BPD.masked_fill((place_P >= self.n_rest_B.unsqueeze(1)).unsqueeze(-1), 0.0)


def _mixer(block: nn.Module) -> Any:
    return block.mixer
