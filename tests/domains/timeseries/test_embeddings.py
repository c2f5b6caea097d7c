"""Embeddings and the forecast head: layouts, normalisation, order of quantiles, missing values, exactness of Student's t."""

import math
from typing import Any

import pytest
import torch
from scipy import stats

from longseq.embeddings_timeseries import (
    SERIES_EMBEDDINGS,
    ForecastHead,
    SeriesMixingEmbedding,
    SeriesNormalizer,
    SeriesPatchEmbedding,
    student_t_quantile,
)

LAYOUTS = {"series_patch": "channels", "series_mixing": "mixed", "series_variate": "variate", "series_point": "last"}
QUANTILES = [0.1, 0.25, 0.5, 0.75, 0.9]


def build(
    name: str, *, covariates: int = 0, flags: bool = False, output: str = "quantiles", skip: bool = True, **more: Any
) -> tuple[Any, Any]:
    options: dict[str, Any] = {
        "n_channels": 3,
        "lookback": 20,
        "horizon": 5,
        "n_covariates": covariates,
        "flags": flags,
        **more,
    }
    if name in ("series_patch", "series_mixing"):
        options |= {"patch": 8, "stride": 4}
    embedding: Any = SERIES_EMBEDDINGS[name](16, **options)
    head = ForecastHead(
        16,
        horizon=5,
        n_channels=3,
        n_tokens=embedding.n_tokens,
        layout=LAYOUTS[name],
        output=output,
        quantiles=QUANTILES,
        lookback=20,
        linear_skip=skip,
        rank=8,
        calibrated_channels=3,
    )
    # What starts at zero would hide mistakes.
    torch.nn.init.normal_(head.location.weight, std=0.1)
    return embedding.eval(), head.eval()


def forecast(embedding: Any, head: Any, inputs: torch.Tensor) -> torch.Tensor:
    tokens, mask = embedding(inputs)
    if head.layout in ("variate", "last"):
        # Stands for a causal backbone: tokens only meet there.
        tokens = tokens + tokens.cumsum(1)
    return head.restore(head(tokens, mask), embedding, inputs)


@pytest.mark.parametrize("name", sorted(SERIES_EMBEDDINGS))
@pytest.mark.parametrize("covariates", [0, 2])
@pytest.mark.parametrize("output", ["point", "quantiles", "student_t"])
def test_forecasts_have_one_shape_and_rising_quantiles(name: str, covariates: int, output: str) -> None:
    embedding, head = build(name, covariates=covariates, output=output)
    inputs = 50 + 10 * torch.randn(4, embedding.n_steps, 3 + covariates)
    found = forecast(embedding, head, inputs)
    assert found.shape == (4, 5, 3, 5 + (3 if output == "student_t" else 0))
    assert (found[..., :5].diff(dim=-1) >= 0).all()
    if output != "point":
        assert (found[..., :5].diff(dim=-1) > 0).any()


@pytest.mark.parametrize("name", sorted(SERIES_EMBEDDINGS))
def test_revin_moves_and_stretches_forecasts_with_their_windows(name: str) -> None:
    embedding, head = build(name, floor=[1e-6] * 3)
    inputs = torch.randn(2, 20, 3)
    found = forecast(embedding, head, inputs)
    moved = forecast(embedding, head, 7 * inputs + 300)
    torch.testing.assert_close(moved, 7 * found + 300, rtol=1e-4, atol=1e-2)


def test_channel_independent_patches_keep_channels_apart_and_mixing_does_not() -> None:
    inputs = torch.randn(2, 20, 3)
    other = inputs.clone()
    other[..., 2] += torch.randn(2, 20)
    embedding, head = build("series_patch")
    a, b = forecast(embedding, head, inputs), forecast(embedding, head, other)
    torch.testing.assert_close(a[:, :, :2], b[:, :, :2])
    assert not torch.allclose(a[:, :, 2], b[:, :, 2])
    embedding, head = build("series_mixing")
    assert not torch.allclose(forecast(embedding, head, inputs)[:, :, 0], forecast(embedding, head, other)[:, :, 0])


