"""Triton kernels of the band: every position over its window and over the global columns, forward and backward.

Scores live in base 2: with s = scale log2(e) q.k, a softmax is `exp2(s - lse)`. A key that is global and in the window is
seen through the window; the global column is seen by the positions outside it. Each key is so counted once, and no key
block needs to know which of its keys are global. Rows that the band does not answer (global, padding) get lse = +inf,
which makes all their probabilities zero in backward without another mask.
"""

# To a type checker Triton's decorated functions never return, and take no launch options.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

import triton
import triton.language as tl


@triton.jit
def load_rows(base, row_R, stride, kept_R, place_P, P: tl.constexpr, CHECK_ROWS: tl.constexpr):
    """(R, P) rows of one head; those that are not kept are zero and not read."""
    pointer_RP = base + row_R.to(tl.int64)[:, None] * stride + place_P[None, :]
    padded: tl.constexpr = place_P.shape[0] != P
    if CHECK_ROWS and padded:
        return tl.load(pointer_RP, mask=kept_R[:, None] & (place_P < P)[None, :], other=0.0)
    if CHECK_ROWS:
        return tl.load(pointer_RP, mask=kept_R[:, None], other=0.0)
    if padded:
        return tl.load(pointer_RP, mask=(place_P < P)[None, :], other=0.0)
    return tl.load(pointer_RP)


@triton.jit
def store_rows(base, row_R, stride, kept_R, place_P, x_RP, P: tl.constexpr):
    pointer_RP = base + row_R.to(tl.int64)[:, None] * stride + place_P[None, :]
    tl.store(pointer_RP, x_RP.to(base.dtype.element_ty), mask=kept_R[:, None] & (place_P < P)[None, :])


@triton.jit
def near(query_QK, key_QK, window, CAUSAL: tl.constexpr):
    """Whether the keys stand in the window of the queries."""
    distance_QK = key_QK - query_QK
    if CAUSAL:
        return (distance_QK >= -window) & (distance_QK <= 0)
    return (distance_QK >= -window) & (distance_QK <= window)


