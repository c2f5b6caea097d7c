"""SSD's GPU kernels: a program owns one head and walks through its chunks with the P x N state in registers.

Inside a chunk of T positions the recurrence is a masked T x T product on the tensor cores; the state goes from chunk to chunk
without leaving the program, so nothing of it is written unless a backward pass will follow. Time runs in scan order:
position = step, or L - 1 - step for the reversed direction. Decays are powers of two of sums within the chunk.
"""

# To a type checker Triton's decorated functions never return.
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)

# Values that differ from call to call; specialising on them would compile the same code again and again.
VARYING = ["L", "n_chunks", "stretch", "padded", "dt_batch", "x_batch", "B_batch", "C_batch", "v_batch", "map_batch"]
VARYING += ["heads_per_program"]


@triton.jit
def softplus(v):
    """max(v, 0) + log1p(exp(-|v|)), accurate for small results too: log1p(e) = 2 atanh(e / (2 + e))."""
    e = tl.exp2(tl.abs(v) * -LOG2_E)
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 + q * (1.0 / 3.0 + q * (1.0 / 5.0 + q * (1.0 / 7.0 + q * (1.0 / 9.0 + q * (1.0 / 11.0 + q * (1.0 / 13.0))))))
    return tl.maximum(v, 0.0) + 2.0 * s * series


@triton.jit
def locate(chunk, L, row, mask_ptr, T: tl.constexpr, SIGN: tl.constexpr, HAS_MASK: tl.constexpr):
    """A chunk's first position, 64 bits wide, which of its steps are inside the sequence, and which of those are real."""
    steps = tl.arange(0, T)
    inside = chunk * T + steps < L
    first = row * 0 + chunk * T
    if SIGN < 0:
        first = L - 1 - first
    real = inside
    if HAS_MASK:
        real = inside & (tl.load(mask_ptr + row * L + first + SIGN * steps, mask=inside, other=0) != 0)
    return first, inside, real