@pytest.mark.parametrize("name", sorted(SERIES_EMBEDDINGS))
def test_known_covariates_of_the_future_matter_and_its_channels_do_not(name: str) -> None:
    embedding, head = build(name, covariates=2, flags=True)
    inputs = torch.randn(2, 25, 5)
    found = forecast(embedding, head, inputs)
    hidden = inputs.clone()
    hidden[:, 20:, :3] = math.nan
    torch.testing.assert_close(forecast(embedding, head, hidden), found)
    changed = inputs.clone()
    changed[:, 20:, 3:] += 1
    assert not torch.allclose(forecast(embedding, head, changed), found)


@pytest.mark.parametrize("instance", ["revin", "revin_last", "last", "none"])
def test_normalisation_is_undone(instance: str) -> None:
    normalizer: Any = SeriesNormalizer([3.0, -1.0], [2.0, 5.0], [1e-3, 1e-3], instance=instance, affine=True)
    with torch.no_grad():
        normalizer.gain_C.copy_(torch.tensor([0.5, -2.0]))
        normalizer.bias_C.copy_(torch.tensor([1.0, 3.0]))
    x = 100 + torch.randn(3, 12, 2)
    shift, scale = normalizer.statistics(x)
    back = normalizer.location(normalizer(x, shift, scale)) * scale + shift
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-3)


def test_statistics_leave_missing_values_out() -> None:
    normalizer = SeriesNormalizer([0.0], [1.0], [0.0], instance="revin_last")
    x = torch.tensor([[math.nan, 2.0, 4.0, math.nan, 6.0, math.nan]]).unsqueeze(-1)
    shift, scale = normalizer.statistics(x)
    assert shift.item() == 6.0
    assert scale.item() == pytest.approx(torch.tensor([2.0, 4.0, 6.0]).std(correction=0).item())
    shift, _ = SeriesNormalizer([0.0], [1.0], [0.0]).statistics(x)
    assert shift.item() == pytest.approx(4.0)


def test_large_levels_keep_their_deviation_in_fp32() -> None:
    wave = torch.sin(torch.arange(200.0)).reshape(1, 200, 1)
    _, scale = SeriesNormalizer([0.0], [1.0], [1e-6]).statistics(wave.double().add(1e6).float())
    assert scale.item() == pytest.approx(wave.std(correction=0).item(), rel=0.05)


@pytest.mark.parametrize("name", sorted(SERIES_EMBEDDINGS))
def test_constant_and_empty_windows_give_finite_forecasts(name: str) -> None:
    embedding, head = build(name, flags=True)
    inputs = torch.full((2, 20, 3), 5.0)
    inputs[1] = math.nan
    inputs.requires_grad_(False)
    found = forecast(embedding, head, inputs)
    assert torch.isfinite(found).all()
    # At a constant level the forecast stays within a few floors of it.
    assert (found[0] - 5).abs().max() < 0.1


def test_padding_in_front_is_masked() -> None:
    embedding, _ = build("series_patch", flags=True)
    inputs = torch.randn(1, 20, 3)
    inputs[:, :10] = math.nan
    _, mask = embedding(inputs)
    # Patches end at steps 8, 12, 16 and 20.
    assert mask.tolist() == [[False, True, True, True]] * 3
    zeros = inputs.nan_to_num()
    _, same = embedding(zeros, torch.arange(20).expand(1, -1) >= 10)
    assert same.tolist() == mask.tolist()


def test_patches_cover_the_end_of_the_window() -> None:
    embedding = SeriesPatchEmbedding(4, n_channels=1, lookback=21, patch=8, stride=8)
    steps = torch.arange(21.0).reshape(1, 21, 1)
    patches = embedding.patches(steps)
    assert patches.shape == (1, 3, 1, 8)
    assert patches[0, -1, 0].tolist() == [float(i) for i in range(13, 21)]
    assert patches[0, 0, 0].tolist() == [0, 0, 0, 0, 1, 2, 3, 4]


