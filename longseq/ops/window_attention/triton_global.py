"""Triton kernels of the global tokens: where they stand, their rows over the whole sequence, their columns' gradients."""

# To a type checker Triton's decorated functions never return, and take no launch options.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

import triton
import triton.language as tl

from longseq.ops.window_attention.triton_band import accumulate, load_rows, store_rows


@triton.jit(do_not_specialize=["length", "n_slots"])
def find_slots(
    global_ptr, real_ptr, slot_ptr, length, n_slots, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr, FILL: tl.constexpr
):
    """The positions of a row's global tokens in order, then -1."""
    row = tl.program_id(0).to(tl.int64)
    for start in tl.range(0, n_slots, FILL):
        slot_F = start + tl.arange(0, FILL)
        tl.store(slot_ptr + row * n_slots + slot_F, tl.full([FILL], -1, tl.int32), mask=slot_F < n_slots)
    tl.debug_barrier()
    count = 0
    for start in tl.range(0, length, BLOCK):
        place_S = start + tl.arange(0, BLOCK)
        flag_S = tl.load(global_ptr + row * length + place_S, mask=place_S < length, other=0).to(tl.int32)
        if HAS_MASK:
            flag_S *= tl.load(real_ptr + row * length + place_S, mask=place_S < length, other=0).to(tl.int32)
        found = tl.sum(flag_S)
        if found > 0:
            slot_S = count + tl.cumsum(flag_S, 0) - 1
            tl.store(slot_ptr + row * n_slots + slot_S, place_S, mask=(flag_S != 0) & (slot_S < n_slots))
        count += found


@triton.jit
def slot_rows(first_slot, slot_ptr, n_slots, SLOTS: tl.constexpr):
    slot_G = first_slot + tl.arange(0, SLOTS)
    position_G = tl.load(slot_ptr + slot_G, mask=slot_G < n_slots, other=-1)
    return slot_G, tl.maximum(position_G, 0), position_G >= 0


@triton.jit
def row_sees(
    key_K, position_G, exists_G, real_ptr, segment_ptr, n_keys,
    CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SEGMENTS: tl.constexpr,
):  # fmt: skip
    """Which keys may be read, and which of them a global query sees."""
    kept_K = key_K < n_keys
    if HAS_MASK:
        kept_K = kept_K & (tl.load(real_ptr + key_K, mask=kept_K, other=0) != 0)
    seen_GK = kept_K[None, :] & exists_G[:, None]
    if CAUSAL:
        seen_GK = seen_GK & (key_K[None, :] <= position_G[:, None])
    if HAS_SEGMENTS:
        segment_K = tl.load(segment_ptr + key_K, mask=key_K < n_keys, other=0)
        segment_G = tl.load(segment_ptr + position_G, mask=exists_G, other=0)
        seen_GK = seen_GK & (segment_G[:, None] == segment_K[None, :])
    return kept_K, seen_GK


