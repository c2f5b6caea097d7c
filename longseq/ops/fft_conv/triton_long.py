"""Launches of the long convolution's three-pass form: columns, rows, columns; see `triton_long_rows` for how it transforms."""

from collections.abc import Iterator

import torch
from torch import Tensor

from longseq.ops.fft_conv.triton_choices import LONG, LONG_REGISTERS, LONG_TILES, cdiv, long_group, long_warps
from longseq.ops.fft_conv.triton_long_columns import columns_gradients, columns_in, columns_out, columns_out_taps
from longseq.ops.fft_conv.triton_long_rows import convolve_rows, correlate_rows, make_long_tables, transform_taps_rows
from longseq.ops.triton_launch import prepare

# Packed numbers of a group of signals, and their powers of two.
Packed = tuple[Tensor, Tensor]
# By what `LONG_REGISTERS` calls them.
_ROW_KERNELS = {"taps": transform_taps_rows, "convolve": convolve_rows, "back": convolve_rows, "correlate": correlate_rows}


def row_stride(x_BLD: Tensor) -> int:
    """Numbers from one position's channels to the next one's; a dimension of one element may have any stride."""
    return x_BLD.stride(1) if x_BLD.shape[0] == 1 else x_BLD.stride(0) // x_BLD.shape[1]


