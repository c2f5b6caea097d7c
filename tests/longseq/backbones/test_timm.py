"""timm's encoders compute what timm's own models compute."""

import pytest
import torch

from longseq.backbones.timm import TimmEncoder
from longseq.registry import create_backbone


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_blocks_and_norm_are_timms(name: str) -> None:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    encoder = TimmEncoder(32, 2, model=name, n_heads=2).eval()
    import timm

    whole = timm.create_model(name, embed_dim=32, depth=2, num_heads=2, num_classes=0).eval()
    assert isinstance(whole, VisionTransformer)
    whole.blocks.load_state_dict(torch.nn.Sequential(*encoder.blocks).state_dict())
    whole.norm.load_state_dict(encoder.norm.state_dict())
    image = torch.randn(2, 3, 224, 224)
    x = whole.norm_pre(whole.patch_drop(whole._pos_embed(whole.patch_embed(image))))
    torch.testing.assert_close(encoder(x), whole.forward_features(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "vit_tinny"}, "no model of timm's; such as vit_"),
        ({"model": "resnet18"}, "is a ResNet of timm's"),
        ({"d_model": 32, "n_heads": 5}, "do n_heads divide d_model"),
    ],
)
def test_other_models_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone("timm", **{"d_model": 32, "n_layers": 1, **options})  # type: ignore[arg-type]


def test_heads_follow_another_width() -> None:
    assert TimmEncoder(30, 1).blocks[0].attn.num_heads == 1  # type: ignore[union-attr]
    assert TimmEncoder(256, 1).blocks[0].attn.num_heads == 4  # type: ignore[union-attr]
