"""Caduceus Ph and PS files, against the published equations and the wiring of the published weights, in float64."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from longseq.checkpoint import load_model, save_model
from longseq.errors import CheckpointError
from longseq.pretrained import load_pretrained

D, E, N, K, R, LAYERS = 8, 16, 4, 4, 1, 3
TOLERANCE = 1e-4
COMPLEMENT = [0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, 11, 12, 13, 14, 15]
CONFIG = {
    "d_model": D,
    "n_layer": LAYERS,
    "vocab_size": 16,
    "ssm_cfg": {"d_state": N, "d_conv": K, "expand": 2, "dt_rank": "auto", "bias": False, "conv_bias": True},
    "rms_norm": True,
    "fused_add_norm": True,
    "residual_in_fp32": False,
    "pad_vocab_size_multiple": 8,
    "norm_epsilon": 1e-5,
    "bidirectional": True,
    "bidirectional_strategy": "add",
    "bidirectional_weight_tie": True,
    "rcps": True,
    "complement_map": {str(i): other for i, other in enumerate(COMPLEMENT)},
}


def mamba_weights() -> dict[str, Tensor]:
    return {
        "in_proj.weight": torch.randn(2 * E, D) * 0.3,
        "conv1d.weight": torch.randn(E, 1, K) * 0.4,
        "conv1d.bias": torch.randn(E) * 0.1,
        "x_proj.weight": torch.randn(R + 2 * N, E) * 0.4,
        "dt_proj.weight": torch.randn(E, R) * 0.5,
        "dt_proj.bias": torch.randn(E) - 2,
        "A_log": torch.rand(E, N),
        "D": torch.randn(E),
        "out_proj.weight": torch.randn(D, E) * 0.4,
    }


def file_weights(rcps: bool) -> dict[str, Tensor]:
    inside, table = ("submodule.", "embedding.weight") if rcps else ("", "weight")
    head = "lm_head.lm_head.weight" if rcps else "lm_head.weight"
    embedding = torch.randn(16, D)
    weights = {f"caduceus.backbone.embeddings.word_embeddings.{table}": embedding, head: embedding}
    if rcps:
        buffer = torch.tensor(COMPLEMENT)
        weights |= {"caduceus.backbone.embeddings.word_embeddings.complement_map": buffer, "lm_head.complement_map": buffer}
    for i in range(LAYERS):
        forward, reverse = mamba_weights(), mamba_weights()
        reverse |= {name: forward[name] for name in ("in_proj.weight", "out_proj.weight")}
        at = f"caduceus.backbone.layers.{i}."
        weights[at + "norm.weight"] = torch.rand(D) + 0.5
        weights |= {f"{at}mixer.{inside}mamba_fwd.{name}": x for name, x in forward.items()}
        weights |= {f"{at}mixer.{inside}mamba_rev.{name}": x for name, x in reverse.items()}
    return {**weights, "caduceus.backbone.norm_f.weight": torch.rand(D) + 0.5}


def mamba(w: dict[str, Tensor], at: str, u: Tensor) -> Tensor:
    """One Mamba layer, position by position."""
    x, z = (u @ w[at + "in_proj.weight"].T).chunk(2, -1)
    padded = torch.cat([x.new_zeros(x.shape[0], K - 1, E), x], 1)
    taps = w[at + "conv1d.weight"].squeeze(1)
    x = silu(sum(padded[:, k : k + x.shape[1]] * taps[:, k] for k in range(K)) + w[at + "conv1d.bias"])
    dt, B, C = (x @ w[at + "x_proj.weight"].T).split([R, N, N], -1)
    dt = softplus(dt @ w[at + "dt_proj.weight"].T + w[at + "dt_proj.bias"])
    A = -w[at + "A_log"].exp()
    state, outputs = x.new_zeros(x.shape[0], E, N), []
    for t in range(x.shape[1]):
        state = torch.exp(dt[:, t, :, None] * A) * state + dt[:, t, :, None] * B[:, t, None] * x[:, t, :, None]
        outputs.append((state * C[:, t, None]).sum(-1) + w[at + "D"] * x[:, t])
    return (torch.stack(outputs, 1) * silu(z)) @ w[at + "out_proj.weight"].T


def both_directions(w: dict[str, Tensor], at: str, u: Tensor) -> Tensor:
    return mamba(w, at + "mamba_fwd.", u) + mamba(w, at + "mamba_rev.", u.flip(1)).flip(1)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def published_ph(weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    w = {name.removeprefix("caduceus.backbone."): x.double() for name, x in weights.items()}
    x = w["embeddings.word_embeddings.weight"][ids]
    for i in range(LAYERS):
        x = x + both_directions(w, f"layers.{i}.mixer.", rms(x, w[f"layers.{i}.norm.weight"]))
    return rms(x, w["norm_f.weight"]) @ w["lm_head.weight"].T


def turn(x: Tensor) -> Tensor:
    return x.flip(1, 2)


def published_ps(weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The fused branch: halves change places before each layer, and the norm of the first does not turn it round."""
    w = {name.removeprefix("caduceus.backbone."): x.double() for name, x in weights.items()}
    table, complement = w["embeddings.word_embeddings.embedding.weight"], torch.tensor(COMPLEMENT)
    low, high = table[ids], turn(table[complement[ids.flip(1)]])
    residual_low = residual_high = None
    for i in range(LAYERS):
        new_low = high if residual_high is None else residual_high + high
        new_high = low if residual_low is None else residual_low + low
        residual_low, residual_high = new_low, new_high
        weight = w[f"layers.{i}.norm.weight"]
        low, high = rms(residual_low, weight), turn(rms(turn(residual_high), weight))
        at = f"layers.{i}.mixer.submodule."
        low, high = both_directions(w, at, low), turn(both_directions(w, at, turn(high)))
    assert residual_low is not None and residual_high is not None
    low = rms(residual_low + low, w["norm_f.weight"])
    high = turn(rms(turn(residual_high + high), w["norm_f.weight"]))
    head = w["lm_head.lm_head.weight"]
    return low @ head.T + high.flip(-1) @ head[complement].T


