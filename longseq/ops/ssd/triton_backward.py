"""SSD's gradients: every chunk by itself, from the state that enters it and the gradient of the state that leaves it.

With G = C B^T, L_ij the decay from step j to step i, M = G L, xdt_j = dt_j x_j, S the state that enters the chunk and R the
gradient of the one that leaves it: d(xdt)_j = sum_i M_ij dy_i + L_Tj R B_j, dG_ij = L_ij dy_i . xdt_j, dC_i = sum_j dG_ij B_j +
L_i0 S^T dy_i, dB_j = sum_i dG_ij C_i + L_Tj R^T xdt_j. A log-decay's gradient is the sum over all pairs that span it; the
diagonal spans nothing and is left out, so that it cannot drown what is small.

Two kernels, which need fewer registers at a time than one: gradients of x and dt, and those of B and C. Tiles of two positions
lie (j, i), the step that gives before the step that takes: what multiplies dy is then in registers as it is made, and what is
summed for each j stays within a warp.
"""

# To a type checker Triton's decorated functions never return.
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from longseq.ops.ssd.triton_kernels import LOG2_E, VARYING, chunk_decays, load_rows, load_sums, locate


@triton.jit
def decays_to(chunk, hi_ptr, lo_ptr, run_ptr, T: tl.constexpr, HAS_RUNS: tl.constexpr, EXACT: tl.constexpr):
    """(T, T): [j, i] is the decay from step j to step i, zero for i < j and across segments; pointers are the row's."""
    steps = tl.arange(0, T)
    hi, lo = load_sums(hi_ptr, lo_ptr, chunk * T + steps, EXACT)
    between = hi[None, :] - hi[:, None]
    if EXACT:
        between += lo[None, :] - lo[:, None]
    seen = steps[None, :] >= steps[:, None]
    if HAS_RUNS:
        runs = tl.load(run_ptr + chunk * T + steps)
        seen = seen & (runs[None, :] == runs[:, None])
    return tl.where(seen, tl.exp2(tl.minimum(between, 0.0)), 0.0)