@triton.jit
def accumulate(acc_QP, top_Q, sum_Q, q_QP, k_KP, v_KP, seen_QK, scale2, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """One key block of a running softmax."""
    score_QK = tl.dot(q_QP, tl.trans(k_KP), input_precision=PRECISION)
    if MASKED:
        score_QK = tl.where(seen_QK, score_QK, float("-inf"))
    new_Q = tl.maximum(top_Q, tl.max(score_QK, 1) * scale2)
    p_QK = tl.exp2(score_QK * scale2 - new_Q[:, None])
    shrink_Q = tl.exp2(top_Q - new_Q)
    sum_Q = sum_Q * shrink_Q + tl.sum(p_QK, 1)
    acc_QP = tl.dot(p_QK.to(v_KP.dtype), v_KP, acc_QP * shrink_Q[:, None], input_precision=PRECISION)
    return acc_QP, new_Q, sum_Q


@triton.jit
def key_range(first, last, n_keys, window, CAUSAL: tl.constexpr, BLOCK: tl.constexpr):
    """Where the blocks reached from positions first ... last begin, where those seen whole begin and end, and the end."""
    reach = 0 if CAUSAL else window
    low = tl.maximum(first - window, 0)
    high = tl.minimum(last + reach + 1, n_keys)
    whole_low = low + tl.cdiv(tl.maximum(last - window - low, 0), BLOCK) * BLOCK
    whole = tl.maximum(tl.minimum(first + reach + 1, n_keys) - whole_low, 0) // BLOCK * BLOCK
    # Without a whole block, the right edge is all of them.
    whole_low = tl.where(whole > 0, whole_low, low)
    return low, whole_low, whole_low + whole, high


@triton.jit
def count_blocks(low, whole_low, whole_high, high, BLOCK: tl.constexpr, EDGE: tl.constexpr):
    """How many blocks stand at the left edge, and in how many a loop is over: both edges together, or those seen whole."""
    if EDGE:
        n_left = (whole_low - low) // BLOCK
        return n_left, n_left + tl.cdiv(high - whole_high, BLOCK)
    return 0, (whole_high - whole_low) // BLOCK


@triton.jit
def block_start(i, n_left, low, whole_low, whole_high, BLOCK: tl.constexpr, EDGE: tl.constexpr):
    if EDGE:
        return tl.where(i < n_left, low + i * BLOCK, whole_high + (i - n_left) * BLOCK)
    return whole_low + i * BLOCK


@triton.jit
def keys_seen(
    start, query_Q, query_segment_Q, real_ptr, segment_ptr, n_keys, window,
    BLOCK: tl.constexpr, EDGE: tl.constexpr, CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SEGMENTS: tl.constexpr,
):  # fmt: skip
    """Positions of a key block, which of them may be read, and which a query sees; cheap where the block is seen whole."""
    key_K = start + tl.arange(0, BLOCK)
    kept_K = key_K < n_keys
    if HAS_MASK:
        kept_K = kept_K & (tl.load(real_ptr + key_K, mask=kept_K, other=0) != 0)
    seen_QK = kept_K[None, :]
    if EDGE:
        seen_QK = seen_QK & near(query_Q[:, None], key_K[None, :], window, CAUSAL)
    if HAS_SEGMENTS:
        segment_K = tl.load(segment_ptr + key_K, mask=key_K < n_keys, other=0)
        seen_QK = seen_QK & (query_segment_Q[:, None] == segment_K[None, :])
    return key_K, kept_K, seen_QK


@triton.jit
def forward_blocks(
    acc_QP, top_Q, sum_Q, q_QP, low, whole_low, whole_high, high, k_ptr, v_ptr, real_ptr, segment_ptr,
    query_Q, query_segment_Q, place_P, scale2, n_keys, window, k_stride, v_stride,
    P: tl.constexpr, BLOCK: tl.constexpr, EDGE: tl.constexpr, CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_SEGMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    CHECK: tl.constexpr = EDGE or HAS_MASK
    MASKED: tl.constexpr = EDGE or HAS_MASK or HAS_SEGMENTS
    n_left, n_blocks = count_blocks(low, whole_low, whole_high, high, BLOCK, EDGE)
    for i in tl.range(0, n_blocks):
        start = block_start(i, n_left, low, whole_low, whole_high, BLOCK, EDGE)
        key_K, kept_K, seen_QK = keys_seen(
            start, query_Q, query_segment_Q, real_ptr, segment_ptr, n_keys, window,
            BLOCK, EDGE, CAUSAL, HAS_MASK, HAS_SEGMENTS,
        )  # fmt: skip
        k_KP = load_rows(k_ptr, key_K, k_stride, kept_K, place_P, P, CHECK)
        v_KP = load_rows(v_ptr, key_K, v_stride, kept_K, place_P, P, CHECK)
        acc_QP, top_Q, sum_Q = accumulate(acc_QP, top_Q, sum_Q, q_QP, k_KP, v_KP, seen_QK, scale2, MASKED, PRECISION)
    return acc_QP, top_Q, sum_Q


@triton.jit
def columns_seen(
    first_slot, slot_ptr, segment_ptr, query_Q, query_segment_Q, n_slots, window,
    SLOTS: tl.constexpr, CAUSAL: tl.constexpr, HAS_SEGMENTS: tl.constexpr,
):  # fmt: skip
    """Positions of a block of global tokens (0 for spare slots), which exist, and which a query sees outside its window."""
    slot_G = first_slot + tl.arange(0, SLOTS)
    position_G = tl.load(slot_ptr + slot_G, mask=slot_G < n_slots, other=-1)
    exists_G = position_G >= 0
    position_G = tl.maximum(position_G, 0)
    distance_QG = position_G[None, :] - query_Q[:, None]
    if CAUSAL:
        seen_QG = exists_G[None, :] & (distance_QG < -window)
    else:
        seen_QG = exists_G[None, :] & ((distance_QG < -window) | (distance_QG > window))
    if HAS_SEGMENTS:
        segment_G = tl.load(segment_ptr + position_G, mask=exists_G, other=0)
        seen_QG = seen_QG & (query_segment_Q[:, None] == segment_G[None, :])
    return position_G, exists_G, seen_QG


@triton.jit(do_not_specialize=["length", "n_keys", "window", "n_slots", "n_blocks"])
def band_forward(
    q_ptr, k_ptr, v_ptr, y_ptr, lse_ptr, real_ptr, segment_ptr, global_ptr, slot_ptr,
    scale2, length, n_keys, window, n_slots, n_blocks, heads,
    q_sb, q_sl, q_sh, k_sb, k_sl, k_sh, v_sb, v_sl, v_sh, y_sb, y_sl, y_sh,
    P: tl.constexpr, BLOCK_P: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, SLOTS: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SEGMENTS: tl.constexpr, HAS_GLOBAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y and lse of a block of queries of one head."""
    pid = tl.program_id(0)
    row, head = (pid // n_blocks // heads).to(tl.int64), pid // n_blocks % heads
    q_ptr += row * q_sb + head * q_sh
    k_ptr += row * k_sb + head * k_sh
    v_ptr += row * v_sb + head * v_sh
    y_ptr += row * y_sb + head * y_sh
    lse_ptr += (row * heads + head) * length
    real_ptr += row * n_keys
    segment_ptr += row * n_keys
    index_Q = pid % n_blocks * QUERIES + tl.arange(0, QUERIES)
    first = pid % n_blocks * QUERIES + n_keys - length
    query_Q = index_Q + n_keys - length
    place_P = tl.arange(0, BLOCK_P)
    inside_Q = index_Q < length
    kept_Q = inside_Q
    if HAS_MASK:
        kept_Q = kept_Q & (tl.load(real_ptr + query_Q, mask=inside_Q, other=0) != 0)
    query_segment_Q = query_Q
    if HAS_SEGMENTS:
        query_segment_Q = tl.load(segment_ptr + query_Q, mask=inside_Q, other=0)
    q_QP = load_rows(q_ptr, index_Q, q_sl, kept_Q, place_P, P, True)
    acc_QP = tl.zeros([QUERIES, BLOCK_P], tl.float32)
    sum_Q = tl.zeros([QUERIES], tl.float32)
    # Finite, so that a block in which a query sees nothing gives exp2(-inf) = 0 and not NaN.
    top_Q = tl.full([QUERIES], -1e30, tl.float32)
    low, whole_low, whole_high, high = key_range(first, first + QUERIES - 1, n_keys, window, CAUSAL, KEYS)
    acc_QP, top_Q, sum_Q = forward_blocks(
        acc_QP, top_Q, sum_Q, q_QP, low, whole_low, whole_high, high, k_ptr, v_ptr, real_ptr, segment_ptr,
        query_Q, query_segment_Q, place_P, scale2, n_keys, window, k_sl, v_sl,
        P, KEYS, False, CAUSAL, HAS_MASK, HAS_SEGMENTS, PRECISION,
    )  # fmt: skip
    acc_QP, top_Q, sum_Q = forward_blocks(
        acc_QP, top_Q, sum_Q, q_QP, low, whole_low, whole_high, high, k_ptr, v_ptr, real_ptr, segment_ptr,
        query_Q, query_segment_Q, place_P, scale2, n_keys, window, k_sl, v_sl,
        P, KEYS, True, CAUSAL, HAS_MASK, HAS_SEGMENTS, PRECISION,
    )  # fmt: skip
    answered_Q = kept_Q
    if HAS_GLOBAL:
        for first_slot in tl.range(0, n_slots, SLOTS, num_stages=1):
            position_G, exists_G, seen_QG = columns_seen(
                first_slot, slot_ptr + row * n_slots, segment_ptr, query_Q, query_segment_Q, n_slots, window,
                SLOTS, CAUSAL, HAS_SEGMENTS,
            )  # fmt: skip
            k_GP = load_rows(k_ptr, position_G, k_sl, exists_G, place_P, P, True)
            v_GP = load_rows(v_ptr, position_G, v_sl, exists_G, place_P, P, True)
            acc_QP, top_Q, sum_Q = accumulate(acc_QP, top_Q, sum_Q, q_QP, k_GP, v_GP, seen_QG, scale2, True, PRECISION)
        answered_Q = answered_Q & (tl.load(global_ptr + row * length + index_Q, mask=inside_Q, other=1) == 0)
    y_QP = tl.where(kept_Q[:, None], acc_QP / tl.where(sum_Q > 0, sum_Q, 1.0)[:, None], 0.0)
    store_rows(y_ptr, index_Q, y_sl, inside_Q, place_P, y_QP, P)
    lse_Q = tl.where(answered_Q, top_Q + tl.log2(tl.where(sum_Q > 0, sum_Q, 1.0)), float("inf"))
    tl.store(lse_ptr + index_Q, lse_Q, mask=inside_Q)


@triton.jit
def dq_blocks(
    dq_QP, q_QP, dy_QP, lse_Q, delta_Q, low, whole_low, whole_high, high, k_ptr, v_ptr, real_ptr, segment_ptr,
    query_Q, query_segment_Q, place_P, scale2, n_keys, window, k_stride, v_stride,
    P: tl.constexpr, BLOCK: tl.constexpr, EDGE: tl.constexpr, CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_SEGMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    CHECK: tl.constexpr = EDGE or HAS_MASK
    n_left, n_blocks = count_blocks(low, whole_low, whole_high, high, BLOCK, EDGE)
    for i in tl.range(0, n_blocks):
        start = block_start(i, n_left, low, whole_low, whole_high, BLOCK, EDGE)
        key_K, kept_K, seen_QK = keys_seen(
            start, query_Q, query_segment_Q, real_ptr, segment_ptr, n_keys, window,
            BLOCK, EDGE, CAUSAL, HAS_MASK, HAS_SEGMENTS,
        )  # fmt: skip
        k_KP = load_rows(k_ptr, key_K, k_stride, kept_K, place_P, P, CHECK)
        v_KP = load_rows(v_ptr, key_K, v_stride, kept_K, place_P, P, CHECK)
        score_QK = tl.dot(q_QP, tl.trans(k_KP), input_precision=PRECISION)
        dp_QK = tl.dot(dy_QP, tl.trans(v_KP), input_precision=PRECISION)
        p_QK = tl.exp2(score_QK * scale2 - lse_Q[:, None])
        if EDGE or HAS_MASK or HAS_SEGMENTS:
            p_QK = tl.where(seen_QK, p_QK, 0.0)
        ds_QK = p_QK * (dp_QK - delta_Q[:, None])
        dq_QP = tl.dot(ds_QK.to(k_KP.dtype), k_KP, dq_QP, input_precision=PRECISION)
    return dq_QP


@triton.jit(do_not_specialize=["length", "n_keys", "window", "n_slots", "n_blocks"])
def band_backward_queries(
    q_ptr, k_ptr, v_ptr, y_ptr, dy_ptr, dq_ptr, lse_ptr, delta_ptr, column_ptr,
    real_ptr, segment_ptr, slot_ptr,
    scale, scale2, length, n_keys, window, n_slots, n_blocks, heads,
    q_sb, q_sl, q_sh, k_sb, k_sl, k_sh, v_sb, v_sl, v_sh, y_sb, y_sl, y_sh, dy_sb, dy_sl, dy_sh,
    P: tl.constexpr, BLOCK_P: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, SLOTS: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SEGMENTS: tl.constexpr, HAS_GLOBAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq and delta = dy.y of a block of queries, and what the block adds to dk and dv of the global columns."""
    pid = tl.program_id(0)
    block, row, head = pid % n_blocks, (pid // n_blocks // heads).to(tl.int64), pid // n_blocks % heads
    q_ptr += row * q_sb + head * q_sh
    k_ptr += row * k_sb + head * k_sh
    v_ptr += row * v_sb + head * v_sh
    y_ptr += row * y_sb + head * y_sh
    dy_ptr += row * dy_sb + head * dy_sh
    # dq is laid out as y is: contiguous.
    dq_ptr += row * y_sb + head * y_sh
    lse_ptr += (row * heads + head) * length
    delta_ptr += (row * heads + head) * length
    real_ptr += row * n_keys
    segment_ptr += row * n_keys
    index_Q = block * QUERIES + tl.arange(0, QUERIES)
    first = block * QUERIES + n_keys - length
    query_Q = index_Q + n_keys - length
    place_P = tl.arange(0, BLOCK_P)
    inside_Q = index_Q < length
    kept_Q = inside_Q
    if HAS_MASK:
        kept_Q = kept_Q & (tl.load(real_ptr + query_Q, mask=inside_Q, other=0) != 0)
    query_segment_Q = query_Q
    if HAS_SEGMENTS:
        query_segment_Q = tl.load(segment_ptr + query_Q, mask=inside_Q, other=0)
    q_QP = load_rows(q_ptr, index_Q, q_sl, kept_Q, place_P, P, True)
    dy_QP = load_rows(dy_ptr, index_Q, dy_sl, kept_Q, place_P, P, True)
    y_QP = load_rows(y_ptr, index_Q, y_sl, kept_Q, place_P, P, True)
    delta_Q = tl.sum(y_QP.to(tl.float32) * dy_QP.to(tl.float32), 1)
    tl.store(delta_ptr + index_Q, delta_Q, mask=inside_Q)
    lse_Q = tl.load(lse_ptr + index_Q, mask=inside_Q, other=float("inf"))
    dq_QP = tl.zeros([QUERIES, BLOCK_P], tl.float32)
    low, whole_low, whole_high, high = key_range(first, first + QUERIES - 1, n_keys, window, CAUSAL, KEYS)
    dq_QP = dq_blocks(
        dq_QP, q_QP, dy_QP, lse_Q, delta_Q, low, whole_low, whole_high, high, k_ptr, v_ptr, real_ptr, segment_ptr,
        query_Q, query_segment_Q, place_P, scale2, n_keys, window, k_sl, v_sl,
        P, KEYS, False, CAUSAL, HAS_MASK, HAS_SEGMENTS, PRECISION,
    )  # fmt: skip
    dq_QP = dq_blocks(
        dq_QP, q_QP, dy_QP, lse_Q, delta_Q, low, whole_low, whole_high, high, k_ptr, v_ptr, real_ptr, segment_ptr,
        query_Q, query_segment_Q, place_P, scale2, n_keys, window, k_sl, v_sl,
        P, KEYS, True, CAUSAL, HAS_MASK, HAS_SEGMENTS, PRECISION,
    )  # fmt: skip
    if HAS_GLOBAL:
        for first_slot in tl.range(0, n_slots, SLOTS, num_stages=1):
            position_G, exists_G, seen_QG = columns_seen(
                first_slot, slot_ptr + row * n_slots, segment_ptr, query_Q, query_segment_Q, n_slots, window,
                SLOTS, CAUSAL, HAS_SEGMENTS,
            )  # fmt: skip
            k_GP = load_rows(k_ptr, position_G, k_sl, exists_G, place_P, P, True)
            v_GP = load_rows(v_ptr, position_G, v_sl, exists_G, place_P, P, True)
            score_QG = tl.dot(q_QP, tl.trans(k_GP), input_precision=PRECISION)
            dp_QG = tl.dot(dy_QP, tl.trans(v_GP), input_precision=PRECISION)
            p_QG = tl.where(seen_QG, tl.exp2(score_QG * scale2 - lse_Q[:, None]), 0.0)
            ds_QG = (p_QG * (dp_QG - delta_Q[:, None])).to(q_QP.dtype)
            dq_QP = tl.dot(ds_QG, k_GP, dq_QP, input_precision=PRECISION)
            dk_GP = tl.dot(tl.trans(ds_QG), q_QP, input_precision=PRECISION) * scale
            dv_GP = tl.dot(tl.trans(p_QG.to(q_QP.dtype)), dy_QP, input_precision=PRECISION)
            # One part per block of queries, laid out (head of the batch, slot, block, P) and summed in a fixed order.
            slot_G = first_slot + tl.arange(0, SLOTS)
            part_G = ((row * heads + head) * n_slots + slot_G) * n_blocks + block
            store_rows(column_ptr, part_G, P, slot_G < n_slots, place_P, dk_GP, P)
            part_G += tl.num_programs(0).to(tl.int64) * n_slots
            store_rows(column_ptr, part_G, P, slot_G < n_slots, place_P, dv_GP, P)
    store_rows(dq_ptr, index_Q, y_sl, inside_Q, place_P, dq_QP * scale, P)


@triton.jit
def dkv_blocks(
    dk_KP, dv_KP, k_KP, v_KP, low, whole_low, whole_high, high, offset, q_ptr, dy_ptr, lse_ptr, delta_ptr,
    real_ptr, segment_ptr, key_K, key_segment_K, place_P, scale2, length, window, q_stride, dy_stride,
    P: tl.constexpr, BLOCK: tl.constexpr, EDGE: tl.constexpr, CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_SEGMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    CHECK: tl.constexpr = EDGE or HAS_MASK
    n_left, n_blocks = count_blocks(low, whole_low, whole_high, high, BLOCK, EDGE)
    for i in tl.range(0, n_blocks):
        start = block_start(i, n_left, low, whole_low, whole_high, BLOCK, EDGE)
        index_Q = start - offset + tl.arange(0, BLOCK)
        kept_Q = index_Q < length
        if HAS_MASK:
            kept_Q = kept_Q & (tl.load(real_ptr + index_Q + offset, mask=kept_Q, other=0) != 0)
        q_QP = load_rows(q_ptr, index_Q, q_stride, kept_Q, place_P, P, CHECK)
        dy_QP = load_rows(dy_ptr, index_Q, dy_stride, kept_Q, place_P, P, CHECK)
        lse_Q = tl.load(lse_ptr + index_Q, mask=index_Q < length, other=float("inf"))
        delta_Q = tl.load(delta_ptr + index_Q, mask=index_Q < length, other=0.0)
        score_KQ = tl.dot(k_KP, tl.trans(q_QP), input_precision=PRECISION)
        p_KQ = tl.exp2(score_KQ * scale2 - lse_Q[None, :])
        if EDGE:
            p_KQ = tl.where(near((index_Q + offset)[None, :], key_K[:, None], window, CAUSAL), p_KQ, 0.0)
        if HAS_SEGMENTS:
            segment_Q = tl.load(segment_ptr + index_Q + offset, mask=index_Q < length, other=0)
            p_KQ = tl.where(key_segment_K[:, None] == segment_Q[None, :], p_KQ, 0.0)
        dv_KP = tl.dot(p_KQ.to(dy_QP.dtype), dy_QP, dv_KP, input_precision=PRECISION)
        dp_KQ = tl.dot(v_KP, tl.trans(dy_QP), input_precision=PRECISION)
        ds_KQ = p_KQ * (dp_KQ - delta_Q[None, :])
        dk_KP = tl.dot(ds_KQ.to(q_QP.dtype), q_QP, dk_KP, input_precision=PRECISION)
    return dk_KP, dv_KP


@triton.jit(do_not_specialize=["length", "n_keys", "window", "n_blocks"])
def band_backward_keys(
    q_ptr, k_ptr, v_ptr, dy_ptr, dk_ptr, dv_ptr, lse_ptr, delta_ptr, real_ptr, segment_ptr,
    scale, scale2, length, n_keys, window, n_blocks, heads,
    q_sb, q_sl, q_sh, k_sb, k_sl, k_sh, v_sb, v_sl, v_sh, dy_sb, dy_sl, dy_sh, dk_sb, dk_sl, dk_sh,
    P: tl.constexpr, BLOCK_P: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SEGMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys of one head, from the queries whose window reaches it."""
    pid = tl.program_id(0)
    block, row, head = pid % n_blocks, (pid // n_blocks // heads).to(tl.int64), pid // n_blocks % heads
    q_ptr += row * q_sb + head * q_sh
    k_ptr += row * k_sb + head * k_sh
    v_ptr += row * v_sb + head * v_sh
    dy_ptr += row * dy_sb + head * dy_sh
    dk_ptr += row * dk_sb + head * dk_sh
    dv_ptr += row * dk_sb + head * dk_sh
    lse_ptr += (row * heads + head) * length
    delta_ptr += (row * heads + head) * length
    real_ptr += row * n_keys
    segment_ptr += row * n_keys
    first = block * KEYS
    last = first + KEYS - 1
    offset = n_keys - length
    key_K = first + tl.arange(0, KEYS)
    place_P = tl.arange(0, BLOCK_P)
    inside_K = key_K < n_keys
    kept_K = inside_K
    if HAS_MASK:
        kept_K = kept_K & (tl.load(real_ptr + key_K, mask=inside_K, other=0) != 0)
    key_segment_K = key_K
    if HAS_SEGMENTS:
        key_segment_K = tl.load(segment_ptr + key_K, mask=inside_K, other=0)
    k_KP = load_rows(k_ptr, key_K, k_sl, kept_K, place_P, P, True)
    v_KP = load_rows(v_ptr, key_K, v_sl, kept_K, place_P, P, True)
    # Positions of the queries that see some key of the block, and of those that see all of them.
    reach = 0 if CAUSAL else window
    low = tl.maximum(first - reach, offset)
    high = tl.minimum(last + window + 1, n_keys)
    whole_low = low + tl.cdiv(tl.maximum(last - reach - low, 0), QUERIES) * QUERIES
    whole = tl.maximum(tl.minimum(first + window + 1, n_keys) - whole_low, 0) // QUERIES * QUERIES
    whole_low = tl.where(whole > 0, whole_low, low)
    dk_KP = tl.zeros([KEYS, BLOCK_P], tl.float32)
    dv_KP = tl.zeros([KEYS, BLOCK_P], tl.float32)
    dk_KP, dv_KP = dkv_blocks(
        dk_KP, dv_KP, k_KP, v_KP, low, whole_low, whole_low + whole, high, offset, q_ptr, dy_ptr, lse_ptr, delta_ptr,
        real_ptr, segment_ptr, key_K, key_segment_K, place_P, scale2, length, window, q_sl, dy_sl,
        P, QUERIES, False, CAUSAL, HAS_MASK, HAS_SEGMENTS, PRECISION,
    )  # fmt: skip
    dk_KP, dv_KP = dkv_blocks(
        dk_KP, dv_KP, k_KP, v_KP, low, whole_low, whole_low + whole, high, offset, q_ptr, dy_ptr, lse_ptr, delta_ptr,
        real_ptr, segment_ptr, key_K, key_segment_K, place_P, scale2, length, window, q_sl, dy_sl,
        P, QUERIES, True, CAUSAL, HAS_MASK, HAS_SEGMENTS, PRECISION,
    )  # fmt: skip
    # A masked key saw scores of zero: its rows are wrong, and nobody else's.
    store_rows(dk_ptr, key_K, dk_sl, inside_K, place_P, tl.where(kept_K[:, None], dk_KP * scale, 0.0), P)
    store_rows(dv_ptr, key_K, dk_sl, inside_K, place_P, tl.where(kept_K[:, None], dv_KP, 0.0), P)
