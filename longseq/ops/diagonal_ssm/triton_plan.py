"""Where positions stand while the diagonal recurrence's kernels run: slots of a row, rows of chunks, restarts."""

import torch
from torch import Tensor

from longseq.ops.diagonal_ssm import triton_choices as choices
from longseq.ops.diagonal_ssm.layout import align
from longseq.ops.diagonal_ssm.triton_choices import cdiv, power_of_two
from longseq.ops.diagonal_ssm.triton_layout import from_channels, to_channels
from longseq.ops.triton_launch import prepare

# Positions of a chunk, and the smallest one that a tensor-core product takes.
CHUNK, _SMALLEST_CHUNK = 64, 16


def padded_modes(modes: int) -> int:
    """The modes that kernels work with: a power of two that a tensor-core product takes."""
    return max(16, 1 << (modes - 1).bit_length())


class Plan:
    """The layout of one call.

    Attributes:
        T, N: positions of a chunk, and padded modes.
        n_rows, rows_per_batch, count: rows of chunks in all, of one sequence, and the chunks of one.
        end: slots that each sequence fills, as a tensor; None if that is the length for all of them.
        fresh, open, broken: flags of chunks that begin a document, of chunks that a row's entering state reaches, and of rows
            that it does not cross; None without documents.
    """

    def __init__(self, x_BLD: Tensor, modes: int, mask_BL: Tensor | None, segment_ids_BL: Tensor | None, reverse: bool) -> None:
        self.batch, self.length, self.width = x_BLD.shape
        self.device, self.dtype, self.modes, self.reverse = x_BLD.device, x_BLD.dtype, modes, reverse
        self.fp32 = x_BLD.dtype == torch.float32
        # Three TF32 products keep fp32's accuracy; the option says nothing about 16-bit inputs.
        self.precision = "tf32x3" if self.fp32 else "tf32"
        self.N, self.T = padded_modes(modes), choices.chunk(CHUNK, self.device, fp32=self.fp32)
        self.slot: Tensor | None = None
        self.source: Tensor | None = None
        self.end: Tensor | None = None
        self.fresh: Tensor | None = None
        self.open: Tensor | None = None
        self.broken: Tensor | None = None
        n_chunks = cdiv(self.length, self.T)
        if mask_BL is None and segment_ids_BL is None:
            self._cut(n_chunks)
        else:
            self._arrange(n_chunks, mask_BL, segment_ids_BL)

    def _arrange(self, n_chunks: int, mask_BL: Tensor | None, segment_ids_BL: Tensor | None) -> None:
        """Padding leaves, and documents begin their own chunks."""
        if self.reverse:
            mask_BL, segment_ids_BL = (None if t is None else t.flip(1) for t in (mask_BL, segment_ids_BL))
        if segment_ids_BL is not None:
            layout = align(mask_BL, segment_ids_BL, self.T, _SMALLEST_CHUNK)
            self.T, n_chunks = layout.chunk_size, layout.n_slots // layout.chunk_size
            self._cut(n_chunks)
            self.end = layout.end_B.int()
            self._place(layout.slot_BL, n_chunks * self.T)
            assert layout.fresh_Bc is not None
            self._flag(layout.fresh_Bc, n_chunks)
        elif mask_BL is not None:
            self._cut(n_chunks)
            place_BL = mask_BL.long().cumsum(1)
            self.end = place_BL[:, -1].int()
            self._place((place_BL - 1).masked_fill(~mask_BL, n_chunks * self.T), n_chunks * self.T)

    def _cut(self, n_chunks: int) -> None:
        wanted = self.tile("outputs").rows * cdiv(choices.PROGRAMS, self.width) // self.batch
        rows = max(1, min(n_chunks, wanted))
        self.count = cdiv(n_chunks, rows)
        self.rows_per_batch = cdiv(n_chunks, self.count)
        self.n_rows = self.batch * self.rows_per_batch
        self.n_chunks = self.rows_per_batch * self.count
        self.n_slots = self.n_chunks * self.T

    def _flag(self, fresh_Bc: Tensor, n_chunks: int) -> None:
        fresh = torch.zeros(self.batch, self.n_chunks, dtype=torch.bool, device=self.device)
        fresh[:, :n_chunks] = fresh_Bc
        fresh_Rc = fresh.view(self.n_rows, self.count)
        self.fresh = fresh_Rc.to(torch.uint8)
        self.broken = fresh_Rc.any(1).to(torch.uint8)
        self.open = (fresh_Rc.int().cumsum(1) == 0).to(torch.uint8)

    def _place(self, slot_BL: Tensor, spare: int) -> None:
        """Slots of positions (-1 for the masked ones), and positions of slots (-1 for the empty ones)."""
        place_BL = torch.arange(self.length, dtype=torch.int32, device=self.device).expand(self.batch, -1)
        source_BS = torch.full((self.batch, max(self.n_slots, spare) + 1), -1, dtype=torch.int32, device=self.device)
        source_BS.scatter_(1, slot_BL, place_BL)
        self.source = source_BS[:, : self.n_slots].contiguous()
        if self.n_slots > spare:
            self.source[:, spare:] = -1
        self.slot = slot_BL.masked_fill(slot_BL >= spare, -1).int()

    def tile(self, kernel: str) -> choices.Tile:
        return choices.tile(kernel, self.device, fp32=self.fp32, modes=self.N)

    def groups(self, tile: choices.Tile) -> tuple[int, int]:
        """Rows of a program, no more than there are, and programs a channel."""
        rows = min(tile.rows, max(16, power_of_two(self.n_rows)))
        return rows, cdiv(self.n_rows, rows)

    def numbers(self, n_groups: int) -> tuple[int, ...]:
        """What kernels over rows of chunks want to know."""
        return self.length, self.n_rows, self.count, n_groups, self.rows_per_batch

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def to_channels(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD.contiguous()
        x_DBS = self.empty(self.width, self.batch, self.n_slots, dtype=self.dtype)
        tile = choices.TRANSPOSE
        grid = (cdiv(self.n_slots, tile["places"]), cdiv(self.width, tile["channels"]), self.batch)
        constants = (self.source is not None, self.reverse, tile["places"], tile["channels"])
        launch = prepare(to_channels, grid, (self.length, self.width, self.n_slots), constants, tile["warps"])
        launch(x_BLD, x_DBS, x_BLD if self.source is None else self.source)
        return x_DBS

    def from_channels(self, y_DBS: Tensor) -> Tensor:
        y_BLD = self.empty(self.batch, self.length, self.width, dtype=self.dtype)
        tile = choices.TRANSPOSE
        grid = (cdiv(self.length, tile["places"]), cdiv(self.width, tile["channels"]), self.batch)
        constants = (self.slot is not None, self.reverse, tile["places"], tile["channels"])
        launch = prepare(from_channels, grid, (self.length, self.width, self.n_slots), constants, tile["warps"])
        launch(y_DBS, y_BLD, y_DBS if self.slot is None else self.slot)
        return y_BLD
