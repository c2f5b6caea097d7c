"""The page of a run: what it says, that it stands alone, and that nothing in it runs or breaks the page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from longseq.domains.sections import RunFiles, Section
from longseq.errors import ConfigError
from longseq.pipelines.report import run, write_report
from tests.pipelines.fake_runs import class_predictions, dna_splits, label_predictions, value_predictions, write_run

VOID = frozenset(("meta", "br", "img", "hr", "input", "link", "use"))
TEST = {"accuracy": 0.9365, "mcc": 0.8732, "f1": 0.9364, "auroc": 0.9812, "loss": 0.1834}
BASELINES = {"majority": {"mcc": 0.0, "accuracy": 0.5125}, "k-mer <regression>": {"mcc": 0.8113, "accuracy": 0.9512}}


class Page(HTMLParser):
    """Text, tables, links and ids of a page; fails where tags do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href", "srcset", "action", "data", "xlink:href"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if "tr" in self.open and self.rows:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def row(self, name: str) -> list[str]:
        """The first table row that begins with this cell."""
        return next(row for row in self.rows if row and row[0].strip() == name)


def make(folder: Path, task: str = "classification", **options: Any) -> Page:
    return Page(write_report(write_run(folder, task, **{"test": TEST, **options})))


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Page:
    counts = {
        "split": "by chromosome",
        "leaks in test": "12 of 300 test sequences also stand in train",
        "leaks in val": "0 of 9",
    }
    return make(
        tmp_path_factory.mktemp("run"),
        baselines=BASELINES,
        predictions=class_predictions(["background", "promoter"]),
        splits=dna_splits({"background": 520, "promoter": 480}),
        counts=counts,
    )


def test_verdict_table_and_chart_hold_the_numbers_of_metrics_json(binary: Page) -> None:
    assert "Test mcc 0.8732 , better by 0.0619 than the best baseline, k-mer <regression> (0.8113)." in binary.text
    header = next(row for row in binary.rows if any(cell.startswith("mcc") for cell in row))
    assert header[1] == "mcc ↑" and "loss ↓" in header
    assert binary.row("hyena")[1] == "0.8732"
    assert binary.row("majority")[1] == "0.000"
    assert "Test mcc beside the baselines" in binary.text


def test_the_best_value_of_each_column_is_bold_and_only_that(binary: Page) -> None:
    assert "<b>0.8732</b></td>" in binary.source
    # The baseline is better in accuracy.
    assert "<b>0.9512</b></td>" in binary.source and "<b>0.9365</b></td>" not in binary.source
    # Nothing to compare with.
    assert "<b>0.9812</b></td>" not in binary.source


def test_a_model_that_does_not_beat_its_baselines_is_told_so(tmp_path: Path) -> None:
    page = make(tmp_path, baselines={"GC content": {"mcc": 0.9}})
    assert "Test mcc 0.8732 : not better than the best baseline, GC content (0.9)." in page.text
    lower = make(
        tmp_path / "lower", "regression", test={"mse": 0.5}, baselines={"mean": {"mse": 0.75}, "ridge": {"mse": 0.625}}
    )
    assert "Test mse 0.5 , better by 0.125 than the best baseline, ridge (0.625)." in lower.text


def test_a_baseline_of_the_backbones_own_name_keeps_its_row(tmp_path: Path) -> None:
    page = make(tmp_path, baselines={"hyena": {"mcc": 0.3}})
    assert page.row("hyena (this run)")[1] == "0.8732" and page.row("hyena")[1] == "0.3000"


def test_confusion_counts_are_sklearns(binary: Page) -> None:
    frame = class_predictions(["background", "promoter"])
    expected = confusion_matrix(frame["label"], frame["prediction"])
    rows = [row for row in binary.rows if row[0] in ("background", "promoter") and "%" in row[1] and "(" not in row[1]]
    found = [[int(cell.split()[0]) for cell in row[1:3]] for row in rows]
    assert found == expected.tolist()
    assert rows[0][1].split()[1] == f"{expected[0, 0] / expected[0].sum():.1%}"
    assert rows[0][3] == str(expected[0].sum())
    auroc = roc_auc_score(frame["label"] == "promoter", frame["p_promoter"])
    assert f"promoter {auroc:.3f}" in binary.source


def test_the_mistakes_shown_are_wrong_and_the_most_confident(binary: Page) -> None:
    frame = class_predictions(["background", "promoter"])
    wrong: Any = frame[frame["prediction"] != frame["label"]].copy()
    wrong["confidence"] = wrong[["p_background", "p_promoter"]].max(axis=1)
    worst = wrong.sort_values("confidence", ascending=False).iloc[0]
    assert binary.row(worst["id"])[1:7] == [
        worst["chrom"], str(worst["start"]), str(worst["end"]), str(worst["length"]), worst["label"], worst["prediction"],
    ]  # fmt: skip
    right = frame[frame["prediction"] == frame["label"]].iloc[0]["id"]
    assert right not in binary.text


