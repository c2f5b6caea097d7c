"""SSD's gradients: every chunk by itself, from the state that enters it and the gradient of the state that leaves it.

With G = C B^T, L_ij the decay from step j to step i, M = G L, xdt_j = dt_j x_j, S the state that enters the chunk and R the
gradient of the one that leaves it: d(xdt)_j = sum_i M_ij dy_i + L_Tj R B_j, dG_ij = L_ij dy_i . xdt_j, dC_i = sum_j dG_ij B_j +
L_i0 S^T dy_i, dB_j = sum_i dG_ij C_i + L_Tj R^T xdt_j. A log-decay's gradient is the sum over all pairs that span it; the
diagonal spans nothing and is left out, so that it cannot drown what is small.
"""

# To a type checker Triton's decorated functions never return.
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from longseq.ops.ssd.triton_kernels import LOG2_E, VARYING, chunk_decays, load_rows, locate, pair_decays


@triton.jit(do_not_specialize=VARYING)
def ssd_gradients(
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
    dB_ptr,
    dC_ptr,
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
    """One chunk of some heads of a group: dx, ddt, this program's part of dB and dC, and each head's sums for dA, dD, dbias."""
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
    scores = tl.dot(C, tl.trans(B), input_precision=PRECISION)
    dscores = tl.zeros((T, T), tl.float32)
    dB = tl.zeros((T, BLOCK_N), tl.float32)
    dC = tl.zeros((T, BLOCK_N), tl.float32)
    run_ptr += row * padded
    head_0 = group * heads_per_group + split * heads_per_program
    for i in tl.range(head_0, tl.minimum(head_0 + heads_per_program, (group + 1) * heads_per_group), num_stages=1):
        # A tensor in the interpreter too.
        head = split * 0 + i
        sums = (row * H + head) * padded
        dt = tl.load(step_ptr + sums + chunk * T + steps)
        from_start, to_end, whole = chunk_decays(chunk, hi_ptr + sums, lo_ptr + sums, run_ptr, T, HAS_RUNS, EXACT)
        decay = pair_decays(chunk, hi_ptr + sums, lo_ptr + sums, run_ptr, T, HAS_RUNS, EXACT)
        x = load_rows(x_ptr + row * x_batch * x_row + head * P, first, x_row, p, real, T, SIGN, P).to(DOT_TYPE)
        dy = load_rows(dy_ptr + (row * L * H + head) * P, first, H * P, p, real, T, SIGN, P).to(DOT_TYPE)
        kept = ((row * n_chunks + chunk) * H + head) * (P * N)
        S = tl.load(kept_ptr + kept + at_PN, mask=ok_PN, other=0.0).to(DOT_TYPE)
        R = tl.load(dkept_ptr + kept + at_PN, mask=ok_PN, other=0.0).to(DOT_TYPE)
        through = tl.sum(tl.sum(S.to(tl.float32) * R.to(tl.float32), axis=1), axis=0) * whole

        dmixing = tl.dot(dy, tl.trans(x), input_precision=PRECISION) * decay * dt[None, :]
        dscores += dmixing
        spanning = tl.where(steps[:, None] > steps[None, :], scores * dmixing, 0.0)
        balance = tl.sum(spanning, axis=1) - tl.sum(spanning, axis=0)
        # Gradient of x times its step size: from the outputs of the chunk, and through the state that leaves it. Each is scaled
        # by itself: as the accumulator of the other it would be laid out for one warp group and held twice.
        inside_chunk = tl.dot(tl.trans((scores * decay).to(DOT_TYPE)), dy, input_precision=PRECISION)
        leaving = tl.dot(B, tl.trans(R), input_precision=PRECISION) * to_end[:, None]
        carried = tl.dot(C, tl.trans(S), input_precision=PRECISION) * from_start[:, None]
        x_wide, dy_wide = x.to(tl.float32), dy.to(tl.float32)
        balance += tl.sum(dy_wide * carried, axis=1)
        along_leaving = tl.sum(x_wide * leaving, axis=1)
        into_state = along_leaving * dt
        dlog = tl.cumsum(balance, 0, reverse=True) + (tl.cumsum(into_state, 0) - into_state) + through
        dC += tl.dot((dy_wide * from_start[:, None]).to(DOT_TYPE), S, input_precision=PRECISION)
        dB += tl.dot((x_wide * (dt * to_end)[:, None]).to(DOT_TYPE), R, input_precision=PRECISION)

        A = tl.load(A_ptr + head).to(tl.float32)
        # Log-decays are clamped to at most 0.
        dlog = tl.where(dt * A <= 0.0, dlog, 0.0)
        ddt = tl.sum(x_wide * inside_chunk, axis=1) + along_leaving + dlog * A
        if SOFTPLUS:
            dt_first = dt_ptr + row * dt_batch + first * dt_row + head
            raw = tl.load(dt_first + SIGN * (steps * dt_row), mask=real, other=0.0).to(tl.float32)
            if HAS_BIAS:
                raw += tl.load(bias_ptr + head).to(tl.float32)
            ddt = ddt / (1.0 + tl.exp2(raw * -LOG2_E))
        ddt = tl.where(real, ddt, 0.0)
        tl.store(ddt_ptr + (row * L + first) * H + head + SIGN * (steps * H), ddt.to(ddt_ptr.dtype.element_ty), mask=inside)
        dx = inside_chunk * dt[:, None] + leaving * dt[:, None]
        at_sum = ((row * n_chunks + chunk) * H + head) * 3
        tl.store(sums_ptr + at_sum, tl.sum(dlog * dt, axis=0))
        if HAS_SKIP:
            dx += tl.load(skip_ptr + head).to(tl.float32) * dy_wide
            tl.store(sums_ptr + at_sum + 1, tl.sum(tl.sum(dy_wide * x_wide, axis=1), axis=0))
        if HAS_BIAS:
            tl.store(sums_ptr + at_sum + 2, tl.sum(ddt, axis=0))
        at_x = SIGN * (steps[:, None] * (H * P)) + p[None, :]
        tl.store(dx_ptr + ((row * L + first) * H + head) * P + at_x, dx.to(dx_ptr.dtype.element_ty), mask=ok_TP)
    dscores_dot = dscores.to(DOT_TYPE)
    dC += tl.dot(dscores_dot, B, input_precision=PRECISION)
    dB += tl.dot(tl.trans(dscores_dot), C, input_precision=PRECISION)
    part = (((split * tl.num_programs(1) + row) * L + first) * n_groups + group) * N
    at_map = part + SIGN * (steps[:, None] * (n_groups * N)) + n[None, :]
    ok_TN = inside[:, None] & (n < N)[None, :]
    tl.store(dB_ptr + at_map, dB, mask=ok_TN)
    tl.store(dC_ptr + at_map, dC, mask=ok_TN)
