"""Kernels of the sum and its norm: tiles of whole rows, each number read once and written once.

A row is a position's channels, or those of one group of it. The second axis of the grid is the group. Statistics are of fp32
values in registers: the mean first, then the squares around it, so that nothing cancels.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def add_norm_forward(
    x_ptr,
    residual_ptr,
    gate_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    sum_ptr,
    mean_ptr,
    rstd_ptr,
    n_rows,
    D,
    stride_x,
    stride_residual,
    stride_gate,
    eps,
    LAYER: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STORE_SUM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    R: tl.constexpr,
):
    group, n_groups = tl.program_id(1), tl.num_programs(1)
    rows = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    columns = tl.arange(0, BLOCK_D)
    at = group * D + columns
    ok_D = columns < D
    ok = (rows < n_rows)[:, None] & ok_D[None, :]
    own = rows[:, None] * (n_groups * D) + at[None, :]
    value = tl.load(x_ptr + rows[:, None] * stride_x + at[None, :], mask=ok, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual_ptr + rows[:, None] * stride_residual + at[None, :], mask=ok, other=0.0).to(tl.float32)
    if STORE_SUM:
        stored = value.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + own, stored, mask=ok)
        value = stored.to(tl.float32)
    if HAS_GATE:
        z = tl.load(gate_ptr + rows[:, None] * stride_gate + at[None, :], mask=ok, other=0.0).to(tl.float32)
        value *= z * sigmoid(z)
    if LAYER:
        mean = tl.sum(value, axis=1) / D
        tl.store(mean_ptr + rows * n_groups + group, mean, mask=rows < n_rows)
        value = tl.where(ok, value - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / D + eps)
    tl.store(rstd_ptr + rows * n_groups + group, rstd, mask=rows < n_rows)
    y = value * rstd[:, None] * tl.load(weight_ptr + at, mask=ok_D, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + at, mask=ok_D, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + own, y.to(y_ptr.dtype.element_ty), mask=ok)


@triton.jit
def add_norm_backward(
    dy_ptr,
    dsum_ptr,
    sum_ptr,
    gate_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,
    dresidual_ptr,
    dgate_ptr,
    dweight_ptr,
    dbias_ptr,
    n_rows,
    D,
    stride_sum,
    stride_gate,
    LAYER: tl.constexpr,
    HAS_DSUM: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TWO: tl.constexpr,
    BLOCK_D: tl.constexpr,
    R: tl.constexpr,
):
    group, n_groups = tl.program_id(1), tl.num_programs(1)
    first, n_programs = tl.program_id(0), tl.num_programs(0)
    columns = tl.arange(0, BLOCK_D)
    at = group * D + columns
    ok_D = columns < D
    weight = tl.load(weight_ptr + at, mask=ok_D, other=0.0).to(tl.float32)[None, :]
    # One sum for each place in the tile: added over the rows once, at the end.
    dweight = tl.zeros((R, BLOCK_D), tl.float32)
    dbias = tl.zeros((R, BLOCK_D), tl.float32)
    for turn in range(tl.cdiv(n_rows - first * R, n_programs * R)):
        rows = (turn * n_programs + first).to(tl.int64) * R + tl.arange(0, R)
        ok = (rows < n_rows)[:, None] & ok_D[None, :]
        own = rows[:, None] * (n_groups * D) + at[None, :]
        total = tl.load(sum_ptr + rows[:, None] * stride_sum + at[None, :], mask=ok, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + own, mask=ok, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + rows * n_groups + group, mask=rows < n_rows, other=0.0)
        value = total
        if HAS_GATE:
            z = tl.load(gate_ptr + rows[:, None] * stride_gate + at[None, :], mask=ok, other=0.0).to(tl.float32)
            sigma = sigmoid(z)
            value = total * z * sigma
        if LAYER:
            mean = tl.load(mean_ptr + rows * n_groups + group, mask=rows < n_rows, other=0.0)
            value = tl.where(ok, value - mean[:, None], 0.0)
        normed = value * rstd[:, None]
        slope = dy * weight
        dvalue = slope - normed * (tl.sum(slope * normed, axis=1) / D)[:, None]
        if LAYER:
            dvalue -= (tl.sum(slope, axis=1) / D)[:, None]
        dvalue *= rstd[:, None]
        dweight += dy * normed
        if HAS_BIAS:
            dbias += dy
        if HAS_GATE:
            dgate = dvalue * total * sigma * (1.0 + z * (1.0 - sigma))
            tl.store(dgate_ptr + own, dgate.to(dgate_ptr.dtype.element_ty), mask=ok)
            dvalue *= z * sigma
        if HAS_DSUM:
            dvalue += tl.load(dsum_ptr + own, mask=ok, other=0.0).to(tl.float32)
        tl.store(dx_ptr + own, dvalue.to(dx_ptr.dtype.element_ty), mask=ok)
        if TWO:
            tl.store(dresidual_ptr + own, dvalue.to(dresidual_ptr.dtype.element_ty), mask=ok)
    part = first * (n_groups * D) + at
    tl.store(dweight_ptr + part, tl.sum(dweight, axis=0), mask=ok_D)
    if HAS_BIAS:
        tl.store(dbias_ptr + part, tl.sum(dbias, axis=0), mask=ok_D)
