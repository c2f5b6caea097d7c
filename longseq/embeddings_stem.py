"""A front end from timm: the feature map of one of its convolutional networks, one position per cell of the map."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from longseq.embeddings_vision import CellEmbedding
from longseq.layers.marks import mark


class StemEmbedding(CellEmbedding):
    """The last feature map of a timm network in place of patches, for any backbone to go on from.

    Args:
        d_model: width out.
        size: (H, W) that positions are made for; other sizes interpolate them.
        model: timm's name of a network with a feature map, such as `resnet18` or `convnext_atto`.
        **options: of `CellEmbedding`, without `grid` and `cell`.

    Raises:
        ValueError: for a name that timm does not know, or a network without a feature map.

    Cost: the network's.

    Paper: hybrid ViT, https://arxiv.org/abs/2010.11929, section 3.1 ("hybrid architecture").
    """

    def __init__(self, d_model: int, *, size: Sequence[int], model: str, n_channels: int = 3, **options: Any) -> None:
        grid = stem_grid(model, (int(size[0]), int(size[1])))
        super().__init__(d_model, grid=(1, *grid), cell=(1, 1, 1), n_channels=n_channels, **options)
        self.size = (int(size[0]), int(size[1]))
        self.stem = _create(model, n_channels)
        for parameter in self.stem.parameters():
            # Biases and norms are not decayed.
            if parameter.ndim < 2:
                mark(parameter, weight_decay=0.0)
        self.projection = nn.Linear(self.stem.num_features, d_model)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """One frame, and its height and width in pixels."""
        return 1, *self.size

    def cells(self, x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Features (B, L, P) of standardised images (B, 1, C, H, W), row by row, and their grid."""
        features_BPHW = self.stem.forward_features(x.flatten(0, 1).to(self.projection.weight.dtype))
        rows, columns = features_BPHW.shape[2:]
        return features_BPHW.flatten(2).mT, (1, rows, columns)


@cache
def stem_grid(model: str, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the network's last feature map for images of a size; nothing is computed."""
    with torch.device("meta"):
        network = _create(model, 3).eval()
        try:
            shape = network.forward_features(torch.empty(1, 3, *size)).shape
        except AssertionError:
            # Vision transformers of timm's take images of their own size only.
            shape = torch.Size()
    if len(shape) != 4 or shape[1] != network.num_features:
        raise ValueError(
            f"stem={model!r} gives no feature map (batch, channels, rows, columns): choose a convolutional network, "
            f"such as resnet18, or backbone=timm:{model} if it is a vision transformer"
        )
    return int(shape[2]), int(shape[3])


def _create(model: str, n_channels: int) -> Any:
    import timm

    try:
        return timm.create_model(model, num_classes=0, global_pool="", in_chans=n_channels)
    except RuntimeError as error:
        if model in timm.list_models():
            raise
        near = timm.list_models(f"*{model.split('_')[0]}*")[:3]
        hint = f"such as {', '.join(near)}" if near else "timm.list_models() names them"
        raise ValueError(f"stem={model!r} is no model of timm's; {hint}") from error