class LongPlan:
    """Sizes of one call, and the launches of its kernels.

    Args:
        u_BLD: the input.
        taps: of the kernels those that reach an output.
        factors: N1, NA, NB; see `triton_long_rows`.
    """

    def __init__(self, u_BLD: Tensor, taps: int, factors: tuple[int, int, int]) -> None:
        self.batch, self.length, self.width = u_BLD.shape
        self.taps, self.device, self.factors = taps, u_BLD.device, factors
        n1, na, nb = factors
        self.n, self.sides, self.rows = n1 * na * nb, (n1, na * nb), factors[1:]
        self.tile = LONG_TILES[n1]
        self.group = long_group(self.batch, self.width, self.n, self.tile.channels)
        # Of few batch rows each transforms the taps' rows again, which is less than to write and read them once more.
        self.fused = self.batch <= LONG["fused"]
        # Kernels (D, K) have their places side by side: a tile of as many numbers is one channel's.
        self.line = (1, self.tile.channels * self.tile.places)
        self.columns_table = torch.empty(2 * (n1 * n1 + na * na + na * nb + nb * nb), dtype=torch.float16, device=self.device)
        self.rows_table = self.columns_table[2 * n1 * n1 :]
        self.turns = torch.empty(self.n, dtype=torch.int32, device=self.device)
        prepare(make_long_tables, (cdiv(self.n, 512),), (), (*factors, 512))(self.columns_table, self.turns)

    def groups(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self.width, self.group):
            yield first, min(first + self.group, self.width)

    def grid(self, channels: int, tile: tuple[int, int], batch: int) -> tuple[int, int, int]:
        """Channels first: programs side by side in time read what stands side by side in memory."""
        return cdiv(channels, tile[0]), self.sides[1] // tile[1], batch

    def columns(self, x_BLD: Tensor, gate_BLD: Tensor | None, first: int, last: int, reverse: bool) -> Packed:
        """What the rows begin from, of gate * x, or of it from the end to the beginning."""
        tile = (self.tile.channels, self.tile.places)
        z, sizes = self._packed(last - first, self.batch), self._sizes((last - first) * self.batch * self.sides[1] // tile[1])
        rows = (row_stride(x_BLD), row_stride(x_BLD if gate_BLD is None else gate_BLD))
        numbers, constants = (self.length, *rows, first, last), (gate_BLD is not None, reverse, False, *self.sides, *tile)
        prepare(columns_in, self.grid(last - first, tile, self.batch), numbers, constants, self.tile.warps)(
            x_BLD, x_BLD if gate_BLD is None else gate_BLD, self.columns_table, self.turns, z, sizes
        )
        return z, sizes

    def spectrum_of_taps(self, k_DK: Tensor, first: int, last: int) -> Packed:
        """The taps' other factor, as `convolve` takes it: of the columns only, where that transforms their rows by itself."""
        z, sizes = self._packed(last - first, 1), self._sizes((last - first) * self.sides[1] // self.line[1])
        numbers, constants = (self.taps, k_DK.stride(0), 0, first, last), (False, False, True, *self.sides, *self.line)
        launch = prepare(columns_in, self.grid(last - first, self.line, 1), numbers, constants, self.tile.warps)
        launch(k_DK, k_DK, self.columns_table, self.turns, z, sizes)
        if self.fused:
            return z, sizes
        own = self._sizes((last - first) * self.sides[0])
        self._along_rows("taps", last - first, (), (self.line[1],), (z, sizes, self.rows_table, own))
        return z, own

    def convolve(self, x: Packed, kernel: Packed, transformed: bool) -> Packed:
        """In place of x."""
        z, sizes = x
        own = self._sizes(z.numel() // self.rows[0] // self.rows[1])
        tensors = (z, sizes, *kernel, self.rows_table, own)
        name = "back" if transformed and not self.fused else "convolve"
        rest = (self.tile.places, self.line[1] if self.fused else 0, transformed)
        self._along_rows(name, z.shape[0] * self.batch, (self.batch,), rest, tensors)
        return z, own

    def correlate(self, g: Packed, x: Packed, keep: bool) -> Packed:
        """The gradient of taps, backwards; with `keep` g's spectrum replaces g."""
        z, own = self._packed(g[0].shape[0], 1), self._sizes(g[0].shape[0] * self.sides[0])
        tensors = (*g, *x, self.rows_table, z, own)
        self._along_rows("correlate", z.shape[0], (self.batch,), (self.tile.places, keep), tensors)
        return z, own

    def out(
        self,
        z: Packed,
        given: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
        results: tuple[Tensor, Tensor],
        save: bool,
        first: int,
        last: int,
    ) -> None:
        """y, and what the post gate multiplies if that is saved, from u, the gates and the bias."""
        u = given[0]
        tile, tensors = (self.tile.channels, self.tile.places), [u if x is None else x for x in given]
        constants = (*(x is not None for x in given[1:]), save, *self.sides, *tile)
        numbers, grid = (self.length, self.width, row_stride(u), first, last), self.grid(last - first, tile, self.batch)
        launch = prepare(columns_out, grid, numbers, constants, self.tile.warps_back)
        launch(*z, self.columns_table, self.turns, *tensors, *results)

    def out_taps(self, z: Packed, dk: Tensor, first: int, last: int) -> None:
        numbers, grid = (self.taps, dk.stride(0), first, last), self.grid(last - first, self.line, 1)
        launch = prepare(columns_out_taps, grid, numbers, (*self.sides, *self.line), self.tile.warps_back)
        launch(*z, self.columns_table, self.turns, dk)

    def gradients(
        self,
        z: Packed | None,
        dy: Tensor,
        given: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
        plain: Tensor,
        results: tuple[Tensor, Tensor, Tensor, Tensor],
        first: int,
        last: int,
    ) -> None:
        """Gradients of u, both gates and (in parts) the bias; without z only those that no convolution reaches."""
        u, save = given[0], plain.numel() > 0
        tile, tensors = (self.tile.channels, self.tile.places), [u if x is None else x for x in given]
        constants = (*(x is not None for x in given[1:]), z is not None, save, *self.sides, *tile)
        numbers, grid = (self.length, self.width, row_stride(u), first, last), self.grid(last - first, tile, self.batch)
        registers = LONG_REGISTERS.get((self.sides[0], "gradients"))
        launch = prepare(columns_gradients, grid, numbers, constants, self.tile.warps_back, registers=registers)
        launch(*((u, u) if z is None else z), self.columns_table, self.turns, dy, *tensors, plain, *results)

    def parts(self) -> int:
        """Tiles whose shares the gradient of the bias is the sum of."""
        return self.batch * (self.sides[1] // self.tile.places)

    def _packed(self, channels: int, batch: int) -> Tensor:
        return torch.empty(channels, batch, self.n, dtype=torch.int32, device=self.device)

    def _sizes(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.float32, device=self.device)

    def _along_rows(
        self, name: str, signals: int, numbers: tuple[int, ...], rest: tuple[int, ...], tensors: tuple[Tensor, ...]
    ) -> None:
        kernel = _ROW_KERNELS[name]
        registers = LONG_REGISTERS.get((self.sides[1], name))
        warps, constants = long_warps(self.sides[1]), (*self.factors, *rest)
        prepare(kernel, (signals * self.sides[0],), numbers, constants, warps, registers=registers)(*tensors)


def run_forward(
    plan: LongPlan,
    u: Tensor,
    k: Tensor,
    bias: Tensor | None,
    pre: Tensor | None,
    post: Tensor | None,
    results: tuple[Tensor, Tensor],
    save: bool,
) -> None:
    """Writes y, and what the post gate multiplies if it is to be saved."""
    for first, last in plan.groups():
        z = plan.convolve(plan.columns(u, pre, first, last, False), plan.spectrum_of_taps(k, first, last), False)
        plan.out(z, (u, pre, post, bias), results, save, first, last)


def run_backward(
    plan: LongPlan,
    dy: Tensor,
    plain: Tensor,
    u: Tensor,
    k: Tensor,
    bias: Tensor | None,
    pre: Tensor | None,
    post: Tensor | None,
    results: tuple[Tensor, Tensor, Tensor, Tensor],
    need_input: bool,
    need_kernel: bool,
) -> Tensor:
    """Writes the gradients of u, k, pre and post gate; returns that of the bias, as parts to be summed."""
    du, dk, dpre, dpost = results
    parts = torch.empty(plan.parts() if bias is not None else 0, plan.width, dtype=torch.float32, device=u.device)
    for first, last in plan.groups():
        g = plan.columns(dy, post, first, last, True) if need_input or need_kernel else None
        if g is not None and need_kernel:
            dkernel = plan.correlate(g, plan.columns(u, pre, first, last, False), need_input)
            plan.out_taps(dkernel, dk, first, last)
            del dkernel
        z = plan.convolve(g, plan.spectrum_of_taps(k, first, last), need_kernel) if g is not None and need_input else None
        del g
        plan.gradients(z, dy, (u, pre, post, bias), plain, (du, dpre, dpost, parts), first, last)
    return parts
