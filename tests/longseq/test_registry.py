"""Backbones from other packages, hybrids, and answers to mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longseq.registry import backbone_info, create_backbone, list_backbones, register_backbone

TOY = '''
import torch
from longseq.backbone import Mixer, zero_padding
from longseq.registry import register_backbone


@register_backbone("toy", summary="running mean", paper="https://example.org", cost="O(L)", state="d_model + 1")
class Toy(Mixer):
    """Mean of everything up to each position of a linear map, per document."""

    def __init__(self, d_model):
        super().__init__()
        self.map = torch.nn.Linear(d_model, d_model)

    def init_state(self, batch_size):
        new = self.map.weight.new_zeros
        return {"sum": new(batch_size, self.map.in_features).float(), "n": new(batch_size, 1).float()}

    def forward_chunk(self, x_BLD, state, mask_BL=None):
        v = zero_padding(self.map(zero_padding(x_BLD, mask_BL)).float(), mask_BL)
        n = torch.ones_like(v[..., :1]) if mask_BL is None else mask_BL.unsqueeze(-1).float()
        total, count = state["sum"].unsqueeze(1) + v.cumsum(1), state["n"].unsqueeze(1) + n.cumsum(1)
        return (total / count.clamp(min=1)).to(x_BLD.dtype), {"sum": total[:, -1], "n": count[:, -1]}

    def forward(self, x_BLD, mask_BL=None, segment_ids_BL=None):
        if segment_ids_BL is not None:
            from longseq.layers.segments import find_segments, pack, segment_mask, unpack

            found = find_segments(segment_ids_BL)
            return pack(self.forward(unpack(x_BLD, found), segment_mask(mask_BL, found)), found)
        return self.forward_chunk(x_BLD, self.init_state(x_BLD.shape[0]), mask_BL)[0]
'''


def test_a_backbone_of_another_package_passes_every_generic_test(tmp_path: Path) -> None:
    (tmp_path / "toy_backbone.py").write_text(TOY)
    info = tmp_path / "toy_backbone-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-backbone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[longseq.backbones]\ntoy = toy_backbone\n")
    tests = Path(__file__).parent / "test_backbones.py"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "toy and not slow",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        str(tests),
    ]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**env, "PYTHONPATH": str(tmp_path)}, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = int(done.stdout.split(" passed")[0].split()[-1])
    assert passed > 25, done.stdout[-500:]


def test_hybrid_stacks_mix_layers_in_turn() -> None:
    model = create_backbone(
        "gru", d_model=16, n_layers=5, pattern=["gru", "gru", "transformer"], pattern_options={"transformer": {"n_heads": 2}}
    )
    kinds = [type(block.mixer).__name__ for block in model.layers()]  # type: ignore[attr-defined]
    assert kinds == [kinds[0], kinds[0], kinds[2], kinds[0], kinds[0]]
    assert kinds[0] != kinds[2]
    x = torch.randn(2, 30, 16)
    state, outputs = model.init_state(2), []
    for chunk in x.split(7, dim=1):
        y, state = model.forward_chunk(chunk, state)
        outputs.append(y)
    assert torch.allclose(torch.cat(outputs, 1), model(x), atol=1e-5)


@pytest.mark.parametrize("options", [{"merge": "add"}, {"merge": "concat"}, {"merge": "hydra"}, {"share": True}])
def test_bidirectional_forms_see_both_sides(options: dict[str, object]) -> None:
    model = create_backbone("gru", d_model=16, n_layers=1, bidirectional=True, **options).eval()  # type: ignore[arg-type]
    x = torch.randn(1, 20, 16)
    changed = x.clone()
    changed[:, 15] = torch.randn(16)
    assert not torch.allclose(model(x)[:, :10], model(changed)[:, :10])
    assert not model.can_step


def test_mistakes_are_answered() -> None:
    with pytest.raises(ValueError, match="mamba"):
        create_backbone("mambo")
    with pytest.raises(TypeError, match="d_state"):
        create_backbone("mamba", dstate=4)
    with pytest.raises(ValueError, match="even"):
        create_backbone("gru", d_model=15, reverse_complement=True)
    with pytest.raises(ValueError, match="merge"):
        create_backbone("gru", d_model=16, bidirectional=True, merge="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="whole network"):
        create_backbone("sashimi", d_model=16, bidirectional=True)
    with pytest.raises(ValueError, match="grid"):
        create_backbone("gru", d_model=16, scan_orders=["raster"])
    with pytest.raises(ValueError, match=r"d_model must be .* found 16\.5"):
        create_backbone("gru", d_model=16.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"n_layers must be .* found 0"):
        create_backbone("gru", n_layers=0)
    with pytest.raises(ValueError, match="merge must be one of"):
        create_backbone("gru", merge="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pattern must be a list"):
        create_backbone("gru", pattern="gru")
    with pytest.raises(ValueError, match="scan_orders must be a list"):
        create_backbone("gru", scan_orders="raster", grid=(2, 2))
    with pytest.raises(ValueError, match="pattern_options has 'cnn'"):
        create_backbone("gru", pattern=["gru", "mamba"], pattern_options={"cnn": {"d_conv": 3}})
    with pytest.raises(ValueError, match="mlp_ratio"):
        create_backbone("gru", mlp_ratio=-1.0)
    with pytest.raises(ValueError, match="expand must be at least 1"):
        create_backbone("mamba2", expand=0)
    with pytest.raises(ValueError, match="dt_limit must be"):
        create_backbone("mamba2", dt_limit=[1.0])
    with pytest.raises(ValueError, match="num_inner_mlps must be at least 0"):
        create_backbone("hyena", num_inner_mlps=-1)
    with pytest.raises(ValueError, match="already registered"):

        @register_backbone("gru", summary="", paper="", cost="")
        class Impostor:
            pass


def test_names_are_found_by_pattern() -> None:
    assert set(list_backbones("*mamba*")) == {"mamba", "mamba2"}
    for name in list_backbones():
        assert backbone_info(name).name == name