@pytest.mark.parametrize("rcps", [False, True])
def test_equals_the_published_network(write_checkpoint: Callable[..., Path], rcps: bool) -> None:
    weights = file_weights(rcps)
    model, report = load_pretrained(write_checkpoint({**CONFIG, "rcps": rcps}, weights))
    assert report.format == "caduceus"
    ids = torch.randint(7, 12, (2, 33))
    with torch.no_grad():
        ours, expected = model(ids), (published_ps if rcps else published_ph)(weights, ids)
    assert expected.abs().max() > 1
    assert (ours - expected).abs().max() <= TOLERANCE
    with torch.no_grad():
        assert (model.double()(ids) - expected).abs().max() <= 1e-9
    assert not report.unexpected and not report.missing and not report.reinitialized
    # The projections of the reverse direction are those of the forward one.
    assert sum("the same tensor" in reason for reason in report.dropped.values()) == 2 * LAYERS


@pytest.mark.parametrize("rcps", [False, True])
def test_files_without_the_tied_tensors_are_complete(write_checkpoint: Callable[..., Path], rcps: bool) -> None:
    weights = file_weights(rcps)
    tied = [name for name in weights if "mamba_rev.in_proj" in name or "mamba_rev.out_proj" in name or "lm_head" in name]
    bare = {name: x for name, x in weights.items() if name not in tied}
    model, report = load_pretrained(write_checkpoint({**CONFIG, "rcps": rcps}, bare))
    whole, _ = load_pretrained(write_checkpoint({**CONFIG, "rcps": rcps}, weights))
    ids = torch.randint(7, 12, (1, 20))
    assert torch.equal(model(ids), whole(ids))
    assert not report.reinitialized


