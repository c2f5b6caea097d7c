"""In-silico mutagenesis and its logo: the right rows, the right place, and every substitution against the model itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from longseq.checkpoint import save_model
from longseq.domains.dna.logo import letter_path, mutagenesis_figure
from longseq.domains.dna.mutagenesis import choose_examples, important_window, mutagenesis_sections, mutate, score
from longseq.domains.dna.plots import votes
from longseq.domains.plots import to_svg
from longseq.domains.sections import RunFiles
from longseq.embeddings import TokenEmbedding
from longseq.model import SequenceModel, build_model


def model(task: str = "classification", n_outputs: int = 3) -> SequenceModel:
    config = {
        "task": task,
        "embedding": {"name": "token", "vocab_size": 16},
        "backbone": {"name": "cnn", "d_model": 16, "n_layers": 1},
        "head": {"name": "pool", "n_outputs": n_outputs},
    }
    return build_model(config).eval()


def test_every_substitution_is_what_the_model_says() -> None:
    net, ids = model(), torch.randint(7, 11, (40,))
    changes = mutate(net, ids, 10, 15, output=2, both_strands=True)
    reference = score(net, ids[None], 2, True)
    for row in range(5):
        for base in range(4):
            other = ids.clone()
            other[10 + row] = 7 + base
            expected = float((score(net, other[None], 2, True) - reference).detach())
            assert changes[row, base] == pytest.approx(expected, abs=1e-5)
    assert (changes[np.arange(5), (ids[10:15] - 7).numpy()] == 0).all()


def test_scores_are_log_odds() -> None:
    net, ids = model(), torch.randint(7, 11, (2, 20))
    p = net(ids).softmax(-1)[:, 1]
    torch.testing.assert_close(score(net, ids, 1, False), torch.log(p / (1 - p)))
    values = model("regression", 2)
    torch.testing.assert_close(score(values, ids, 1, False), values(ids)[:, 1])


def test_the_window_lies_where_the_model_looks() -> None:
    class Spot(nn.Module):
        """Looks at four positions only."""

        def forward(self, x_BLD: torch.Tensor, mask_BL: torch.Tensor | None) -> torch.Tensor:
            return x_BLD[:, 40:44].sum((1, 2)).unsqueeze(1)

    class Nothing(nn.Module):
        """Changes nothing."""

        def forward(self, x_BLD: torch.Tensor, mask_BL: torch.Tensor | None) -> torch.Tensor:
            return x_BLD

    net = SequenceModel(TokenEmbedding(8, vocab_size=16), Nothing(), Spot())  # type: ignore[arg-type]
    ids = torch.randint(7, 11, (60,))
    assert 34 <= important_window(net, ids, 0, 10) <= 40
    assert important_window(net, ids, 0, 60) == 0


def test_examples_are_confident_right_rows_of_every_class() -> None:
    batch = {
        "index": np.arange(4),
        "prediction": np.array(["a", "a", "b", "b"]),
        "label": np.array(["a", "a", "a", "b"]),
        "p_a": np.array([0.9, 0.8, 0.01, 0.4]),
        "p_b": np.array([0.1, 0.2, 0.99, 0.6]),
    }
    assert [row["index"] for row in choose_examples([batch], 3)] == [0, 3, 1]
    assert [row["name"] for row in choose_examples([batch], 2)] == ["a", "b"]
    assert choose_examples([], 3) == []
    values = {"index": np.array([5, 3]), "predicted_x": np.array([-1.0, 2.0]), "x": np.array([0.0, 0.0])}
    assert [(row["index"], row["name"]) for row in choose_examples([values], 1)] == [(3, "x")]


def test_letters_fill_their_boxes() -> None:
    for letter in "ACGTN":
        box = letter_path(letter).get_extents()
        assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((0, 0, 1, 1), abs=1e-6)


def test_logo_is_drawn_and_negative_letters_hang() -> None:
    changes = np.array([[0, -3, -3, -3], [1, 1, 0, 1], [0, 0, 0, 0]], dtype=float)
    figure = mutagenesis_figure("AGT", changes, 7, "log-odds")
    letters = figure.axes[0].patches
    extents = [patch.get_path().get_extents() for patch in letters]
    assert len(letters) == 2
    assert extents[0].y0 == pytest.approx(0) and extents[0].y1 == pytest.approx(3)
    assert extents[1].y0 == pytest.approx(-1) and extents[1].x0 == pytest.approx(7.54)
    svg = to_svg(figure, "logo")
    assert "<path" in svg and "var(--c3)" in svg


def test_sections_and_table(tmp_path: Path) -> None:
    save_model(model(), tmp_path / "model")
    sequence = "".join(np.random.default_rng(0).choice(list("ACGT"), 50))
    example = {"index": 0, "output": 1, "name": "b", "text": "b: 0.9", "id": "<r1>", "sequence": sequence}
    run = RunFiles(tmp_path, {"module": {"rc_average": True}}, {}, pd.DataFrame())
    assert mutagenesis_sections(run) == []
    (tmp_path / "mutagenesis.json").write_text(json.dumps([example]))
    (section,) = mutagenesis_sections(run, seconds=1.0)
    assert section.figure is not None and "<r1>" in section.title and "log-odds" in section.caption
    table: Any = pd.read_csv(tmp_path / "mutagenesis.tsv", sep="\t")
    assert "".join(table["base"]) == sequence[table["position"][0] - 1 : table["position"].iloc[-1]]
    assert (table[["to_A", "to_C", "to_G", "to_T"]].abs().to_numpy() > 0).sum() >= 2 * len(table)
    # A model that is too slow shows nothing rather than taking its time.
    assert mutagenesis_sections(run, seconds=1e-7) == []


def test_votes_are_drawn_for_records(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "id": ["x", "x", "x", "y"],
            "record": [0, 0, 0, 1],
            "prediction": ["b", "b", "a", "b"],
            "label": ["a", "a", "a", "b"],
            "p_a": [0.4, 0.4, 0.99, 0.2],
            "p_b": [0.6, 0.6, 0.01, 0.8],
        }
    )
    (section,) = votes(RunFiles(tmp_path, {}, {}, pd.DataFrame(), frame))
    assert section.caption.startswith("100.0% of 2 records are right, of their 4 windows alone 50.0%")
    assert votes(RunFiles(tmp_path, {}, {}, pd.DataFrame(), frame.drop(columns="record"))) == []
