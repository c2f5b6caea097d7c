"""Triton kernels that move (B, L, D) to (D, B, slots) and back: order, padding and documents live in their indices alone."""

# To a type checker Triton's decorated functions never return, and take no launch options.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["length"])
def to_channels(
    x_ptr, out_ptr, source_ptr, length, width, n_slots, HAS_SOURCE: tl.constexpr, REVERSE: tl.constexpr,
    SLOTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """(B, L, D) -> (D, B, slots): slot s takes position source[s], or s, or L - 1 - s; without one it is zero."""
    slot_S = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    channel_D = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(2).to(tl.int64)
    if HAS_SOURCE:
        place_S = tl.load(source_ptr + row * n_slots + slot_S, mask=slot_S < n_slots, other=-1)
    else:
        place_S = tl.where(slot_S < length, slot_S, -1)
    kept_S = place_S >= 0
    if REVERSE:
        place_S = length - 1 - place_S
    inside_D = channel_D < width
    x_SD = tl.load(
        x_ptr + (row * length + place_S.to(tl.int64)[:, None]) * width + channel_D[None, :],
        mask=kept_S[:, None] & inside_D[None, :],
        other=0.0,
    )
    out_DS = out_ptr + (channel_D.to(tl.int64)[:, None] * tl.num_programs(2) + row) * n_slots + slot_S[None, :]
    tl.store(out_DS, tl.trans(x_SD), mask=inside_D[:, None] & (slot_S < n_slots)[None, :])


@triton.jit(do_not_specialize=["length"])
def from_channels(
    y_ptr, out_ptr, slot_ptr, length, width, n_slots, HAS_SLOT: tl.constexpr, REVERSE: tl.constexpr,
    PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """(D, B, slots) -> (B, L, D), the inverse of `to_channels`; positions without a slot are zero."""
    ordered_L = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    channel_D = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(2).to(tl.int64)
    inside_L, inside_D = ordered_L < length, channel_D < width
    # Reads of 16 bytes a thread need an index and a mask that the compiler sees to be whole: a tile is counted along the
    # slots, and all slots may be read, a multiple of 16. A `where` on the index, or the length in the mask, makes 2 of them.
    slot_L, kept_L = ordered_L, ordered_L < n_slots
    if HAS_SLOT:
        slot_L = tl.load(slot_ptr + row * length + ordered_L, mask=inside_L, other=-1)
        kept_L = slot_L >= 0
    y_DL = tl.load(
        y_ptr + (channel_D.to(tl.int64)[:, None] * tl.num_programs(2) + row) * n_slots + slot_L[None, :],
        mask=inside_D[:, None] & kept_L[None, :],
        other=0.0,
    )
    place_L = ordered_L
    if REVERSE:
        place_L = length - 1 - ordered_L
    out_LD = out_ptr + (row * length + place_L.to(tl.int64)[:, None]) * width + channel_D[None, :]
    tl.store(out_LD, tl.trans(y_DL), mask=inside_L[:, None] & inside_D[None, :])