def published_unfused(weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The branch without fused norms: each strand in its own half all the way."""
    w = {name.removeprefix("caduceus.backbone."): x.double() for name, x in weights.items()}
    table, complement = w["embeddings.word_embeddings.embedding.weight"], torch.tensor(COMPLEMENT)
    low, high = table[ids], turn(table[complement[ids.flip(1)]])
    for i in range(LAYERS):
        weight, at = w[f"layers.{i}.norm.submodule.weight"], f"layers.{i}.mixer.submodule."
        low = low + both_directions(w, at, rms(low, weight))
        high = high + turn(both_directions(w, at, rms(turn(high), weight)))
    low, high = rms(low, w["norm_f.submodule.weight"]), turn(rms(turn(high), w["norm_f.submodule.weight"]))
    head = w["lm_head.lm_head.weight"]
    return low @ head.T + high.flip(-1) @ head[complement].T


def test_strands_that_do_not_change_places(write_checkpoint: Callable[..., Path]) -> None:
    weights = {re.sub(r"\.(norm|norm_f)\.weight$", r".\1.submodule.weight", name): x for name, x in file_weights(True).items()}
    model, report = load_pretrained(write_checkpoint({**CONFIG, "rcps": True, "fused_add_norm": False}, weights))
    ids = torch.randint(7, 12, (2, 21))
    with torch.no_grad():
        expected = published_unfused(weights, ids)
        assert (model.double()(ids) - expected).abs().max() <= 1e-9
    fused, _ = load_pretrained(write_checkpoint({**CONFIG, "rcps": True}, file_weights(True)))
    assert not report.unexpected and not report.missing
    assert model.config["backbone"]["exchange"] is False and "exchange" not in fused.config["backbone"]


def test_a_tied_head_of_both_strands_is_one_parameter(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    weights = file_weights(True)
    weights["lm_head.lm_head.weight"] = weights["caduceus.backbone.embeddings.word_embeddings.embedding.weight"].clone()
    model, report = load_pretrained(write_checkpoint({**CONFIG, "rcps": True}, weights))
    assert model.head.projection.weight is model.embedding.strand.embedding.weight  # type: ignore[union-attr]
    assert report.tied == {"head.projection.weight": "embedding.strand.embedding.weight"}
    again = load_model(save_model(model, tmp_path / "saved"))
    ids = torch.randint(7, 12, (1, 9))
    assert torch.equal(again(ids), model(ids))
    assert again.head.projection.weight is again.embedding.strand.embedding.weight  # type: ignore[union-attr]


def test_ps_is_equivariant_with_a_pooled_head(write_checkpoint: Callable[..., Path]) -> None:
    folder = write_checkpoint(CONFIG, file_weights(True))
    model, report = load_pretrained(folder, head={"name": "strand_pool", "n_outputs": 2})
    ids = torch.randint(7, 12, (2, 17))
    turned = torch.tensor(COMPLEMENT)[ids.flip(1)]
    torch.testing.assert_close(model(ids), model(turned), rtol=1e-4, atol=1e-5)
    assert len(report.reinitialized) == 2


def test_other_variants_are_refused(write_checkpoint: Callable[..., Path]) -> None:
    weights = file_weights(True)
    for change, problem in (
        ({"bidirectional_strategy": "ew_multiply"}, "bidirectional_strategy"),
        ({"bidirectional_weight_tie": False}, "bidirectional_weight_tie"),
        ({"complement_map": {"7": 8, "8": 9, "9": 7}}, "no pairing"),
        ({"complement_map": None}, "lacks 'complement_map'"),
        # Another pairing than that of the file's own buffers.
        ({"complement_map": {"7": 9, "9": 7, "8": 10, "10": 8}}, "config.json pairs the tokens as"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            load_pretrained(write_checkpoint({**CONFIG, **change}, weights))
    name = "caduceus.backbone.layers.1.mixer.submodule.mamba_rev.out_proj.weight"
    with pytest.raises(CheckpointError, match="are one parameter"):
        load_pretrained(write_checkpoint(CONFIG, {**weights, name: weights[name] + 1}))
