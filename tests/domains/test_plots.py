"""Figures and figures of merit that the domains share, and DNA's own."""

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest

from longseq.domains import plots
from longseq.domains.classification_plots import calibration_bins, class_scores, expected_calibration_error
from longseq.domains.dna.plots import by_length, chromosome_order, figures
from longseq.domains.plots import comparison, dot_chart, histogram, learning_curves, series, smooth, thin, to_svg
from longseq.domains.prediction_plots import prediction_sections
from longseq.domains.sections import Html, RunFiles, short, table


def make_run(
    metrics: dict[str, Any] | None = None, curves: dict[str, list[Any]] | None = None, predictions: pd.DataFrame | None = None
) -> RunFiles:
    config = {"task": {"name": "classification", "monitor": "mcc", "mode": "max"}}
    return RunFiles(Path("run"), config, {"backbone": "hyena", **(metrics or {})}, pd.DataFrame(curves or {}), predictions)


def words(svg: str) -> list[str]:
    return [word.strip() for word in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (np.int64(12), "12"),
        (0.123456, "0.1235"),
        (123456.7, "123,457"),
        (0.0, "0"),
        ("as it is", "as it is"),
    ],
)
def test_values_are_written_short(value: Any, text: str) -> None:
    assert short(value) == text


def test_tables_escape_align_and_name_their_rows() -> None:
    html = table(["", "n"], [["<a>", 3], ["b", Html("<b>4</b>")], ["c", "text"]], label='x"y')
    assert '<th scope="row">&lt;a&gt;</th><td class=num>3</td>' in html
    assert "<td class=num><b>4</b></td>" in html and "<td>text</td>" in html
    assert 'aria-label="x&quot;y"' in html and '<th scope="col" class=num>n</th>' in html


def test_long_cells_are_cut_with_the_whole_in_the_tooltip() -> None:
    html = table(["sequence"], [["ACGT" * 100]], label="x")
    assert "A…</span>" not in html and f'title="{"ACGT" * 100}"' in html and f">{'ACGT' * 20}…<" in html


def test_svg_has_the_pages_colours_its_own_ids_and_readable_text() -> None:
    first = to_svg(dot_chart({"a <b>": 0.25, "$c_d$": 0.5}, "score"), "dots & lines")
    second = to_svg(dot_chart({"other": 0.25, "more": 0.75}, "score"), "x")
    assert {"score", "a &lt;b&gt;", "$c_d$", "0.25", "0.5"} <= set(words(first))
    assert 'aria-label="dots &amp; lines"' in first
    assert "http" not in first and "<metadata" not in first and "<style" not in first
    assert "#0101" not in first and "var(--c1)" in first
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]+)\)", first)) <= ids[0]


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    to_svg(dot_chart({"a": 1.0, "b": 2.0}, "x"), "x")
    assert dict(matplotlib.rcParams) == before


def test_comparison_puts_the_best_on_top_whichever_direction_is_better() -> None:
    metrics = {
        "test": {"mcc": 0.5, "loss": 0.3},
        "baselines": {"good": {"mcc": 0.9, "loss": 0.1}, "bad": {"mcc": 0.1, "loss": 0.9}},
    }
    for metric in ("mcc", "loss"):
        (section,) = comparison(make_run(metrics), metric)
        assert re.findall(r"good|hyena|bad", section.alt) == ["good", "hyena", "bad"]
    assert comparison(make_run({"test": {"mcc": 0.5}}), "mcc") == []
    assert comparison(make_run({"test": {"mcc": None}, "baselines": {"a": {"mcc": 0.2}}}), "mcc") == []


def test_learning_curves_find_what_was_logged_and_mark_the_best_step() -> None:
    curves = {
        "step": [0, 1, 2, 2, 3, 4, 4],
        "train/loss_step": [2.0, 1.5, math.nan, 1.2, 1.0, math.inf, math.nan],
        "val/loss": [math.nan] * 3 + [1.4] + [math.nan] * 2 + [1.5],
        "val/mcc": [math.nan] * 3 + [0.625] + [math.nan] * 2 + [0.5],
        "val/once": [math.nan] * 6 + [1.0],
    }
    sections = learning_curves(make_run(curves=curves))
    assert [section.title for section in sections] == ["Loss", "Validation mcc"]
    assert sections[0].alt == "loss against steps: train ends at 1, validation ends at 1.5"
    assert "Best at step 2" in sections[1].caption
    assert sections[1].figure is not None and "best: 0.625" in words(to_svg(sections[1].figure, "x"))


def test_the_loss_axis_is_logarithmic_only_where_that_helps() -> None:
    wide, narrow = (
        learning_curves(make_run(curves={"step": [0, 1, 2], "train/loss_step": values}))[0]
        for values in ([10.0, 1.0, 0.1], [1.2, 1.1, 1.0])
    )
    assert wide.figure is not None and wide.figure.axes[0].get_yscale() == "log"
    assert narrow.figure is not None and narrow.figure.axes[0].get_yscale() == "linear"
    ticks = words(to_svg(wide.figure, "x"))
    assert {"0.1", "1", "10"} <= set(ticks) and not any("mathdefault" in tick for tick in ticks)


def test_no_curves_no_sections() -> None:
    assert learning_curves(make_run()) == []
    assert learning_curves(make_run(curves={"step": [0], "train/loss_step": [math.nan]})) == []


def test_smoothing_keeps_the_mean_and_thinning_the_ends() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    x, y = smooth(np.arange(1000.0), values)
    assert len(x) == len(y) == 200
    np.testing.assert_allclose(y.mean(), values.mean())
    thinned = thin(np.arange(5000), 100)
    assert len(thinned) <= 100 and thinned[0] == 0 and thinned[-1] == 4999
    assert series(pd.DataFrame({"a": [1.0]}), "b")[0].size == 0


