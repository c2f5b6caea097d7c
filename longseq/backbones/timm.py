"""The encoders of timm's vision transformers: the baseline that people who work with images know.

Equation: x <- x + attention(norm(x)); x <- x + mlp(norm(x)), without positions of its own: the embedding gives them.
Good at images of a few hundred patches; O(L^2) in their number. Not our own `transformer`, which has rotary positions and a
causal form.

Paper: ViT, https://arxiv.org/abs/2010.11929. Package: timm, https://github.com/huggingface/pytorch-image-models.
"""

from typing import Any

import torch
from torch import Tensor, nn

from longseq.backbone import Backbone, zero_padding
from longseq.layers.marks import mark
from longseq.layers.segments import number_segments
from longseq.registry import register_backbone


@register_backbone(
    "timm",
    summary="encoder of one of timm's vision transformers; also as backbone=timm:vit_tiny_patch16_224",
    paper="https://arxiv.org/abs/2010.11929",
    cost="O(L^2)",
)
class TimmEncoder(Backbone):
    """The blocks and the last norm of a timm VisionTransformer, by timm's name.

    Args:
        d_model: width in and out; None for the model's own.
        n_layers: blocks; None for the model's own.
        model: timm's name, such as `vit_small_patch16_224` or `deit_tiny_patch16_224`.
        n_heads: heads; None for the model's own, or, at another width, for about 64 channels each.
        dropout: on attention's and the MLPs' outputs.
        drop_path: stochastic depth, growing linearly over the blocks.

    Raises:
        ValueError: for a name that timm does not know, a model that is no plain vision transformer, or sizes that do not fit.

    Cost: O(L^2 d_model + L d_model^2) time; attention is torch's fused one.

    Paper: https://arxiv.org/abs/2010.11929, equations 2 and 3. Differs from timm's model: patches, positions, the class token
    and the head are ours, so that it takes any grid, masks and packed rows.
    """

    causal = can_step = False

    def __init__(
        self,
        d_model: int | None = None,
        n_layers: int | None = None,
        *,
        model: str = "vit_tiny_patch16_224",
        n_heads: int | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if d_model is not None and n_heads is None:
            n_heads = next(heads for heads in range(max(1, d_model // 64), 0, -1) if d_model % heads == 0)
        changed = {"embed_dim": d_model, "depth": n_layers, "num_heads": n_heads}
        options = {key: value for key, value in changed.items() if value is not None}
        encoder = _create(model, {**options, "proj_drop_rate": dropout, "drop_path_rate": drop_path})
        self.d_model = int(encoder.embed_dim)
        self.blocks: nn.ModuleList = nn.ModuleList(encoder.blocks)
        self.norm: nn.Module = encoder.norm
        for parameter in self.parameters():
            # Biases, norms and layer scales are not decayed.
            if parameter.ndim < 2:
                mark(parameter, weight_decay=0.0)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        self.check_input(x_BLD, mask_BL, segment_ids_BL)
        x_BLD = zero_padding(x_BLD, mask_BL)
        seen_B1LM = _seen(mask_BL, number_segments(segment_ids_BL, mask_BL))
        for block in self.blocks:
            x_BLD = block(x_BLD, attn_mask=seen_B1LM)
        return zero_padding(self.norm(x_BLD), mask_BL)


def _create(model: str, options: dict[str, Any]) -> Any:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if model not in timm.list_models():
        near = [name for name in timm.list_models(f"*{model.split('_')[0]}*") if name.startswith(("vit_", "deit"))][:3]
        hint = f"; such as {', '.join(near)}" if near else "; timm.list_models() names them"
        raise ValueError(f"model={model!r} is no model of timm's{hint}")
    kind = timm.model_entrypoint(model)
    # Built without memory first: some of them are large, and only vision transformers are of use.
    with torch.device("meta"):
        found = kind(pretrained=False)
    if not isinstance(found, VisionTransformer) or getattr(found, "rope", None) is not None:
        raise ValueError(
            f"model={model!r} is a {type(found).__name__} of timm's, not a plain vision transformer: choose a vit_* or deit_*"
        )
    try:
        return kind(pretrained=False, num_classes=0, **options)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"model={model!r} cannot be built with {options}: {error}; do n_heads divide d_model?") from None


def _seen(mask_BL: Tensor | None, segment_ids_BL: Tensor | None) -> Tensor | None:
    """Which position sees which, (B, 1, L, M); None where all see all."""
    if mask_BL is None and segment_ids_BL is None:
        return None
    if segment_ids_BL is None:
        assert mask_BL is not None
        seen_BLM = mask_BL[:, None, :].expand(-1, mask_BL.shape[1], -1)
    else:
        seen_BLM = segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :]
        if mask_BL is not None:
            seen_BLM = seen_BLM & mask_BL[:, None, :]
    # A row without anything to see (padding) sees all, since an empty softmax is NaN; its outputs are not used.
    return (seen_BLM | ~seen_BLM.any(-1, keepdim=True)).unsqueeze(1)