def test_data_environment_command_and_config_are_there(binary: Page) -> None:
    assert binary.row("rows") == ["rows", "8,123", "1,017", "1,024"]
    assert binary.row("GC")[1] == "0.4123"
    assert [row for row in binary.rows if row[0] == "background"][-1][1] == "4,223 (52.0%)"
    for text in ("1,234,567", "5.29 GiB", "130,954", "12 min 34 s", "NVIDIA H100 80GB HBM3", "2.11.0+cu130", "98,765,432"):
        assert text in binary.text
    assert "longseq fit domain=dna 'data.train=<my files>/train.csv'" in binary.text
    assert "d_model: 128" in binary.text
    assert binary.text.count("Leak ") == 1 and "Leak 12 of 300 test sequences" in binary.text


def test_the_page_loads_nothing_and_runs_nothing(binary: Page) -> None:
    outside = [link for link in binary.links if not link.startswith("#")]
    assert outside == ["https://arxiv.org/abs/2302.10866"]
    assert not {"script", "link", "iframe", "img", "object"} & set(binary.tags)
    assert "@import" not in binary.source and "url(http" not in binary.source
    assert "default-src 'none'" in binary.source
    assert len(binary.source) < 400_000


def test_figures_follow_the_theme_and_have_text_alternatives(binary: Page) -> None:
    figures = re.findall(r"<svg [^>]*>", binary.source)
    assert len(figures) >= 7
    assert all(re.search(r'role="img" aria-label="[^"]{8,}"', figure) for figure in figures)
    drawings = "".join(re.findall(r"<svg .*?</svg>", binary.source, re.DOTALL))
    assert "var(--ink)" in drawings and "var(--c1)" in drawings
    assert not re.search(r"(fill|stroke): #", drawings), "a colour of its own would not follow the theme"
    assert "prefers-color-scheme:dark" in binary.source
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', binary.source))
    assert used <= set(binary.ids) and len(binary.ids) == len(set(binary.ids))