@triton.jit
def load_rows(ptr, first, stride, columns, real, T: tl.constexpr, SIGN: tl.constexpr, WIDTH: tl.constexpr):
    """(T, columns) of a tensor whose positions are `stride` elements apart; zero where not real."""
    at = SIGN * (tl.arange(0, T)[:, None] * stride) + columns[None, :]
    return tl.load(ptr + first * stride + at, mask=real[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def load_sums(hi_ptr, lo_ptr, at, EXACT: tl.constexpr):
    """A sum of log2-decays as a float32 number and, if EXACT, what it lacks."""
    hi = tl.load(hi_ptr + at)
    lo = hi * 0.0
    if EXACT:
        lo = tl.load(lo_ptr + at)
    return hi, lo


@triton.jit
def chunk_decays(chunk, hi_ptr, lo_ptr, run_ptr, T: tl.constexpr, HAS_RUNS: tl.constexpr, EXACT: tl.constexpr):
    """From the chunk's start to each step, from each step to its end, and over all of it; pointers are the row's."""
    steps = chunk * T + tl.arange(0, T)
    hi, lo = load_sums(hi_ptr, lo_ptr, steps, EXACT)
    last_hi, last_lo = load_sums(hi_ptr, lo_ptr, chunk * T + T - 1, EXACT)
    from_start, to_end, whole = tl.exp2(hi + lo), tl.exp2((last_hi - hi) + (last_lo - lo)), tl.exp2(last_hi + last_lo)
    if HAS_RUNS:
        runs = tl.load(run_ptr + steps)
        before = tl.load(run_ptr + tl.maximum(chunk * T - 1, 0))
        last = tl.load(run_ptr + chunk * T + T - 1)
        from_start = tl.where(runs == before, from_start, 0.0)
        to_end = tl.where(runs == last, to_end, 0.0)
        whole = tl.where(before == last, whole, 0.0)
    return from_start, to_end, whole


@triton.jit
def pair_decays(chunk, hi_ptr, lo_ptr, run_ptr, T: tl.constexpr, HAS_RUNS: tl.constexpr, EXACT: tl.constexpr):
    """(T, T): the decay from step j to step i, zero for i < j and across segments."""
    steps = tl.arange(0, T)
    at = chunk * T + steps
    hi, lo = load_sums(hi_ptr, lo_ptr, at, EXACT)
    between = hi[:, None] - hi[None, :]
    if EXACT:
        between += lo[:, None] - lo[None, :]
    seen = steps[:, None] >= steps[None, :]
    if HAS_RUNS:
        runs = tl.load(run_ptr + at)
        seen = seen & (runs[:, None] == runs[None, :])
    return tl.where(seen, tl.exp2(tl.minimum(between, 0.0)), 0.0)


@triton.jit(do_not_specialize=VARYING)
def sum_decays(
    dt_ptr,
    bias_ptr,
    A_ptr,
    mask_ptr,
    step_ptr,
    hi_ptr,
    lo_ptr,
    L,
    H,
    padded,
    dt_batch,
    dt_row,
    T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    SIGN: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Step sizes, and the log2-decays summed from the start of each chunk, as (B, H, steps); nothing decays past the end.

    EXACT adds in float64 and keeps the sum as two float32 numbers, so that the difference of two sums is exact as well.
    """
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    heads = tl.program_id(2) * BLOCK_H + tl.arange(0, BLOCK_H)
    ok_H = heads < H
    first, _, real = locate(chunk, L, row, mask_ptr, T, SIGN, HAS_MASK)
    ok = real[:, None] & ok_H[None, :]
    at = SIGN * (tl.arange(0, T)[:, None] * dt_row) + heads[None, :]
    dt = tl.load(dt_ptr + row * dt_batch + first * dt_row + at, mask=ok, other=0.0).to(tl.float32)
    if HAS_BIAS:
        dt += tl.load(bias_ptr + heads, mask=ok_H, other=0.0).to(tl.float32)[None, :]
    if SOFTPLUS:
        dt = softplus(dt)
    dt = tl.where(ok, dt, 0.0)
    rates = tl.load(A_ptr + heads, mask=ok_H, other=0.0).to(tl.float32) * LOG2_E
    logs = tl.minimum(dt * rates[None, :], 0.0)
    out = row * H * padded + chunk * T + heads[None, :] * padded + tl.arange(0, T)[:, None]
    tl.store(step_ptr + out, dt, mask=ok_H[None, :])
    if EXACT:
        sums = tl.cumsum(logs.to(tl.float64), 0)
        hi = sums.to(tl.float32)
        tl.store(lo_ptr + out, (sums - hi.to(tl.float64)).to(tl.float32), mask=ok_H[None, :])
    else:
        hi = tl.cumsum(logs, 0)
    tl.store(hi_ptr + out, hi, mask=ok_H[None, :])


@triton.jit(do_not_specialize=VARYING)
def ssd_forward(
    x_ptr,
    B_ptr,
    C_ptr,
    skip_ptr,
    mask_ptr,
    run_ptr,
    step_ptr,
    hi_ptr,
    lo_ptr,
    start_ptr,
    y_ptr,
    last_ptr,
    kept_ptr,
    L,
    H,
    n_chunks,
    stretch,
    padded,
    heads_per_group,
    x_batch,
    x_row,
    B_batch,
    B_row,
    C_batch,
    C_row,
    P: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    SIGN: tl.constexpr,
    SAVE: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_RUNS: tl.constexpr,
    EXACT: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One stretch of chunks of one head from its entering state: outputs, the last state, and the state before each chunk."""
    head, segment, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    group = head // heads_per_group
    p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    at_PN = p[:, None] * N + n[None, :]
    ok_PN = (p < P)[:, None] & (n < N)[None, :]
    state = ((row * tl.num_programs(1) + segment) * H + head) * (P * N)
    h = tl.load(start_ptr + state + at_PN, mask=ok_PN, other=0.0)
    x_ptr += row * x_batch * x_row + head * P
    B_ptr += row * B_batch * B_row + group * N
    C_ptr += row * C_batch * C_row + group * N
    y_ptr += (row * L * H + head) * P
    step_ptr += (row * H + head) * padded
    hi_ptr += (row * H + head) * padded
    lo_ptr += (row * H + head) * padded
    run_ptr += row * padded
    kept_ptr += (row * n_chunks * H + head) * (P * N)
    skip = 0.0
    if HAS_SKIP:
        skip = tl.load(skip_ptr + head).to(tl.float32)
    for i in tl.range(segment * stretch, tl.minimum((segment + 1) * stretch, n_chunks), num_stages=STAGES):
        # A tensor in the interpreter too.
        chunk = segment * 0 + i
        first, inside, real = locate(chunk, L, row, mask_ptr, T, SIGN, HAS_MASK)
        x = load_rows(x_ptr, first, x_row, p, real, T, SIGN, P)
        B = load_rows(B_ptr, first, B_row, n, real, T, SIGN, N).to(DOT_TYPE)
        C = load_rows(C_ptr, first, C_row, n, real, T, SIGN, N).to(DOT_TYPE)
        dt = tl.load(step_ptr + chunk * T + tl.arange(0, T))
        from_start, to_end, whole = chunk_decays(chunk, hi_ptr, lo_ptr, run_ptr, T, HAS_RUNS, EXACT)
        if SAVE:
            kept = chunk.to(tl.int64) * H * (P * N)
            tl.store(kept_ptr + kept + at_PN, h.to(kept_ptr.dtype.element_ty), mask=ok_PN)
        y = tl.dot(C, tl.trans(h.to(DOT_TYPE)), input_precision=PRECISION) * from_start[:, None]
        scores = tl.dot(C, tl.trans(B), input_precision=PRECISION)
        mixing = scores * pair_decays(chunk, hi_ptr, lo_ptr, run_ptr, T, HAS_RUNS, EXACT) * dt[None, :]
        y += tl.dot(mixing.to(DOT_TYPE), x.to(DOT_TYPE), input_precision=PRECISION)
        if HAS_SKIP:
            y += skip * x.to(tl.float32)
        at_y = SIGN * (tl.arange(0, T)[:, None] * (H * P)) + p[None, :]
        tl.store(y_ptr + first * (H * P) + at_y, y.to(y_ptr.dtype.element_ty), mask=inside[:, None] & (p < P)[None, :])
        weighted = (x.to(tl.float32) * (dt * to_end)[:, None]).to(DOT_TYPE)
        h = h * whole + tl.dot(tl.trans(weighted), B, input_precision=PRECISION)
    tl.store(last_ptr + state + at_PN, h, mask=ok_PN)


@triton.jit(do_not_specialize=VARYING)
def walk_states(
    v_ptr,
    map_ptr,
    mask_ptr,
    run_ptr,
    step_ptr,
    hi_ptr,
    lo_ptr,
    start_ptr,
    last_ptr,
    total_ptr,
    kept_ptr,
    L,
    H,
    n_chunks,
    stretch,
    padded,
    heads_per_group,
    v_batch,
    v_row,
    map_batch,
    map_row,
    P: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    SIGN: tl.constexpr,
    BACKWARD: tl.constexpr,
    SAVE: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_RUNS: tl.constexpr,
    EXACT: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The states alone, without outputs: those of the recurrence from x and B, or, BACKWARD, their gradients from dy and C.

    Keeps, with SAVE, the gradient of the state that leaves each chunk.
    """
    head, segment, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    at_PN = p[:, None] * N + n[None, :]
    ok_PN = (p < P)[:, None] & (n < N)[None, :]
    stretch_of = (row * tl.num_programs(1) + segment) * H + head
    h = tl.load(start_ptr + stretch_of * (P * N) + at_PN, mask=ok_PN, other=0.0)
    v_ptr += row * v_batch * v_row + head * P
    map_ptr += row * map_batch * map_row + (head // heads_per_group) * N
    step_ptr += (row * H + head) * padded
    hi_ptr += (row * H + head) * padded
    lo_ptr += (row * H + head) * padded
    run_ptr += row * padded
    kept_ptr += (row * n_chunks * H + head) * (P * N)
    total = 1.0
    first, end = segment * stretch, tl.minimum((segment + 1) * stretch, n_chunks)
    for i in tl.range(first, end, num_stages=STAGES):
        # A tensor in the interpreter too.
        chunk = segment * 0 + i
        if BACKWARD:
            chunk = first + end - 1 - i
        place, _, real = locate(chunk, L, row, mask_ptr, T, SIGN, HAS_MASK)
        v = load_rows(v_ptr, place, v_row, p, real, T, SIGN, P)
        rows = load_rows(map_ptr, place, map_row, n, real, T, SIGN, N).to(DOT_TYPE)
        from_start, to_end, whole = chunk_decays(chunk, hi_ptr, lo_ptr, run_ptr, T, HAS_RUNS, EXACT)
        if SAVE:
            kept = chunk.to(tl.int64) * H * (P * N)
            tl.store(kept_ptr + kept + at_PN, h.to(kept_ptr.dtype.element_ty), mask=ok_PN)
        if BACKWARD:
            weights = from_start
        else:
            weights = to_end * tl.load(step_ptr + chunk * T + tl.arange(0, T))
        weighted = (v.to(tl.float32) * weights[:, None]).to(DOT_TYPE)
        h = h * whole + tl.dot(tl.trans(weighted), rows, input_precision=PRECISION)
        total *= whole
    tl.store(last_ptr + stretch_of * (P * N) + at_PN, h, mask=ok_PN)
    tl.store(total_ptr + stretch_of, total)


@triton.jit(do_not_specialize=["n_stretches", "size"])
def chain_stretches(
    start_ptr, made_ptr, total_ptr, entering_ptr, final_ptr, n_stretches, H, size, BLOCK: tl.constexpr, BACKWARD: tl.constexpr
):
    """What enters each stretch: entering_{s+1} = total_s entering_s + made_s, or the same from the last to the first."""
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = at < size
    h = tl.load(start_ptr + (row * H + head) * size + at, mask=ok, other=0.0)
    for i in tl.range(0, n_stretches):
        s = i
        if BACKWARD:
            s = n_stretches - 1 - i
        place = (row * n_stretches + s) * H + head
        tl.store(entering_ptr + place * size + at, h, mask=ok)
        h = tl.load(total_ptr + place) * h + tl.load(made_ptr + place * size + at, mask=ok, other=0.0)
    tl.store(final_ptr + (row * H + head) * size + at, h, mask=ok)