def test_histograms_are_shares_of_each_split() -> None:
    figure = histogram({"train": ([0, 10, 20], [30, 10]), "test": ([0, 10, 20], [1, 3])}, "length")
    heights = [patch.get_data().values.tolist() for patch in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert heights == [[0.75, 0.25], [0.25, 0.75]]


def test_calibration_error_is_that_of_the_definition() -> None:
    confidence = np.array([0.05, 0.15, 0.15, 0.95, 1.0])
    correct = np.array([False, True, False, True, False])
    means, shares, rows = calibration_bins(confidence, correct, 10)
    np.testing.assert_allclose(means, [0.05, 0.15, 0.975])
    np.testing.assert_allclose(shares, [0.0, 0.5, 0.5])
    assert rows.tolist() == [1, 2, 2]
    expected = (1 * 0.05 + 2 * 0.35 + 2 * 0.475) / 5
    assert expected_calibration_error(confidence, correct, 10) == pytest.approx(expected)


def test_a_calibrated_model_has_little_error_and_an_overconfident_one_much() -> None:
    random = np.random.default_rng(0)
    probability = random.random(20_000)
    truth = random.random(20_000) < probability
    assert expected_calibration_error(probability, truth) < 0.02
    assert expected_calibration_error(np.where(probability > 0.5, 0.99, 0.01), truth) > 0.2


def test_unlabelled_rows_are_left_out_of_class_scores() -> None:
    frame = pd.DataFrame(
        {"id": ["x", "y"], "prediction": ["a", "b"], "label": ["a", None], "p_a": [0.9, 0.2], "p_b": [0.1, 0.8]}
    )
    scores = class_scores(frame)
    assert scores is not None and scores.truth.tolist() == [0] and scores.rows["id"].tolist() == ["x"]
    assert class_scores(frame.assign(label=None)) is None


def test_predictions_without_labels_have_no_sections() -> None:
    assert prediction_sections(make_run(predictions=pd.DataFrame({"id": [1], "prediction": ["a"], "p_a": [1.0]}))) == []
    assert prediction_sections(make_run(predictions=pd.DataFrame({"id": [1], "predicted_y": [1.0]}))) == []
    assert prediction_sections(make_run()) == []


def test_a_constant_target_is_drawn_without_a_correlation() -> None:
    frame = pd.DataFrame({"id": range(20), "predicted_y": np.linspace(0, 1, 20), "y": 1.0})
    sections = prediction_sections(make_run(predictions=frame))
    assert "No correlation: one is constant over 20 rows" in sections[0].caption


# -- DNA


def dna_predictions(n: int = 200) -> pd.DataFrame:
    chrom = np.array(["chr10", "chr2", "chrX", "chrM"])[np.minimum(np.arange(n) % 4, 3)]
    right = (chrom != "chr2") | (np.arange(n) % 8 == 1)
    label = np.array(["a"] * n)
    return pd.DataFrame(
        {"id": range(n), "chrom": chrom, "length": np.arange(n) + 100, "prediction": np.where(right, "a", "b"), "label": label}
    )


def test_accuracy_by_chromosome_is_right_and_in_the_genomes_order() -> None:
    sections = figures(make_run({"test": {"mcc": 0.1}}, predictions=dna_predictions()))
    section = next(section for section in sections if section.title == "By chromosome")
    assert section.alt == (
        "accuracy by chromosome: chr2, 50 rows 0.500, chr10, 50 rows 1.000, chrM, 50 rows 1.000, chrX, 50 rows 1.000"
    )
    assert sorted(["chrX", "chr10", "2", "chrUn_1", "chr1"], key=chromosome_order) == ["chr1", "2", "chr10", "chrUn_1", "chrX"]


def test_accuracy_by_length_covers_every_row_once() -> None:
    frame = dna_predictions()
    section = next(s for s in figures(make_run(predictions=frame)) if s.title == "By length")
    spans = [tuple(map(int, pair)) for pair in re.findall(r"(\d+) to (\d+) bases", section.alt)]
    assert spans[0][0] == 100 and spans[-1][1] == 299
    assert all(after[0] == before[1] + 1 for before, after in pairwise(spans))
    assert by_length(frame.assign(length=100), "accuracy", pd.Series(1.0, index=frame.index)) == []


def test_errors_of_a_regression_by_length() -> None:
    frame = pd.DataFrame({"length": np.arange(100), "predicted_y": np.arange(100.0), "y": 0.0})
    (section,) = figures(make_run(predictions=frame))
    assert section.alt.startswith("mean absolute error of y by length: 0 to 19 bases 9.500")


def test_hundreds_of_scaffolds_become_a_table() -> None:
    frame = pd.DataFrame({"chrom": np.repeat([f"scaffold_{i}" for i in range(60)], 5), "prediction": "a", "label": "a"})
    (section,) = figures(make_run(predictions=frame))
    assert section.figure is None and section.html.count("<tr>") == 61


def test_bits_per_base_stand_beside_two_bits() -> None:
    run = make_run({"test": {"bits_per_base": 1.9}, "baselines": {"Markov": {"bits_per_base": 1.95}}})
    (section,) = figures(run)
    assert section.title == "Bits per base" and section.figure is not None
    assert "four equal letters, 2 bits" in words(to_svg(section.figure, "x"))
    assert figures(make_run({"test": {"mcc": 0.5}})) == []


def test_every_stand_in_colour_has_a_variable_of_the_page() -> None:
    from longseq.pipelines.report_page import DARK, LIGHT

    for variable in plots.VARIABLES.values():
        assert f"{variable}:" in LIGHT and f"{variable}:" in DARK
