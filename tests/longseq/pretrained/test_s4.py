"""S4 and S4D state dicts of versions 3 and 4 and of the minimal example, against the published equations in complex128."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.errors import CheckpointError
from longseq.pretrained import load_pretrained

H, N, LAYERS, VOCAB, L_KERNEL = 8, 3, 2, 11, 24
TOLERANCE = 1e-4


def kernel_weights(sets: int, low_rank: bool, directions: int = 1) -> dict[str, Tensor]:
    """One layer's model, as version 4 names it; A is -exp(A_real) - i A_imag."""
    weights = {
        "inv_dt": torch.rand(H, 1) - 2,
        "A_real": torch.rand(sets, N) - 0.7,
        "A_imag": torch.rand(sets, N) * 3,
        "B": torch.randn(1, sets, N, 2),
        "C": torch.randn(directions, H, N, 2) * 0.3,
    }
    return {**weights, "P": torch.randn(1, sets, N, 2) * 0.3} if low_rank else weights


def network_weights(sets: int, low_rank: bool, directions: int = 1) -> dict[str, Tensor]:
    """A language model of the training code, version 4, before norms."""
    weights = {"encoder.0.weight": torch.randn(VOCAB, H)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        kernel = kernel_weights(sets, low_rank, directions)
        if low_rank:
            kernel["C"] = corrected(kernel)
            kernel["l_kernel"] = torch.tensor(L_KERNEL)
        weights |= {f"{at}layer.layer.kernel.{name}": x for name, x in kernel.items()}
        weights |= {
            at + "layer.layer.D": torch.randn(1, H),
            at + "layer.output_linear.0.weight": torch.randn(2 * H, H) * 0.4,
            at + "layer.output_linear.0.bias": torch.randn(2 * H) * 0.2,
            at + "norm.norm.weight": torch.rand(H) + 0.5,
            at + "norm.norm.bias": torch.randn(H),
        }
    weights |= {"model.norm.norm.weight": torch.rand(H) + 0.5, "model.norm.norm.bias": torch.randn(H)}
    return {
        **weights,
        "decoder.0.output_transform.weight": torch.randn(VOCAB, H),
        "decoder.0.output_transform.bias": torch.randn(VOCAB),
    }


def complex_model(kernel: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dt (H), A (H, 2N, 2N), B (H, 2N) and C (directions, H, 2N), with both of each conjugate pair."""
    copies = H // kernel["A_real"].shape[0]
    diagonal = torch.complex(-kernel["A_real"].double().exp(), -kernel["A_imag"].double()).repeat(copies, 1)
    B, C = (torch.view_as_complex(kernel[name].double().contiguous()) for name in ("B", "C"))
    B = B[0].repeat(copies, 1)
    A = torch.diag_embed(torch.cat([diagonal, diagonal.conj()], -1))
    if "P" in kernel:
        P = torch.view_as_complex(kernel["P"].double().contiguous())[0].repeat(copies, 1)
        P = torch.cat([P, P.conj()], -1)
        A = A - P.unsqueeze(-1) * P.conj().unsqueeze(-2)
    return kernel["inv_dt"].double().exp().flatten(), A, torch.cat([B, B.conj()], -1), torch.cat([C, C.conj()], -1)


def discrete(kernel: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The transition and the input of one step: bilinear for S4, a held input for S4D."""
    dt, A, B, _ = complex_model(kernel)
    eye = torch.eye(2 * N, dtype=A.dtype)
    step = dt[:, None, None] * A
    if "P" in kernel:
        back = torch.linalg.inv(eye - step / 2)
        return back @ (eye + step / 2), dt[:, None] * (back @ B.unsqueeze(-1)).squeeze(-1)
    transition = torch.matrix_exp(step)
    return transition, torch.linalg.solve(A, (transition - eye) @ B.unsqueeze(-1)).squeeze(-1)


def corrected(kernel: dict[str, Tensor]) -> Tensor:
    """C (I - A^L), as files hold it."""
    transition, _ = discrete(kernel)
    row = complex_model(kernel)[3]
    row = row - (row.unsqueeze(-2) @ torch.linalg.matrix_power(transition, L_KERNEL)).squeeze(-2)
    return torch.view_as_real(row[..., :N].contiguous())


def taps(kernel: dict[str, Tensor], length: int) -> Tensor:
    """(directions, H, length); where the file holds a corrected C, it is corrected back by solving."""
    transition, entry = discrete(kernel)
    row = complex_model(kernel)[3]
    if "l_kernel" in kernel:
        factor = torch.eye(2 * N, dtype=row.dtype) - torch.linalg.matrix_power(transition, int(kernel["l_kernel"]))
        row = torch.linalg.solve(factor.mT, row.unsqueeze(-1)).squeeze(-1)
    found, state = [], entry
    for _ in range(length):
        found.append((row * state).sum(-1).real)
        state = (transition @ state.unsqueeze(-1)).squeeze(-1)
    return torch.stack(found, -1)


def state_space(kernel: dict[str, Tensor], D: Tensor, u: Tensor) -> Tensor:
    length, k = u.shape[1], taps(kernel, u.shape[1])
    y = D.double().flatten() * u
    for lag in range(length):
        y[:, lag:] += k[0, :, lag] * u[:, : length - lag]
        # The second direction of the authors' code begins at the next position.
        if k.shape[0] == 2 and lag + 1 < length:
            y[:, : length - lag - 1] += k[1, :, lag] * u[:, lag + 1 :]
    return y


def norm(w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    if at + "s" in w:
        return (
            w[at + "s"].double() / x.std(-1, correction=0, keepdim=True) * (x - x.mean(-1, keepdim=True) + w[at + "m"].double())
        )
    return torch.nn.functional.layer_norm(x, (H,), w[at + "weight"].double(), w[at + "bias"].double())


def mix(w: dict[str, Tensor], layer: str, u: Tensor) -> Tensor:
    kernel = {
        name.removeprefix(layer + "layer.kernel."): x for name, x in w.items() if name.startswith(layer + "layer.kernel.")
    }
    y = torch.nn.functional.gelu(state_space(kernel, w[layer + "layer.D"], u))
    y = y @ w[layer + "output_linear.0.weight"].double().flatten(1).T + w[layer + "output_linear.0.bias"].double()
    return torch.nn.functional.glu(y, -1)


def published(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    x = w["encoder.0.weight"].double()[ids]
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        x = x + mix(w, at + "layer.", norm(w, at + "norm.norm.", x))
    x = norm(w, "model.norm.norm.", x)
    return x @ w["decoder.0.output_transform.weight"].double().T + w["decoder.0.output_transform.bias"].double()


def with_scalar_norms(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The training code's norm where time is last: one weight and one bias for all channels."""
    new = {}
    for name, x in weights.items():
        scalar = name.replace("norm.weight", "norm.s").replace("norm.bias", "norm.m")
        new[scalar] = x if scalar == name else x[:1]
    return new


def as_version_3(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    old = {}
    for name, x in weights.items():
        if name.endswith("inv_dt"):
            name, x = name.replace("inv_dt", "log_dt"), x.squeeze(-1)
        if name.endswith("A_imag"):
            name, x = name.replace("A_imag", "w_imag"), -x
        name = name.replace("A_real", "log_w_real").replace("l_kernel", "L")
        name = name.replace("layer.layer.kernel.", "layer.kernel.kernel.").replace("layer.layer.D", "layer.D")
        old[name] = x
    return old


def as_version_3_of_s4d(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """S4D of version 3 has other names than its S4, the sign of A that is ours, and no first axis before B's sets."""
    old = {}
    for name, x in as_version_3(weights).items():
        name = name.replace("log_w_real", "inv_A_real").replace("w_imag", "A_imag")
        old[name] = x[0] if name.endswith("kernel.B") else x.unsqueeze(1) if name.endswith("log_dt") else x
    return old


def check(folder: Path, weights: dict[str, Tensor], **options: Any) -> Any:
    model, report = load_pretrained(folder, **options)
    # Longer than the kernel that C was stored for.
    ids = torch.randint(VOCAB, (2, L_KERNEL + 9))
    with torch.no_grad():
        expected = published(weights, ids)
        assert expected.abs().max() > 1
        assert (model(ids) - expected).abs().max() <= TOLERANCE
    assert not report.unexpected and not report.missing and not report.reinitialized
    return report


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize(
    ("sets", "low_rank", "backbone"), [(2, True, "s4"), (H, True, "s4"), (1, False, "s4d"), (H, False, "s4d")]
)
def test_training_code(write_checkpoint: Callable[..., Path], version: int, sets: int, low_rank: bool, backbone: str) -> None:
    weights = network_weights(sets, low_rank)
    file = as_version_3(weights) if version == 3 else weights
    folder = write_checkpoint(None, file, "s4.pt")
    check(folder / "s4.pt", weights)
    model, report = load_pretrained(folder)
    assert model.config["backbone"]["name"] == backbone
    assert report.format == "s4"


def test_norms_with_one_weight_for_all_channels(write_checkpoint: Callable[..., Path]) -> None:
    weights = with_scalar_norms(network_weights(2, True))
    check(write_checkpoint(None, as_version_3(weights), "s4.pt"), weights)


@pytest.mark.parametrize("sets", [1, 2, H])
def test_version_3_of_s4d(write_checkpoint: Callable[..., Path], sets: int) -> None:
    weights = network_weights(sets, False)
    check(write_checkpoint(None, as_version_3_of_s4d(weights), "s4d.ckpt", epoch=1), weights)


def test_compiled_inside_a_lightning_module(write_checkpoint: Callable[..., Path]) -> None:
    weights = network_weights(1, True)
    file = {
        name.replace("model.", "model._orig_mod.", 1) if name.startswith("model.") else name: x for name, x in weights.items()
    }
    check(write_checkpoint(None, file, "s4.ckpt", epoch=1), weights)


def test_what_the_file_does_not_say_is_noted(write_checkpoint: Callable[..., Path]) -> None:
    folder = write_checkpoint(None, network_weights(1, False), "s4d.pt")
    model, report = load_pretrained(folder)
    assert "zoh was taken" in str(report)
    held = model.backbone.blocks[0].mixer.kernel(5)  # type: ignore[union-attr, operator, index]
    model, report = load_pretrained(folder, discretization="bilinear")
    assert "zoh" not in str(report) and model.config["backbone"]["discretization"] == "bilinear"
    assert not torch.allclose(model.backbone.blocks[0].mixer.kernel(5), held)  # type: ignore[union-attr, operator, index]
    low_rank = network_weights(1, True)
    assert "l_kernel" not in " ".join(load_pretrained(write_checkpoint(None, low_rank, "s4.pt"))[1].notes)
    without = {name: x for name, x in low_rank.items() if not name.endswith("l_kernel")}
    assert "l_kernel" in " ".join(load_pretrained(write_checkpoint(None, without, "s4.pt"))[1].notes)


@pytest.mark.parametrize("bias", [True, False])
def test_a_classifier_of_tokens_sees_the_mean(write_checkpoint: Callable[..., Path], bias: bool) -> None:
    weights = network_weights(1, False)
    weights["decoder.0.output_transform.weight"] = torch.randn(2, H)
    weights["decoder.0.output_transform.bias"] = torch.randn(2) if bias else torch.zeros(2)
    file = {name: x for name, x in weights.items() if bias or name != "decoder.0.output_transform.bias"}
    model, report = load_pretrained(write_checkpoint(None, file, "lra.pt"))
    ids = torch.randint(VOCAB, (2, 19))
    with torch.no_grad():
        # The mean of outputs is the output of the mean.
        assert (model(ids) - published(weights, ids).mean(1)).abs().max() <= TOLERANCE
    assert not report.reinitialized and ("without a bias" in str(report)) != bias


def test_both_directions_of_s4d(write_checkpoint: Callable[..., Path]) -> None:
    weights = network_weights(2, False, directions=2)
    check(write_checkpoint(None, weights, "s4d.ckpt", epoch=1), weights)


def test_step_sizes_by_softplus(write_checkpoint: Callable[..., Path]) -> None:
    weights = network_weights(1, False)
    file = {name: torch.expm1(x.exp()).log() if name.endswith("inv_dt") else x for name, x in weights.items()}
    folder = write_checkpoint(None, file, "s4d.pt")
    check(folder, weights, dt_transform="softplus")
    with pytest.raises(CheckpointError, match="dt_transform must be"):
        load_pretrained(folder, dt_transform="log")


def test_minimal_example(write_checkpoint: Callable[..., Path]) -> None:
    weights: dict[str, Tensor] = {"encoder.weight": torch.randn(H, 3), "encoder.bias": torch.randn(H)}
    for i in range(LAYERS):
        at = f"s4_layers.{i}."
        weights |= {
            at + "D": torch.randn(H),
            at + "kernel.C": torch.randn(H, N, 2),
            at + "kernel.log_dt": torch.rand(H) - 2,
            at + "kernel.log_A_real": torch.rand(H, N) - 0.7,
            at + "kernel.A_imag": torch.rand(H, N) * 3,
            at + "output_linear.0.weight": torch.randn(2 * H, H, 1) * 0.4,
            at + "output_linear.0.bias": torch.randn(2 * H),
            f"norms.{i}.weight": torch.rand(H) + 0.5,
            f"norms.{i}.bias": torch.randn(H),
        }
    weights |= {"decoder.weight": torch.randn(5, H), "decoder.bias": torch.randn(5)}
    model, report = load_pretrained(write_checkpoint(None, weights, "ckpt.pth", acc=0.9))
    x = torch.randn(2, 21, 3)
    y = x.double() @ weights["encoder.weight"].double().T + weights["encoder.bias"].double()
    for i in range(LAYERS):
        w = {name.removeprefix(f"s4_layers.{i}."): v for name, v in weights.items() if name.startswith(f"s4_layers.{i}.")}
        ones = torch.zeros(1, H, N, 2)
        ones[..., 0] = 1
        kernel = {
            "inv_dt": w["kernel.log_dt"],
            "A_real": w["kernel.log_A_real"],
            "A_imag": -w["kernel.A_imag"],
            "B": ones,
            "C": w["kernel.C"][None],
        }
        h = torch.nn.functional.gelu(state_space(kernel, w["D"], y))
        h = h @ w["output_linear.0.weight"].squeeze(-1).double().T + w["output_linear.0.bias"].double()
        y = norm(weights, f"norms.{i}.", y + torch.nn.functional.glu(h, -1))
    expected = y.mean(1) @ weights["decoder.weight"].double().T + weights["decoder.bias"].double()
    with torch.no_grad():
        assert (model(x) - expected).abs().max() <= TOLERANCE
    assert not report.unexpected and not report.reinitialized


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        ({"model.layers.0.norm.norm.running_mean": torch.zeros(H)}, "batch norm"),
        ({"model.layers.0.layer.output_linear.0.weight_g": torch.zeros(2)}, "weight norm"),
        ({"model.layers.0.layer.layer.kernel.C": torch.zeros(2, H, N, 2)}, "2 sets of C"),
        ({"model.layers.0.layer.layer.kernel.inv_dt": torch.zeros(H, N)}, "one step size per channel"),
        ({"model.layers.0.layer.layer.kernel.P": torch.zeros(2, 1, N, 2)}, "rank 2"),
        ({"model.layers.0.layer.layer.kernel.l_kernel": torch.tensor(-1)}, "layer 0 has a length of -1"),
        ({"encoder.0.emb_layers.0.weight": torch.zeros(3, H)}, "an embedding of several widths"),
        ({"model.layers.0.layer.layer.kernel.A_imag": torch.zeros(1, N + 1)}, "tensors are not those of this format"),
        ({"model.layers.0.layer.layer.kernel.A_real": torch.zeros(())}, "tensors are not those of this format"),
    ],
)
def test_what_cannot_be_built_is_said(write_checkpoint: Callable[..., Path], added: dict[str, Tensor], problem: str) -> None:
    weights = network_weights(1, True)
    with pytest.raises(CheckpointError, match=problem):
        load_pretrained(write_checkpoint(None, {**weights, **added}, "x.pt"))
    del weights["model.layers.1.layer.layer.kernel.A_imag"]
    with pytest.raises(CheckpointError, match="lacks A_imag of the layer 1"):
        load_pretrained(write_checkpoint(None, weights, "x.pt"))


def test_a_second_direction_beyond_32_bits_is_refused(write_checkpoint: Callable[..., Path]) -> None:
    weights = network_weights(1, False, directions=2)
    # The file's second direction is divided by exp(dt A), which is below what 32 bits hold.
    fast = {name: torch.full_like(x, 6.0) if name.endswith("inv_dt") else x for name, x in weights.items()}
    with pytest.raises(CheckpointError, match="the layer 0 decays too fast"):
        load_pretrained(write_checkpoint(None, fast, "s4d.pt"))
