"""Window attention in blocks: each block of queries against the few key blocks its window can reach.

Plain PyTorch for CPU and GPU, traceable by torch.export and torch.compile. No tensor has two axes of length L: keys and
values are laid out once per neighbouring block, and `scaled_dot_product_attention` runs over all blocks as one batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.ops.autocast import without_autocast
from longseq.ops.tracing import is_exporting

# Below 16 the batch of tiny products dominates; above 256 the two half-empty corner blocks do.
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 256


def window_attention_chunked(
    q_BLHP: Tensor,
    k_BLHP: Tensor,
    v_BLHP: Tensor,
    *,
    window: int,
    causal: bool,
    dilation: int,
    global_mask_BL: Tensor | None,
    q_global_BLHP: Tensor,
    k_global_BLHP: Tensor,
    v_global_BLHP: Tensor,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    scale: float,
    max_global: int | None = None,
) -> Tensor:
    """Blocked form of `longseq.ops.window_attention.window_attention`; see there for the arguments.

    Cost: O(L (w + T + G) P) time and O(L (w + T + G)) memory, with blocks of T = 16..256 queries and G global tokens.
    """
    real_BM = mask_BL
    if real_BM is None:
        real_BM = torch.ones(k_BLHP.shape[:2], dtype=torch.bool, device=k_BLHP.device)
    else:
        q_BLHP = _zero_padding(q_BLHP, real_BM)
        k_BLHP, v_BLHP = _zero_padding(k_BLHP, real_BM), _zero_padding(v_BLHP, real_BM)
    if global_mask_BL is None:
        y_BLHP = _dilated_local(q_BLHP, k_BLHP, v_BLHP, None, real_BM, real_BM, segment_ids_BL, window, causal, dilation, scale)
    else:
        global_BL = global_mask_BL & real_BM
        slots = _GlobalSlots(global_BL, max_global)
        columns = (slots.take(k_BLHP), slots.take(v_BLHP), slots.reachable(real_BM, segment_ids_BL, causal))
        local_BL = real_BM & ~global_BL
        y_BLHP = _dilated_local(
            q_BLHP, k_BLHP, v_BLHP, columns, local_BL, real_BM, segment_ids_BL, window, causal, dilation, scale
        )
        if mask_BL is not None:
            q_global_BLHP = _zero_padding(q_global_BLHP, real_BM)
            k_global_BLHP = _zero_padding(k_global_BLHP, real_BM)
            v_global_BLHP = _zero_padding(v_global_BLHP, real_BM)
        rows_BGHP = _attend(
            slots.take(q_global_BLHP), k_global_BLHP, v_global_BLHP, slots.sees(real_BM, segment_ids_BL, causal), scale
        )
        y_BLHP = torch.where(global_BL[:, :, None, None], slots.put(rows_BGHP), y_BLHP)
    return y_BLHP if mask_BL is None else _zero_padding(y_BLHP, real_BM)


def _zero_padding(x_BLHP: Tensor, real_BM: Tensor) -> Tensor:
    real_BL = real_BM[:, real_BM.shape[1] - x_BLHP.shape[1] :]
    return x_BLHP.masked_fill(~real_BL[:, :, None, None], 0.0)


def _attend(q_BLHP: Tensor, k_BMHP: Tensor, v_BMHP: Tensor, seen_BLM: Tensor, scale: float) -> Tensor:
    """Softmax attention where each row of `seen_BLM` has at least one True; the softmax itself runs in float32."""
    q_BHLP, k_BHMP, v_BHMP = q_BLHP.transpose(1, 2), k_BMHP.transpose(1, 2), v_BMHP.transpose(1, 2)
    with without_autocast(q_BHLP):
        y_BHLP = F.scaled_dot_product_attention(q_BHLP, k_BHMP, v_BHMP, attn_mask=seen_BLM[:, None], scale=scale)
    return y_BHLP.transpose(1, 2)


class _GlobalSlots:
    """The global tokens of each row gathered into G slots, in order of position; spare slots are marked invalid."""

    def __init__(self, global_BL: Tensor, max_global: int | None) -> None:
        count_BL = global_BL.long().cumsum(dim=1)
        n_slots = max(1, int(count_BL[:, -1].max())) if max_global is None else max(1, max_global)
        length = global_BL.shape[1]
        self.slot_BL = (count_BL - 1).clamp(0, n_slots - 1)
        # One slot more than needed takes the writes of all tokens that are not global.
        target_BL = torch.where(global_BL, self.slot_BL, n_slots)
        position_BL = torch.arange(length, device=global_BL.device).expand_as(target_BL)
        spare_BG = torch.zeros_like(position_BL[:, :1]).expand(-1, n_slots + 1)
        self.position_BG = spare_BG.scatter(1, target_BL, position_BL)[:, :n_slots]
        self.valid_BG = torch.arange(n_slots, device=global_BL.device) < count_BL[:, -1:]

    def take(self, x_BLHP: Tensor) -> Tensor:
        index_BGHP = self.position_BG[:, :, None, None].expand(-1, -1, *x_BLHP.shape[2:])
        return x_BLHP.gather(1, index_BGHP)

    def put(self, x_BGHP: Tensor) -> Tensor:
        index_BLHP = self.slot_BL[:, :, None, None].expand(-1, -1, *x_BGHP.shape[2:])
        return x_BGHP.gather(1, index_BLHP)

    def reachable(self, real_BL: Tensor, segment_ids_BL: Tensor | None, causal: bool) -> Tensor:
        """(B, L, G): may query i look at global key g? Causality and documents hold for global keys too."""
        seen_BLG = self.valid_BG[:, None, :] & real_BL[:, :, None]
        if causal:
            position_L = torch.arange(real_BL.shape[1], device=real_BL.device)
            seen_BLG = seen_BLG & (self.position_BG[:, None, :] <= position_L[None, :, None])
        if segment_ids_BL is not None:
            segment_BG = segment_ids_BL.gather(1, self.position_BG)
            seen_BLG = seen_BLG & (segment_BG[:, None, :] == segment_ids_BL[:, :, None])
        return seen_BLG

    def sees(self, real_BL: Tensor, segment_ids_BL: Tensor | None, causal: bool) -> Tensor:
        """(B, G, L): may global query g look at key j?"""
        seen_BGL = self.valid_BG[:, :, None] & real_BL[:, None, :]
        position_L = torch.arange(real_BL.shape[1], device=real_BL.device)
        if causal:
            seen_BGL = seen_BGL & (position_L[None, None, :] <= self.position_BG[:, :, None])
        if segment_ids_BL is not None:
            segment_BG = segment_ids_BL.gather(1, self.position_BG)
            seen_BGL = seen_BGL & (segment_BG[:, :, None] == segment_ids_BL[:, None, :])
        # A spare slot's row is thrown away, but an empty softmax would put NaN into the gradients.
        spare_BG1 = ~self.valid_BG[:, :, None]
        return seen_BGL | (spare_BG1 & (position_L == 0))


_Columns = tuple[Tensor, Tensor, Tensor]


def _dilated_local(
    q_BLHP: Tensor,
    k_BMHP: Tensor,
    v_BMHP: Tensor,
    columns: _Columns | None,
    key_BM: Tensor,
    real_BM: Tensor,
    segment_ids_BM: Tensor | None,
    window: int,
    causal: bool,
    dilation: int,
    scale: float,
) -> Tensor:
    """Positions that are equal modulo the dilation never meet the others: each class is a sequence of its own."""
    length, offset = q_BLHP.shape[1], k_BMHP.shape[1] - q_BLHP.shape[1]
    if dilation == 1:
        query_BL = real_BM[:, offset:]
        return _local(q_BLHP, k_BMHP, v_BMHP, columns, key_BM, query_BL, segment_ids_BM, window, causal, scale)
    # Spare queries in front bring the first query onto a multiple of the dilation, as the first key is.
    front = offset % dilation
    n_queries = (front + length + dilation * _spare() + dilation - 1) // dilation
    back = n_queries * dilation - front - length

    # Read with indices: views of a length that is a quotient come with conditions that the exporter cannot prove.
    def classes(x: Tensor, before: int, each: int) -> Tensor:
        padded, place = _pad_length(x, before, back), torch.arange(each, device=x.device) * dilation
        return torch.cat([padded.index_select(1, place + r) for r in range(dilation)])

    def query_classes(x: Tensor) -> Tensor:
        return classes(x, front, n_queries)

    def key_classes(x: Tensor) -> Tensor:
        return classes(x, 0, n_queries + offset // dilation)

    if columns is not None:
        k_BGHP, v_BGHP, seen_BLG = columns
        columns = (
            k_BGHP.repeat(dilation, 1, 1, 1),
            v_BGHP.repeat(dilation, 1, 1, 1),
            query_classes(seen_BLG),
        )
    y_CLHP = _local(
        query_classes(q_BLHP),
        key_classes(k_BMHP),
        key_classes(v_BMHP),
        columns,
        key_classes(key_BM),
        query_classes(real_BM[:, offset:]),
        None if segment_ids_BM is None else key_classes(segment_ids_BM),
        window,
        causal,
        scale,
    )
    batch = q_BLHP.shape[0]
    y_BCHP = torch.cat([y_CLHP.narrow(0, r * batch, batch) for r in range(dilation)], dim=1)
    place_L = torch.arange(length, device=q_BLHP.device) + front
    return y_BCHP.index_select(1, place_L % dilation * n_queries + place_L // dilation)


def _local(
    q_BLHP: Tensor,
    k_BMHP: Tensor,
    v_BMHP: Tensor,
    columns: _Columns | None,
    key_BM: Tensor,
    query_BL: Tensor,
    segment_ids_BM: Tensor | None,
    window: int,
    causal: bool,
    scale: float,
) -> Tensor:
    """Band attention, with the global columns put beside each block's keys so that one softmax covers both."""
    batch, length = q_BLHP.shape[:2]
    offset = k_BMHP.shape[1] - length
    block, before, after = _blocking(window, length, k_BMHP.shape[1], causal)
    n_blocks = (length + block * _spare() + block - 1) // block
    tail = n_blocks * block - length

    def query_blocks(x: Tensor) -> Tensor:
        return _pad_length(x, 0, tail).unflatten(1, (n_blocks, block))

    def key_blocks(x: Tensor) -> Tensor:
        grid = _pad_length(x, before * block - offset, tail + after * block)
        shifted = [grid.narrow(1, shift * block, n_blocks * block) for shift in range(before + after + 1)]
        return torch.cat([x.unflatten(1, (n_blocks, block)) for x in shifted], dim=2)

    q_BNTHP, k_BNSHP, v_BNSHP = query_blocks(q_BLHP), key_blocks(k_BMHP), key_blocks(v_BMHP)
    band_TS = _band(block, before, after, window, causal, q_BLHP.device)
    seen_BNTS = band_TS & key_blocks(key_BM)[:, :, None, :]
    if segment_ids_BM is not None:
        query_segment_BNT = query_blocks(segment_ids_BM[:, offset:])
        seen_BNTS = seen_BNTS & (query_segment_BNT[..., None] == key_blocks(segment_ids_BM)[:, :, None, :])
    # Padding sees itself alone: its row is thrown away, and no softmax is ever empty.
    itself_TS = torch.eye(block, dtype=torch.bool, device=q_BLHP.device)
    itself_TS = F.pad(itself_TS, (before * block, after * block))
    query_BNT1 = query_blocks(query_BL)[..., None]
    seen_BNTS = (seen_BNTS & query_BNT1) | (itself_TS & ~query_BNT1)
    if columns is not None:
        k_BGHP, v_BGHP, seen_BLG = columns
        k_BNSHP = torch.cat([k_BNSHP, k_BGHP[:, None].expand(-1, n_blocks, -1, -1, -1)], dim=2)
        v_BNSHP = torch.cat([v_BNSHP, v_BGHP[:, None].expand(-1, n_blocks, -1, -1, -1)], dim=2)
        seen_BNTS = torch.cat([seen_BNTS, query_blocks(seen_BLG)], dim=-1)
    y_ZTHP = _attend(q_BNTHP.flatten(0, 1), k_BNSHP.flatten(0, 1), v_BNSHP.flatten(0, 1), seen_BNTS.flatten(0, 1), scale)
    y_BNTHP = y_ZTHP.unflatten(0, (batch, n_blocks))
    if is_exporting():
        # Cutting off the spare positions makes the exporter ask whether there are any; picking the others does not.
        place_L = torch.arange(length, device=q_BLHP.device)
        return y_BNTHP[:, place_L // block, place_L % block]
    return y_BNTHP.flatten(1, 2)[:, :length]


def _blocking(window: int, length: int, n_keys: int, causal: bool) -> tuple[int, int, int]:
    """Queries in a block, and how many key blocks before and after it its window can touch."""
    block = min(max(window, _SMALLEST_BLOCK), _LARGEST_BLOCK)
    # While tracing, the length may be a symbol: the block then depends on the window alone, so one graph serves all.
    if not torch.compiler.is_compiling():
        block = min(block, length)
        window = min(window, n_keys - 1)
    before = -(-window // block)
    return block, before, 0 if causal else before


def _spare() -> int:
    """The exporter would fix whether there is one block or there are several: a spare one, thrown away, leaves it open."""
    return 1 if is_exporting() else 0


def _band(block: int, before: int, after: int, window: int, causal: bool, device: torch.device) -> Tensor:
    query_T = torch.arange(block, device=device) + before * block
    key_S = torch.arange((before + 1 + after) * block, device=device)
    distance_TS = key_S[None, :] - query_T[:, None]
    return (distance_TS >= -window) & (distance_TS <= (0 if causal else window))


def _pad_length(x: Tensor, front: int, back: int) -> Tensor:
    """Zeros around axis 1; a negative count drops positions instead."""
    pads = [0, 0] * (x.dim() - 2) + [front, back]
    if x.dtype == torch.bool:
        return F.pad(x, pads, value=False)
    return F.pad(x, pads)