def test_what_users_write_is_escaped(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>$x_{$&\"'"
    predictions = class_predictions([evil, "b"], 60, skill=0.5)
    predictions["id"] = evil
    page = make(
        tmp_path,
        predictions=predictions,
        baselines={evil: {"mcc": 0.1}},
        splits={"train": {evil: 3, "labels": {evil: 3}}},
        counts={evil: evil},
        backbone=evil,
        environment={"command": evil, evil: evil},
    )
    assert "img" not in page.tags
    assert page.row(evil)


def test_synthetic_data_are_marked(tmp_path: Path, binary: Page) -> None:
    page = make(tmp_path, synthetic=True, counts={"synthetic": "planted motifs"})
    assert "Synthetic demo data: planted motifs – says nothing about real data" in page.text
    assert "Synthetic" not in binary.text


def test_five_classes_have_one_vs_rest_curves_and_figures_per_class(tmp_path: Path) -> None:
    classes = [f"kind {i}" for i in range(5)]
    frame = class_predictions(classes)
    page = make(tmp_path, predictions=frame)
    positive = frame["label"] == "kind 3"
    expected = roc_auc_score(positive, frame["p_kind 3"])
    row = next(row for row in page.rows if row[0] == "kind 3" and "%" not in row[1])
    assert row[1] == str(positive.sum()) and row[5] == f"{expected:.4g}"
    assert "One-vs-rest" in page.text


def test_many_classes_show_their_most_frequent_confusions(tmp_path: Path) -> None:
    frame = class_predictions([f"species {i}" for i in range(30)], 900)
    pairs = frame[frame["label"] != frame["prediction"]].groupby(["label", "prediction"]).size()
    page = make(tmp_path, predictions=frame)
    first = page.rows[next(i for i, row in enumerate(page.rows) if row[:2] == ["true", "predicted"]) + 1]
    assert int(first[2]) == pairs.max() == pairs[(first[0], first[1])]


def test_labels_that_look_like_numbers_or_nothing_stay_names(tmp_path: Path) -> None:
    frame = class_predictions(["01", "NA"], 80)
    page = make(tmp_path, predictions=frame)
    assert page.row("01") and page.row("NA")
    assert f"of {len(frame)} test rows are right" in page.text


def test_a_test_set_with_one_class_has_no_roc(tmp_path: Path) -> None:
    frame = class_predictions(["a", "b"], 50)
    page = make(tmp_path, predictions=frame[frame["label"] == "a"])
    assert "Confusion matrix" in page.text and "AUROC" not in page.text


def test_regression_shows_targets_residuals_and_largest_errors(tmp_path: Path) -> None:
    frame: Any = value_predictions(["half life"])
    page = make(tmp_path, "regression", test={"mse": 0.5}, predictions=frame)
    pearson = frame["half life"].corr(frame["predicted_half life"])
    assert f"Pearson r {pearson:.3f} over 300 rows" in page.text
    error = (frame["predicted_half life"] - frame["half life"]).abs()
    assert page.row(frame["id"][error.idxmax()])
    assert "half life: residuals" in page.text


def test_many_points_are_sampled_and_the_page_says_so(tmp_path: Path) -> None:
    page = make(tmp_path, "regression", test={"mse": 0.5}, predictions=value_predictions(["y"], 20_000))
    assert "1,200 of 20,000 rows are drawn" in page.text
    assert len(page.source) < 600_000


def test_multilabel_has_figures_per_label(tmp_path: Path) -> None:
    frame = label_predictions(["H3K4me3", "DNase"])
    page = make(tmp_path, "multilabel", test={"auroc": 0.9}, predictions=frame)
    auroc = roc_auc_score(frame["DNase"], frame["p_DNase"])
    assert page.row("DNase")[1:3] == [str(frame["DNase"].sum()), f"{auroc:.4g}"]


def test_language_models_show_bits_beside_the_markov_baselines(tmp_path: Path) -> None:
    test = {"loss": 1.318, "perplexity": 3.736, "bits_per_base": 1.9014}
    page = make(tmp_path, "lm", test=test, baselines={"Markov, order 3": {"loss": 1.34, "bits_per_base": 1.9332}})
    assert page.row("hyena")[1:] == ["1.318", "3.736", "1.901"]
    assert "Bits per base" in page.text and "Test set" not in page.text
    assert "four equal letters, 2 bits" in page.source


def test_null_metrics_and_missing_files_leave_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "classification", test=TEST)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["test"]["mcc"] = None
    for name in ("training", "environment", "data", "validation", "baselines"):
        del metrics[name]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "metrics.csv").unlink()
    page = Page(write_report(folder))
    assert "No test mcc was measured." in page.text
    assert "Nothing was logged to metrics.csv" in page.text


def test_a_domain_figure_that_fails_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def figures(run: RunFiles) -> list[Section]:
        raise KeyError("no <column>")

    module = ModuleType("broken_plots")
    module.figures = figures  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "broken_plots", module)
    folder = write_run(tmp_path, "classification", test=TEST)
    config = (folder / "config.yaml").read_text().replace("longseq.domains.dna.plots", "broken_plots")
    (folder / "config.yaml").write_text(config)
    page = Page(write_report(folder))
    assert "broken_plots could not draw its figures: KeyError: 'no <column>'" in page.text
    assert "Learning curves" in page.text


def test_the_page_is_replaced_whole_and_the_same_each_time(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "classification", test=TEST, predictions=class_predictions(["a", "b"], 60))
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "metrics.csv",
        "metrics.json",
        "predictions.csv",
        "report.html",
    ]


def test_the_verb_takes_a_folder_plain_or_as_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "with space", "classification", test=TEST)
    for args in ([str(folder)], [f"run={folder}"]):
        (folder / "report.html").unlink(missing_ok=True)
        assert run(args) == 0
        assert (folder / "report.html").is_file()
        assert capsys.readouterr().out.strip() == str(folder / "report.html")


@pytest.mark.parametrize("args", [[], ["a", "b"], ["folder=x"], ["--all"]])
def test_the_verb_refuses_other_arguments(args: list[str]) -> None:
    with pytest.raises(ConfigError, match="expected one run folder"):
        run(args)


def test_folders_that_are_no_finished_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        write_report(tmp_path)
    folder = write_run(tmp_path / "run", "classification", test=TEST)
    (folder / "metrics.json").write_text("{")
    with pytest.raises(ConfigError, match=r"metrics\.json is not valid JSON"):
        write_report(folder)
    (folder / "metrics.json").unlink()
    with pytest.raises(ConfigError, match="has not finished"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_label_columns_of_users_that_begin_with_p_are_not_classes(tmp_path: Path) -> None:
    frame = class_predictions(["a", "b"], 80)
    frame.insert(1, "p_value", 0.5)
    page = make(tmp_path, predictions=frame)
    assert page.row("true ↓ predicted →") == ["true ↓ predicted →", "a", "b", "rows"]
