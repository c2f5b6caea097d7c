"""Front ends for images and videos: pixels in, `(B, L, D)` and its mask out. Torch alone, so that they export with the model.

Pixels are floats between 0 and 1, or unsigned bytes; NaN marks hidden ones. Normalisation is part of the embedding, so that a
saved model needs no transform beside it. Shape letters beyond the usual: H height, W width, T frames, P values of one cell.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.layers.marks import mark

CLASS_TOKENS = ("front", "middle", "end")
POSITIONS = ("learned", "sincos", "none")


class CellEmbedding(nn.Module):
    """Cuts a video into equal cells and maps each to the model's width: what pixels, patches and tubelets have in common.

    `x_i = W normalise(cell_i) + space_(row, column) + time_frame`, in raster order, frame by frame. Cells that hold NaN are
    hidden: a learned vector stands in for `W normalise(cell_i)`, and their place is still told.

    Args:
        d_model: width out.
        grid: cells along (T, H, W) that positions are made for; other inputs interpolate them.
        cell: pixels of a cell along (T, H, W).
        n_channels: C.
        mean: of each channel in train, between 0 and 1; None for 0.
        std: likewise; None for 1.
        positions: `learned` (one table over the frame and one over time), `sincos` (fixed) or `none`.
        class_token: a learned vector at the `front`, `middle` or `end` of the sequence; None for none.
        mask_token: whether cells may be hidden.
        dropout: on the vectors.

    Raises:
        ValueError: for an unknown option; in `forward`, for an input of other channels or that no whole number of cells fits.

    Cost: O(L P D), and the interpolation of L D numbers where the input's grid is another.

    Paper: ViT, https://arxiv.org/abs/2010.11929, section 3.1; tables of space and time apart as in VideoMamba,
    https://arxiv.org/abs/2403.06977; the middle class token is Vision Mamba's, https://arxiv.org/abs/2401.09417.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        d_model: int,
        *,
        grid: Sequence[int],
        cell: Sequence[int],
        n_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        positions: str = "learned",
        class_token: str | None = None,
        mask_token: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, found {positions!r}")
        if class_token is not None and class_token not in CLASS_TOKENS:
            raise ValueError(f"class_token must be one of {', '.join(CLASS_TOKENS)} or null, found {class_token!r}")
        self.d_model, self.n_channels = d_model, n_channels
        self.grid, self.cell = _three("grid", grid), _three("cell", cell)
        self.positions, self.class_token = positions, class_token
        for name, values, default in (("mean", mean, 0.0), ("std", std, 1.0)):
            numbers = [default] * n_channels if values is None else [float(value) for value in values]
            if len(numbers) != n_channels:
                raise ValueError(f"{name} must hold {n_channels} numbers, one per channel; found {len(numbers)}")
            self.register_buffer(name, torch.tensor(numbers), persistent=False)
        steps, rows, columns = self.cell
        self.projection = nn.Linear(n_channels * steps * rows * columns, d_model)
        self.space_positions, self.time_positions = self._position_tables()
        self.class_vector = _small(d_model) if class_token else None
        self.mask_vector = _small(d_model) if mask_token else None
        self.dropout = nn.Dropout(dropout)

    def _position_tables(self) -> tuple[nn.Parameter | None, nn.Parameter | None]:
        if self.positions != "learned":
            return None, None
        frames, rows, columns = self.grid
        return _small(rows, columns, self.d_model), _small(frames, self.d_model) if frames > 1 else None

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels that positions are made for."""
        frames, height, width = (count * size for count, size in zip(self.grid, self.cell, strict=True))
        return frames, height, width

    def cells(self, x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Raw cells (B, L, P) of a video (B, T, C, H, W), each as channel, frame, row, column; and the grid they come from."""
        steps, rows, columns = self.cell
        grid = (x.shape[1] // steps, x.shape[3] // rows, x.shape[4] // columns)
        if (grid[0] * steps, grid[1] * rows, grid[2] * columns) != (x.shape[1], x.shape[3], x.shape[4]) or min(grid) < 1:
            raise ValueError(
                f"an input of {x.shape[1]} frames of {x.shape[3]} x {x.shape[4]} pixels holds no whole number of cells of "
                f"{steps} x {rows} x {columns}: resize or crop it to multiples of the cell"
            )
        x = x.reshape(x.shape[0], grid[0], steps, self.n_channels, grid[1], rows, grid[2], columns)
        return x.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(1, 3), grid

    def normalize(self, x: Tensor) -> Tensor:
        """Standardised pixels of a video (B, T, C, H, W), bytes or floats."""
        if not x.is_floating_point():
            x = x.to(self.mean.dtype) / 255
        return (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def order_cells(self, x_BLD: Tensor) -> Tensor:
        """The order in which cells stand in the sequence: raster."""
        return x_BLD

    def forward(self, x: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Embeds pixels.

        Args:
            x: (B, T, C, H, W), or (B, C, H, W) for single images.
            mask_BL: over cells (B, L), or over frames (B, T); True = real.

        Returns:
            `(B, L, D)` with the class token among the L, and its mask.
        """
        x = x.unsqueeze(1) if x.ndim == 4 else x
        # Before the statistics, which would be broadcast.
        if x.ndim != 5 or x.shape[2] != self.n_channels:
            raise ValueError(
                f"pixels must be (batch, [frames,] {self.n_channels} channels, height, width), found {tuple(x.shape)}"
            )
        cells_BLP, grid = self.cells(self.normalize(x))
        mask_BL = self._cell_mask(mask_BL, x.shape[1], grid)
        if self.mask_vector is not None:
            hidden_BL1 = cells_BLP.isnan().any(-1, keepdim=True)
            cells_BLP = cells_BLP.nan_to_num()
        # The projection's type: the model may be in bf16, the statistics are not.
        x_BLD = self.projection(cells_BLP.to(self.projection.weight.dtype))
        if self.mask_vector is not None:
            x_BLD = torch.where(hidden_BL1, self.mask_vector.to(x_BLD.dtype), x_BLD)
        x_BLD = self.order_cells(self._add_positions(x_BLD, grid))
        return self.dropout(self._add_class(x_BLD)), self._add_class_mask(mask_BL)

    def _cell_mask(self, mask: Tensor | None, n_frames: int, grid: tuple[int, int, int]) -> Tensor | None:
        length = grid[0] * grid[1] * grid[2]
        if mask is None or mask.shape[1] == length:
            return mask
        if mask.shape[1] != n_frames:
            raise ValueError(f"mask must be over {length} cells or {n_frames} frames, found {tuple(mask.shape)}")
        return mask.unflatten(1, (grid[0], -1)).any(2).repeat_interleave(grid[1] * grid[2], dim=1)

    def _add_positions(self, x_BLD: Tensor, grid: tuple[int, int, int]) -> Tensor:
        if self.positions == "none":
            return x_BLD
        if self.positions == "sincos":
            return x_BLD + sincos_positions(grid, self.d_model, x_BLD.device).to(x_BLD.dtype)
        assert self.space_positions is not None
        space_HWD = interpolate_space(self.space_positions, grid[1:])
        positions_THWD = space_HWD.unsqueeze(0).expand(grid[0], -1, -1, -1)
        if self.time_positions is not None:
            positions_THWD = positions_THWD + interpolate_time(self.time_positions, grid[0])[:, None, None]
        return x_BLD + positions_THWD.flatten(0, 2).to(x_BLD.dtype)

    def _add_class(self, x_BLD: Tensor) -> Tensor:
        if self.class_vector is None or self.class_token is None:
            return x_BLD
        place = class_place(self.class_token, x_BLD.shape[1] + 1)
        token_B1D = self.class_vector.to(x_BLD.dtype).expand(x_BLD.shape[0], 1, -1)
        return torch.cat([x_BLD[:, :place], token_B1D, x_BLD[:, place:]], dim=1)

    def _add_class_mask(self, mask_BL: Tensor | None) -> Tensor | None:
        if mask_BL is None or self.class_token is None:
            return mask_BL
        place = class_place(self.class_token, mask_BL.shape[1] + 1)
        return torch.cat([mask_BL[:, :place], mask_BL.new_ones(mask_BL.shape[0], 1), mask_BL[:, place:]], dim=1)


class PixelEmbedding(CellEmbedding):
    """One position per pixel, all channels together: sequential MNIST and CIFAR, and with a fixed permutation psMNIST.

    Args:
        d_model: width out.
        size: (H, W).
        permutation_seed: shuffles the pixels of every image in the same way; None for raster order. The permutation is saved
            with the weights, and another size of the image is then refused.
        positions: `none`, `learned` or `sincos`.
        **options: of `CellEmbedding`.

    Paper: the permuted task, https://arxiv.org/abs/1504.00941, section 4.2.
    """

    permutation: Tensor

    def __init__(
        self, d_model: int, *, size: Sequence[int], permutation_seed: int | None = None, positions: str = "none", **options: Any
    ) -> None:
        super().__init__(d_model, grid=(1, *size), cell=(1, 1, 1), positions=positions, **options)
        self.permuted = permutation_seed is not None
        if permutation_seed is not None:
            generator = torch.Generator().manual_seed(permutation_seed)
            # Saved with the weights: a seed need not mean the same permutation for ever.
            self.register_buffer("permutation", torch.randperm(size[0] * size[1], generator=generator))

    def order_cells(self, x_BLD: Tensor) -> Tensor:
        """Raster order, or the permuted one."""
        if not self.permuted:
            return x_BLD
        if x_BLD.shape[1] != self.permutation.shape[0]:
            raise ValueError(
                f"the permutation is over {self.permutation.shape[0]} pixels, found an image of {x_BLD.shape[1]}: give images "
                f"of {self.grid[1]} x {self.grid[2]}"
            )
        return x_BLD[:, self.permutation]


class PatchEmbedding(CellEmbedding):
    """One position per square of `patch` x `patch` pixels.

    Args:
        d_model: width out.
        size: (H, W), multiples of the patch; images of other sizes interpolate the positions.
        patch: side in pixels.
        **options: of `CellEmbedding`.

    Paper: ViT, https://arxiv.org/abs/2010.11929, section 3.1.
    """

    def __init__(self, d_model: int, *, size: Sequence[int], patch: int, **options: Any) -> None:
        grid = (1, *(_whole("size", side, "patch", patch) for side in size))
        super().__init__(d_model, grid=grid, cell=(1, patch, patch), **options)


class TubeletEmbedding(CellEmbedding):
    """One position per block of `tube` frames of `patch` x `patch` pixels.

    Args:
        d_model: width out.
        size: (H, W), multiples of the patch.
        frames: of a clip, a multiple of the tube; clips of other lengths interpolate the positions.
        patch: side in pixels.
        tube: frames.
        **options: of `CellEmbedding`.

    Paper: ViViT, https://arxiv.org/abs/2103.15691, section 3.2.
    """

    def __init__(self, d_model: int, *, size: Sequence[int], frames: int, patch: int, tube: int = 2, **options: Any) -> None:
        grid = (_whole("frames", frames, "tube", tube), *(_whole("size", side, "patch", patch) for side in size))
        super().__init__(d_model, grid=grid, cell=(tube, patch, patch), **options)


class ClassTokenHead(nn.Module):
    """Maps the class token's position to O outputs; the place follows from the length, so that other resolutions work.

    Args:
        d_model: the backbone's width.
        n_outputs: O.
        place: where the embedding put the token: `front`, `middle` or `end`.
        dropout: on its vector.

    Paper: Vision Mamba, https://arxiv.org/abs/2401.09417 (in the middle, its ablation of classification designs).
    """

    def __init__(self, d_model: int, *, n_outputs: int, place: str, dropout: float = 0.0) -> None:
        super().__init__()
        if place not in CLASS_TOKENS:
            raise ValueError(f"place must be one of {', '.join(CLASS_TOKENS)}, found {place!r}")
        self.place = place
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(d_model, n_outputs)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """`(B, L, D)` in, `(B, O)` out."""
        return self.answer(self.summarize(x_BLD, mask_BL))

    def summarize(self, x_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """The token's vector, `(B, L, D)` to `(B, D)`."""
        del mask_BL
        return x_BLD[:, class_place(self.place, x_BLD.shape[1])]

    def answer(self, x_BD: Tensor) -> Tensor:
        """`(B, D)` to `(B, O)`."""
        return self.projection(self.dropout(x_BD))


VISION_EMBEDDINGS: dict[str, type[nn.Module]] = {"pixel": PixelEmbedding, "patch": PatchEmbedding, "tubelet": TubeletEmbedding}
VISION_HEADS: dict[str, type[nn.Module]] = {"class_token": ClassTokenHead}


def class_place(where: str, length: int) -> int:
    """Index of the class token in a sequence of `length` positions, itself included."""
    return {"front": 0, "middle": (length - 1) // 2, "end": length - 1}[where]


def interpolate_space(table_HWD: Tensor, size: Sequence[int]) -> Tensor:
    """A table of positions (H, W, D) for a grid of another size, bicubic; itself where the size is its own."""
    if tuple(table_HWD.shape[:2]) == tuple(size):
        return table_HWD
    image = table_HWD.permute(2, 0, 1).unsqueeze(0).float()
    resized = F.interpolate(image, size=tuple(size), mode="bicubic", align_corners=False)
    return resized.squeeze(0).permute(1, 2, 0).to(table_HWD.dtype)


def interpolate_time(table_TD: Tensor, n_frames: int) -> Tensor:
    """A table of positions (T, D) for another number of frames, linear."""
    if table_TD.shape[0] == n_frames:
        return table_TD
    resized = F.interpolate(table_TD.T.unsqueeze(0).float(), size=n_frames, mode="linear", align_corners=False)
    return resized.squeeze(0).T.to(table_TD.dtype)


def sincos_positions(grid: Sequence[int], d_model: int, device: torch.device | None = None) -> Tensor:
    """Fixed positions (L, D) of a grid (T, H, W): sines and cosines of each coordinate in a part of the width of its own.

    Axes of one cell take no part; what is left of a width that the parts do not divide stays zero.

    Paper: https://arxiv.org/abs/1706.03762, section 3.5, per axis as in MAE, https://arxiv.org/abs/2111.06377.
    """
    axes = [i for i, size in enumerate(grid) if size > 1] or [1]
    quarter = d_model // (2 * len(axes))
    if quarter == 0:
        raise ValueError(f"positions=sincos needs d_model of at least {2 * len(axes)} for {len(axes)} axes, found {d_model}")
    frequencies = 10_000.0 ** (-torch.arange(quarter, device=device) / quarter)
    places = torch.meshgrid(*(torch.arange(size, device=device) for size in grid), indexing="ij")
    parts = []
    for axis in axes:
        angle = places[axis].flatten().unsqueeze(1) * frequencies
        parts += [angle.sin(), angle.cos()]
    return F.pad(torch.cat(parts, dim=1), (0, d_model - 2 * quarter * len(axes)))


def _small(*shape: int) -> nn.Parameter:
    # As in ViT, tables of positions and tokens are not decayed.
    return mark(nn.Parameter(torch.randn(shape) * 0.02), weight_decay=0.0)


def _three(name: str, sizes: Sequence[int]) -> tuple[int, int, int]:
    found = tuple(int(size) for size in sizes)
    if len(found) != 3 or min(found) < 1:
        raise ValueError(f"{name} must be three sizes (T, H, W) of 1 or more, found {list(sizes)}")
    return found


def _whole(name: str, size: int, unit_name: str, unit: int) -> int:
    if unit < 1 or size < unit or size % unit:
        raise ValueError(f"{name}={size} is no multiple of {unit_name}={unit}")
    return size // unit