def test_calibration_moves_quantiles_in_evaluation_only() -> None:
    embedding, head = build("series_patch", output="point")
    inputs = torch.randn(2, 20, 3)
    plain = forecast(embedding, head, inputs)
    head.offset_FCQ.copy_(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(5, 3, 5))
    moved = forecast(embedding, head, inputs)
    _, scale = embedding.statistics(inputs)
    expected = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]) * scale.unsqueeze(-1)
    torch.testing.assert_close(moved - plain, expected.expand_as(plain), rtol=1e-4, atol=1e-4)
    head.train()
    torch.testing.assert_close(forecast(embedding, head, inputs), plain)
    # Offsets that would cross are stopped at the neighbour.
    head.eval().offset_FCQ.copy_(torch.tensor([3.0, -1.0, 0.0, 1.0, -3.0]).expand(5, 3, 5))
    assert (forecast(embedding, head, inputs).diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("freedom", [3.0, 4.0, 7.5, 100.0])
def test_student_t_quantiles(freedom: float) -> None:
    levels = [0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975]
    z = torch.tensor(stats.norm.ppf(levels))
    expected = stats.t.ppf(levels, freedom)
    found = student_t_quantile(z, torch.tensor(freedom, dtype=torch.float64)).numpy()
    assert found == pytest.approx(expected, rel=4e-3, abs=1e-9)


def test_gradients_reach_every_parameter() -> None:
    for name in SERIES_EMBEDDINGS:
        embedding, head = build(name, covariates=1, flags=True, affine=True)
        embedding.train()
        head.train()
        forecast(embedding, head, torch.randn(2, 25, 4)).square().mean().backward()
        without = [n for m in (embedding, head) for n, p in m.named_parameters() if p.grad is None or not p.grad.any()]
        assert not without, (name, without)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 30}, "patch <= lookback=20"),
        ({"patch": 4, "stride": 5}, "stride <= patch"),
        ({"patch": 4, "instance": "batch"}, "instance must be one of"),
    ],
)
def test_bad_options_name_themselves(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeriesMixingEmbedding(8, n_channels=2, lookback=20, **options)


def test_a_window_of_another_size_is_refused() -> None:
    embedding, _ = build("series_patch", covariates=2)
    with pytest.raises(ValueError, match=r"25 steps, 3 channels \+ 2 covariates\), found \(1, 20, 3\)"):
        embedding(torch.randn(1, 20, 3))


@pytest.mark.parametrize("quantiles", [[0.1, 0.9], [0.1, 0.5, 0.8], [0.5, 0.1, 0.9], [0.0, 0.5, 1.0], []])
def test_quantiles_must_be_symmetric(quantiles: list[float]) -> None:
    with pytest.raises(ValueError, match="quantiles must rise"):
        ForecastHead(8, horizon=2, n_channels=1, n_tokens=2, layout="channels", quantiles=quantiles)


@pytest.mark.parametrize("name", sorted(SERIES_EMBEDDINGS))
def test_one_exported_graph_holds_the_scaling(name: str) -> None:
    embedding, head = build(name)

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = embedding, head

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return forecast(self.embedding, self.head, inputs)

    inputs = 40 + torch.randn(3, 20, 3)
    program = torch.export.export(Whole(), (inputs,), dynamic_shapes={"inputs": {0: torch.export.Dim("batch", min=2, max=64)}})
    other = 90 + 5 * torch.randn(5, 20, 3)
    torch.testing.assert_close(program.module()(other), forecast(embedding, head, other))


def test_missing_values_leave_a_learned_scale_its_gradient() -> None:
    normalizer = SeriesNormalizer([1.0, 2.0], [1.0, 3.0], [1e-3, 1e-3], affine=True)
    window = torch.randn(2, 8, 2)
    window[0, 3, 1] = torch.nan
    found = normalizer(window, *normalizer.statistics(window))
    found.square().sum().backward()
    gradients = [parameter.grad for parameter in normalizer.parameters()]
    assert found[0, 3, 1] == 0 and all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