@triton.jit(do_not_specialize=["length", "n_slots", "n_parts", "part_length"])
def rows_forward(
    q_ptr, k_ptr, v_ptr, part_ptr, real_ptr, segment_ptr, slot_ptr,
    scale2, length, n_slots, n_parts, part_length, heads, q_sb, q_sl, q_sh, k_sb, k_sl, k_sh, v_sb, v_sl, v_sh,
    P: tl.constexpr, BLOCK_P: tl.constexpr, KEYS: tl.constexpr, SLOTS: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SEGMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The global queries of one head over one part of the keys: an unfinished softmax for `rows_merge`.

    `part` holds the sums of values of all parts, then their maxima, then their sums of weights.
    """
    pid = tl.program_id(0)
    total = tl.num_programs(0).to(tl.int64) * n_slots
    part, row, head = pid % n_parts, (pid // n_parts // heads).to(tl.int64), pid // n_parts % heads
    q_ptr += row * q_sb + head * q_sh
    k_ptr += row * k_sb + head * k_sh
    v_ptr += row * v_sb + head * v_sh
    real_ptr += row * length
    segment_ptr += row * length
    place_P = tl.arange(0, BLOCK_P)
    end = tl.minimum((part + 1) * part_length, length)
    for first_slot in tl.range(0, n_slots, SLOTS, num_stages=1):
        slot_G, position_G, exists_G = slot_rows(first_slot, slot_ptr + row * n_slots, n_slots, SLOTS)
        q_GP = load_rows(q_ptr, position_G, q_sl, exists_G, place_P, P, True)
        acc_GP = tl.zeros([SLOTS, BLOCK_P], tl.float32)
        sum_G = tl.zeros([SLOTS], tl.float32)
        top_G = tl.full([SLOTS], -1e30, tl.float32)
        for start in tl.range(part * part_length, end, KEYS):
            key_K = start + tl.arange(0, KEYS)
            kept_K, seen_GK = row_sees(
                key_K, position_G, exists_G, real_ptr, segment_ptr, length, CAUSAL, HAS_MASK, HAS_SEGMENTS
            )
            k_KP = load_rows(k_ptr, key_K, k_sl, kept_K, place_P, P, True)
            v_KP = load_rows(v_ptr, key_K, v_sl, kept_K, place_P, P, True)
            acc_GP, top_G, sum_G = accumulate(acc_GP, top_G, sum_G, q_GP, k_KP, v_KP, seen_GK, scale2, True, PRECISION)
        index_G = ((row * heads + head) * n_slots + slot_G) * n_parts + part
        store_rows(part_ptr, index_G, P, slot_G < n_slots, place_P, acc_GP, P)
        tl.store(part_ptr + total * P + index_G, top_G, mask=slot_G < n_slots)
        tl.store(part_ptr + total * (P + 1) + index_G, sum_G, mask=slot_G < n_slots)


@triton.jit(do_not_specialize=["n_slots", "n_parts"])
def rows_merge(
    part_ptr, y_ptr, lse_ptr, slot_ptr, n_slots, n_parts, heads, y_sb, y_sl, y_sh,
    P: tl.constexpr, BLOCK_P: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The finished softmax of one global query of one head."""
    pid = tl.program_id(0).to(tl.int64)
    slot, row, head = pid % n_slots, pid // n_slots // heads, pid // n_slots % heads
    position = tl.load(slot_ptr + row * n_slots + slot).to(tl.int64)
    place_P = tl.arange(0, BLOCK_P)
    acc_P = tl.zeros([BLOCK_P], tl.float32)
    n_all = tl.num_programs(0).to(tl.int64) * n_parts
    top_ptr = part_ptr + n_all * P + pid * n_parts
    sum_ptr = part_ptr + n_all * (P + 1) + pid * n_parts
    top, total = -1e30, 0.0
    for start in tl.range(0, n_parts, PARTS):
        part_S = start + tl.arange(0, PARTS)
        inside_S = part_S < n_parts
        top_S = tl.load(top_ptr + part_S, mask=inside_S, other=-1e30)
        sum_S = tl.load(sum_ptr + part_S, mask=inside_S, other=0.0)
        part_SP = load_rows(part_ptr + pid * n_parts * P, part_S, P, inside_S, place_P, P, True)
        new = tl.maximum(top, tl.max(top_S, 0))
        factor_S = tl.exp2(top_S - new)
        shrink = tl.exp2(top - new)
        total = total * shrink + tl.sum(sum_S * factor_S, 0)
        acc_P = acc_P * shrink + tl.sum(part_SP * factor_S[:, None], 0)
        top = new
    # A position that is not there has no row to write.
    exists = position >= 0
    y_pointer_P = y_ptr + row * y_sb + head * y_sh + position * y_sl + place_P
    total = tl.where(total > 0, total, 1.0)
    tl.store(y_pointer_P, (acc_P / total).to(y_ptr.dtype.element_ty), mask=(place_P < P) & exists)
    tl.store(lse_ptr + pid, tl.where(exists, top + tl.log2(total), float("inf")))


@triton.jit(do_not_specialize=["length", "n_slots", "n_blocks"])
def rows_backward(
    q_ptr, k_ptr, v_ptr, y_ptr, dy_ptr, dq_ptr, dk_ptr, dv_ptr, part_dq_ptr, lse_ptr, real_ptr, segment_ptr, slot_ptr,
    scale, scale2, length, n_slots, n_blocks, heads,
    q_sb, q_sl, q_sh, k_sb, k_sl, k_sh, v_sb, v_sl, v_sh, y_sb, y_sl, y_sh, dy_sb, dy_sl, dy_sh,
    P: tl.constexpr, BLOCK_P: tl.constexpr, KEYS: tl.constexpr, SLOTS: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SEGMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys that the global queries look at, and what the block adds to those queries' dq.

    No other query has a gradient here: dq is zero at the block's positions, until `add_parts` writes the global ones.
    """
    pid = tl.program_id(0)
    block, row, head = pid % n_blocks, (pid // n_blocks // heads).to(tl.int64), pid // n_blocks % heads
    q_ptr += row * q_sb + head * q_sh
    k_ptr += row * k_sb + head * k_sh
    v_ptr += row * v_sb + head * v_sh
    y_ptr += row * y_sb + head * y_sh
    dy_ptr += row * dy_sb + head * dy_sh
    # Gradients are laid out as y is: contiguous.
    dq_ptr += row * y_sb + head * y_sh
    dk_ptr += row * y_sb + head * y_sh
    dv_ptr += row * y_sb + head * y_sh
    real_ptr += row * length
    segment_ptr += row * length
    place_P = tl.arange(0, BLOCK_P)
    key_K = block * KEYS + tl.arange(0, KEYS)
    kept_K = key_K < length
    if HAS_MASK:
        kept_K = kept_K & (tl.load(real_ptr + key_K, mask=kept_K, other=0) != 0)
    k_KP = load_rows(k_ptr, key_K, k_sl, kept_K, place_P, P, True)
    v_KP = load_rows(v_ptr, key_K, v_sl, kept_K, place_P, P, True)
    dk_KP = tl.zeros([KEYS, BLOCK_P], tl.float32)
    dv_KP = tl.zeros([KEYS, BLOCK_P], tl.float32)
    for first_slot in tl.range(0, n_slots, SLOTS, num_stages=1):
        slot_G, position_G, exists_G = slot_rows(first_slot, slot_ptr + row * n_slots, n_slots, SLOTS)
        kept_K, seen_GK = row_sees(key_K, position_G, exists_G, real_ptr, segment_ptr, length, CAUSAL, HAS_MASK, HAS_SEGMENTS)
        q_GP = load_rows(q_ptr, position_G, q_sl, exists_G, place_P, P, True)
        dy_GP = load_rows(dy_ptr, position_G, dy_sl, exists_G, place_P, P, True)
        y_GP = load_rows(y_ptr, position_G, y_sl, exists_G, place_P, P, True)
        delta_G = tl.sum(y_GP.to(tl.float32) * dy_GP.to(tl.float32), 1)
        lse_G = tl.load(lse_ptr + (row * heads + head) * n_slots + slot_G, mask=slot_G < n_slots, other=float("inf"))
        score_GK = tl.dot(q_GP, tl.trans(k_KP), input_precision=PRECISION)
        dp_GK = tl.dot(dy_GP, tl.trans(v_KP), input_precision=PRECISION)
        p_GK = tl.where(seen_GK, tl.exp2(score_GK * scale2 - lse_G[:, None]), 0.0)
        ds_GK = (p_GK * (dp_GK - delta_G[:, None])).to(k_KP.dtype)
        dv_KP = tl.dot(tl.trans(p_GK.to(k_KP.dtype)), dy_GP, dv_KP, input_precision=PRECISION)
        dk_KP = tl.dot(tl.trans(ds_GK), q_GP, dk_KP, input_precision=PRECISION)
        dq_GP = tl.dot(ds_GK, k_KP, input_precision=PRECISION) * scale
        index_G = ((row * heads + head) * n_slots + slot_G) * n_blocks + block
        store_rows(part_dq_ptr, index_G, P, slot_G < n_slots, place_P, dq_GP, P)
    store_rows(dq_ptr, key_K, y_sl, key_K < length, place_P, tl.zeros([KEYS, BLOCK_P], tl.float32), P)
    store_rows(dk_ptr, key_K, y_sl, key_K < length, place_P, dk_KP * scale, P)
    store_rows(dv_ptr, key_K, y_sl, key_K < length, place_P, dv_KP, P)


@triton.jit
def add_sum(part_ptr, out_ptr, pid, n_parts, P: tl.constexpr, BLOCK_P: tl.constexpr, PARTS: tl.constexpr):
    place_P = tl.arange(0, BLOCK_P)
    total_SP = tl.zeros([PARTS, BLOCK_P], tl.float32)
    for start in tl.range(0, n_parts, PARTS):
        part_S = start + tl.arange(0, PARTS)
        total_SP += load_rows(part_ptr + pid * n_parts * P, part_S, P, part_S < n_parts, place_P, P, True)
    before_P = tl.load(out_ptr + place_P, mask=place_P < P, other=0.0).to(tl.float32)
    tl.store(out_ptr + place_P, (before_P + tl.sum(total_SP, 0)).to(out_ptr.dtype.element_ty), mask=place_P < P)


@triton.jit(do_not_specialize=["n_slots", "n_parts", "n_parts_dq"])
def add_parts(
    column_ptr, part_dq_ptr, dk_ptr, dv_ptr, dq_ptr, slot_ptr, n_slots, n_parts, n_parts_dq, heads,
    out_sb, out_sl, out_sh,
    P: tl.constexpr, BLOCK_P: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Adds the sums of a slot's parts to the rows of its position, for one of three gradients; no two slots share a row."""
    pid = tl.program_id(0).to(tl.int64)
    slot, row, head = pid % n_slots, pid // n_slots // heads, pid // n_slots % heads
    position = tl.load(slot_ptr + row * n_slots + slot).to(tl.int64)
    if position >= 0:
        out = row * out_sb + head * out_sh + position * out_sl
        if tl.program_id(1) == 0:
            add_sum(column_ptr, dk_ptr + out, pid, n_parts, P, BLOCK_P, PARTS)
        elif tl.program_id(1) == 1:
            # Behind the parts of dk.
            add_sum(column_ptr + tl.num_programs(0).to(tl.int64) * n_parts * P, dv_ptr + out, pid, n_parts, P, BLOCK_P, PARTS)
        else:
            add_sum(part_dq_ptr, dq_ptr + out, pid, n_parts_dq, P, BLOCK_P, PARTS)