@triton.jit(do_not_specialize=VARYING)
def ssd_input_gradients(
    dy_ptr,
    x_ptr,
    dt_ptr,
    bias_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    skip_ptr,
    mask_ptr,
    run_ptr,
    step_ptr,
    hi_ptr,
    lo_ptr,
    kept_ptr,
    dkept_ptr,
    dx_ptr,
    ddt_ptr,
    sums_ptr,
    L,
    H,
    n_chunks,
    padded,
    n_groups,
    heads_per_group,
    heads_per_program,
    dt_batch,
    dt_row,
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
    AGAIN: tl.constexpr,
    SIGN: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_RUNS: tl.constexpr,
    EXACT: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One chunk of some heads of a group: dx, ddt, and what each step gives to dA, dD and dbias, as (3, B, H, steps).

    AGAIN makes the scores for each head anew instead of holding them in registers.
    """
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    splits = tl.num_programs(2) // n_groups
    group, split = tl.program_id(2) // splits, tl.program_id(2) % splits
    p, n, steps = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N), tl.arange(0, T)
    at_PN = p[:, None] * N + n[None, :]
    ok_PN = (p < P)[:, None] & (n < N)[None, :]
    first, inside, real = locate(chunk, L, row, mask_ptr, T, SIGN, HAS_MASK)
    ok_TP = inside[:, None] & (p < P)[None, :]
    B = load_rows(B_ptr + row * B_batch * B_row + group * N, first, B_row, n, real, T, SIGN, N).to(DOT_TYPE)
    C = load_rows(C_ptr + row * C_batch * C_row + group * N, first, C_row, n, real, T, SIGN, N).to(DOT_TYPE)
    if not AGAIN:
        scores = tl.dot(B, tl.trans(C), input_precision=PRECISION)
    run_ptr += row * padded
    head_0 = group * heads_per_group + split * heads_per_program
    for i in tl.range(head_0, tl.minimum(head_0 + heads_per_program, (group + 1) * heads_per_group), num_stages=STAGES):
        # A tensor in the interpreter too.
        head = split * 0 + i
        sums = (row * H + head) * padded
        x = load_rows(x_ptr + row * x_batch * x_row + head * P, first, x_row, p, real, T, SIGN, P)
        dy = load_rows(dy_ptr + (row * L * H + head) * P, first, H * P, p, real, T, SIGN, P)
        kept = ((row * n_chunks + chunk) * H + head) * (P * N)
        S = tl.load(kept_ptr + kept + at_PN, mask=ok_PN, other=0.0)
        R = tl.load(dkept_ptr + kept + at_PN, mask=ok_PN, other=0.0)
        dt = tl.load(step_ptr + sums + chunk * T + steps)
        from_start, to_end, whole = chunk_decays(chunk, hi_ptr + sums, lo_ptr + sums, run_ptr, T, HAS_RUNS, EXACT)
        # At the end it would be waited for.
        if SOFTPLUS:
            dt_first = dt_ptr + row * dt_batch + first * dt_row + head
            raw = tl.load(dt_first + SIGN * (steps * dt_row), mask=real, other=0.0).to(tl.float32)
            if HAS_BIAS:
                raw += tl.load(bias_ptr + head).to(tl.float32)
        x_dot, dy_dot = x.to(DOT_TYPE), dy.to(DOT_TYPE)
        part = sums + chunk * T + steps
        size = tl.num_programs(1).to(tl.int64) * H * padded
        # What is needed in registers for a sum only comes first, so that it need not stay there.
        through = tl.sum(S.to(tl.float32) * R.to(tl.float32)) * whole
        carried = tl.dot(C, tl.trans(S.to(DOT_TYPE)), input_precision=PRECISION)
        balance = tl.sum(dy.to(tl.float32) * carried, axis=1) * from_start
        leaving = tl.dot(B, tl.trans(R.to(DOT_TYPE)), input_precision=PRECISION) * to_end[:, None]
        ddt = tl.sum(x.to(tl.float32) * leaving, axis=1)
        into_state = ddt * dt

        pairs = tl.dot(x_dot, tl.trans(dy_dot), input_precision=PRECISION)
        if AGAIN:
            scores = tl.dot(B, tl.trans(C), input_precision=PRECISION)
        mixing = scores * decays_to(chunk, hi_ptr + sums, lo_ptr + sums, run_ptr, T, HAS_RUNS, EXACT)
        given = mixing * pairs
        ddt += tl.sum(given, axis=1)
        spanning = tl.where(steps[None, :] > steps[:, None], given, 0.0) * dt[:, None]
        balance -= tl.sum(spanning, axis=1)
        taken = tl.sum(spanning, axis=0)
        mixing *= dt[:, None]
        if HAS_SKIP:
            same = steps[None, :] == steps[:, None]
            mixing += tl.where(same, tl.load(skip_ptr + head).to(tl.float32), 0.0)
            tl.store(sums_ptr + size + part, tl.sum(tl.where(same, pairs, 0.0), axis=1))
        dx = leaving * dt[:, None] + tl.dot(mixing.to(DOT_TYPE), dy_dot, input_precision=PRECISION)
        at_x = SIGN * (steps[:, None] * (H * P)) + p[None, :]
        tl.store(dx_ptr + ((row * L + first) * H + head) * P + at_x, dx.to(dx_ptr.dtype.element_ty), mask=ok_TP)

        # A log-decay's gradient: the pairs that span it, what later steps take from the state, what earlier ones leave in it.
        later = steps[None, :] >= steps[:, None]
        dlog = tl.sum(tl.where(later, (taken + balance)[None, :], into_state[None, :]), axis=1) + through
        A = tl.load(A_ptr + head).to(tl.float32)
        # Log-decays are clamped to at most 0.
        dlog = tl.where(dt * A <= 0.0, dlog, 0.0)
        ddt += dlog * A
        if SOFTPLUS:
            ddt = ddt / (1.0 + tl.exp2(raw * -LOG2_E))
        ddt = tl.where(real, ddt, 0.0)
        tl.store(ddt_ptr + (row * L + first) * H + head + SIGN * (steps * H), ddt.to(ddt_ptr.dtype.element_ty), mask=inside)
        tl.store(sums_ptr + part, dlog * dt)
        if HAS_BIAS:
            tl.store(sums_ptr + 2 * size + part, ddt)


@triton.jit(do_not_specialize=VARYING)
def ssd_map_gradients(
    dy_ptr,
    x_ptr,
    B_ptr,
    C_ptr,
    mask_ptr,
    run_ptr,
    step_ptr,
    hi_ptr,
    lo_ptr,
    kept_ptr,
    dkept_ptr,
    dB_ptr,
    dC_ptr,
    L,
    H,
    n_chunks,
    padded,
    n_groups,
    heads_per_group,
    heads_per_program,
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
    HAS_MASK: tl.constexpr,
    HAS_RUNS: tl.constexpr,
    EXACT: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One chunk of some heads of a group: what they give to dB and dC."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    splits = tl.num_programs(2) // n_groups
    group, split = tl.program_id(2) // splits, tl.program_id(2) % splits
    p, n, steps = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N), tl.arange(0, T)
    at_PN = p[:, None] * N + n[None, :]
    ok_PN = (p < P)[:, None] & (n < N)[None, :]
    first, inside, real = locate(chunk, L, row, mask_ptr, T, SIGN, HAS_MASK)
    dscores = tl.zeros((T, T), tl.float32)
    dB = tl.zeros((T, BLOCK_N), tl.float32)
    dC = tl.zeros((T, BLOCK_N), tl.float32)
    run_ptr += row * padded
    head_0 = group * heads_per_group + split * heads_per_program
    for i in tl.range(head_0, tl.minimum(head_0 + heads_per_program, (group + 1) * heads_per_group), num_stages=STAGES):
        # A tensor in the interpreter too.
        head = split * 0 + i
        sums = (row * H + head) * padded
        x = load_rows(x_ptr + row * x_batch * x_row + head * P, first, x_row, p, real, T, SIGN, P)
        dy = load_rows(dy_ptr + (row * L * H + head) * P, first, H * P, p, real, T, SIGN, P)
        kept = ((row * n_chunks + chunk) * H + head) * (P * N)
        S = tl.load(kept_ptr + kept + at_PN, mask=ok_PN, other=0.0).to(DOT_TYPE)
        R = tl.load(dkept_ptr + kept + at_PN, mask=ok_PN, other=0.0).to(DOT_TYPE)
        dt = tl.load(step_ptr + sums + chunk * T + steps)
        from_start, to_end, _ = chunk_decays(chunk, hi_ptr + sums, lo_ptr + sums, run_ptr, T, HAS_RUNS, EXACT)
        decays = decays_to(chunk, hi_ptr + sums, lo_ptr + sums, run_ptr, T, HAS_RUNS, EXACT)
        pairs = tl.dot(x.to(DOT_TYPE), tl.trans(dy.to(DOT_TYPE)), input_precision=PRECISION)
        dscores += pairs * decays * dt[:, None]
        dC += tl.dot((dy.to(tl.float32) * from_start[:, None]).to(DOT_TYPE), S, input_precision=PRECISION)
        dB += tl.dot((x.to(tl.float32) * (dt * to_end)[:, None]).to(DOT_TYPE), R, input_precision=PRECISION)
    B = load_rows(B_ptr + row * B_batch * B_row + group * N, first, B_row, n, real, T, SIGN, N).to(DOT_TYPE)
    C = load_rows(C_ptr + row * C_batch * C_row + group * N, first, C_row, n, real, T, SIGN, N).to(DOT_TYPE)
    dB += tl.dot(dscores.to(DOT_TYPE), C, input_precision=PRECISION)
    dC += tl.dot(tl.trans(dscores.to(DOT_TYPE)), B, input_precision=PRECISION)
    part = (((split * tl.num_programs(1) + row) * L + first) * n_groups + group) * N
    at_map = part + SIGN * (steps[:, None] * (n_groups * N)) + n[None, :]
    ok_TN = inside[:, None] & (n < N)[None, :]
    tl.store(dB_ptr + at_map, dB.to(dB_ptr.dtype.element_ty), mask=ok_TN)
    tl.store(dC_ptr + at_map, dC.to(dC_ptr.dtype.element_ty), mask=ok_TN)
