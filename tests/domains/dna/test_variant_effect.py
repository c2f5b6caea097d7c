"""Variant effects: the alleles' windows, both strands, and every task's scores against the model asked directly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longseq.domains.dna.genome import Genome
from longseq.domains.dna.tokenizer import MASK_ID, NucleotideTokenizer
from longseq.domains.dna.variant_effect import VariantScorer, align_alleles, allele_windows, predict_variants
from longseq.domains.dna.vcf import Variant
from longseq.errors import ConfigError
from longseq.model import SequenceModel, build_model

WINDOW = 32
SEQUENCE = "".join(np.random.default_rng(0).choice(list("ACGT"), 400))


def other(base: str) -> str:
    return "ACGT"["ACGT".index(base) ^ 1]


@pytest.fixture
def genome(tmp_path: Path) -> Genome:
    (tmp_path / "g.fa").write_text(f">chr1\n{SEQUENCE}\n")
    return Genome(tmp_path / "g.fa")


def model(task: str, *, head: str = "pool", n_outputs: int = 2, backbone: str = "cnn", **config: Any) -> SequenceModel:
    torch.manual_seed(1)
    options = {"bin_size": config.get("bin_size", 1)} if head == "bins" else {}
    return build_model(
        {
            "domain": "dna",
            "task": task,
            "labels": ["no", "yes"],
            "input_length": WINDOW,
            **config,
            "embedding": {"name": "token", "vocab_size": 16},
            "backbone": {"name": backbone, "d_model": 16, "n_layers": 1},
            "head": {"name": head, "n_outputs": n_outputs, **options},
        }
    ).eval()


def variants() -> list[Variant]:
    places = [1, 100, 250, 400]
    single = [Variant("chr1", p, ".", SEQUENCE[p - 1], other(SEQUENCE[p - 1])) for p in places]
    indels = [
        Variant("chr1", 120, ".", SEQUENCE[119], SEQUENCE[119] + "GAT"),
        Variant("chr1", 130, ".", SEQUENCE[129:133], SEQUENCE[129]),
    ]
    return [*single, *indels]


def ids(text: str) -> torch.Tensor:
    return torch.from_numpy(NucleotideTokenizer().encode(text).astype(np.int64))[None]


def strands(text: str) -> list[torch.Tensor]:
    return [ids(text), ids(text.translate(str.maketrans("ACGT", "TGCA"))[::-1])]


def windows(variant: Variant) -> list[str]:
    """Both alleles in their stretch, from the sequence itself."""
    place = (WINDOW - max(len(variant.ref), len(variant.alt))) // 2
    padded = "N" * 100 + SEQUENCE + "N" * 100
    start = variant.pos - 1 + 100
    behind = padded[start + len(variant.ref) :]
    return [(padded[start - place : start] + allele + behind)[:WINDOW] for allele in (variant.ref, variant.alt)]


@pytest.mark.parametrize("variant", variants())
def test_alleles_share_their_left_side_and_length(genome: Genome, variant: Variant) -> None:
    ref, alt, place = allele_windows(genome, variant, WINDOW)
    decode = NucleotideTokenizer().decode
    assert [decode(ref), decode(alt)] == windows(variant)
    assert len(ref) == len(alt) == WINDOW
    assert decode(alt)[place : place + len(variant.alt)] == variant.alt


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_answers_are_compared_on_both_strands(genome: Genome, task: str) -> None:
    config: dict[str, Any] = {"mean": [1.0, 2.0], "std": [3.0, 0.0]} if task == "regression" else {}
    net = model(task, **config)
    table: Any = VariantScorer(net, batch_size=2).table(genome, variants())
    assert list(table.columns[:5]) == ["chrom", "pos", "id", "ref", "alt"]

    def answer(text: str) -> np.ndarray:
        found = []
        for strand in strands(text):
            out = net(strand)[0].detach()
            values = {"classification": out.softmax(-1), "multilabel": out.sigmoid()}.get(
                task, out * torch.tensor([3.0, 1.0]) + torch.tensor([1.0, 2.0])
            )
            found.append(values.double().numpy())
        return np.mean(found, 0)

    for i, variant in enumerate(variants()):
        ref, alt = (answer(text) for text in windows(variant))
        assert table["delta_yes"][i] == pytest.approx(alt[1] - ref[1], abs=1e-6)
        if task != "regression":
            odds = [np.log(p[1] / (1 - p[1])) for p in (ref, alt)]
            assert table["delta_log_odds_yes"][i] == pytest.approx(odds[1] - odds[0], abs=1e-5)
    # Of two classes one says it all; of several labels or quantities each has its own.
    assert ("delta_no" in table) == (task != "classification")
    assert (table["delta_yes"].abs() > 1e-7).all()


def test_one_strand_alone(genome: Genome) -> None:
    net = model("classification")
    table: Any = VariantScorer(net, both_strands=False).table(genome, variants()[1:2])
    expected = [float(net(ids(text))[0].detach().softmax(-1)[1]) for text in windows(variants()[1])]
    assert table["ref_yes"][0] == pytest.approx(expected[0], abs=1e-6)
    assert table["alt_yes"][0] == pytest.approx(expected[1], abs=1e-6)


def test_causal_models_give_the_likelihood_ratio_of_the_windows(genome: Genome) -> None:
    net = model("lm", head="token", n_outputs=16, backbone="gru")
    table: Any = VariantScorer(net).table(genome, variants())

    def likelihood(text: str) -> float:
        found = []
        for strand in strands(text):
            log_p = net(strand[:, :-1])[0].detach().log_softmax(-1)
            found.append(sum(float(log_p[i, t]) for i, t in enumerate(strand[0, 1:].tolist()) if 7 <= t <= 10))
        return float(np.mean(found))

    for i, variant in enumerate(variants()):
        ref, alt = (likelihood(text) for text in windows(variant))
        assert table["log_likelihood_ratio"][i] == pytest.approx(alt - ref, abs=1e-4)
        assert table["ref_log_likelihood"][i] == pytest.approx(ref, abs=1e-4)


def test_masked_models_hide_the_alleles(genome: Genome) -> None:
    net = model("mlm", head="token", n_outputs=16)
    table: Any = VariantScorer(net).table(genome, variants())
    variant = variants()[1]
    place = (WINDOW - 1) // 2
    found = []
    for text in windows(variant):
        scores = []
        for strand, at in zip(strands(text), (place, WINDOW - 1 - place), strict=True):
            true = int(strand[0, at])
            strand[0, at] = MASK_ID
            scores.append(float(net(strand)[0, at].detach().log_softmax(-1)[true]))
        found.append(np.mean(scores))
    assert table["log_likelihood_ratio"][1] == pytest.approx(found[1] - found[0], abs=1e-5)
    # Alleles of different lengths: nothing is hidden, and both windows have as many bases.
    insertion = 4
    whole = []
    for text in windows(variants()[insertion]):
        logs = [net(s)[0].detach().log_softmax(-1) for s in strands(text)]
        whole.append(
            np.mean(
                [sum(float(p[i, t]) for i, t in enumerate(s[0].tolist())) for p, s in zip(logs, strands(text), strict=True)]
            )
        )
    assert table["log_likelihood_ratio"][insertion] == pytest.approx(whole[1] - whole[0], abs=1e-4)


def test_tracks_and_labels_of_bases(genome: Genome) -> None:
    track = model("profile", head="bins", bin_size=8, loss="poisson", mean=[2.0, 3.0], std=[1.0, 1.0], other_strand=[1, 0])
    table: Any = VariantScorer(track).table(genome, variants())
    text = windows(variants()[2])
    means = torch.tensor([2.0, 3.0])
    values = []
    for one in text:
        plain, turned = (torch.nn.functional.softplus(track(s)[0].detach()) * means for s in strands(one))
        values.append((plain + turned.flip(0)[:, [1, 0]]) / 2)
    change = (values[1] - values[0])[:, 1]
    assert table["delta_yes"][2] == pytest.approx(float(change.mean()), abs=1e-5)
    assert table["largest_delta_yes"][2] == pytest.approx(float(change[change.abs().argmax()]), abs=1e-5)
    labels = model("base_labels", head="bins", background="no")
    found: Any = VariantScorer(labels).table(genome, variants())
    assert "delta_no" not in found and (found["offset_yes"].abs() < WINDOW).all()
    plain, turned = ([labels(s)[0].detach().softmax(-1)[:, 1] for s in strands(one)] for one in text)
    change = (turned[0] + turned[1].flip(0) - plain[0] - plain[1].flip(0)) / 2
    at = int(change.abs().argmax())
    assert found["delta_yes"][2] == pytest.approx(float(change[at]), abs=1e-6)
    assert found["offset_yes"][2] == at - (WINDOW - 1) // 2


def test_indels_are_aligned_to_the_reference() -> None:
    place = torch.arange(8.0)[:, None]
    # REF at 3, two bases inserted behind it: their largest answer stands at its place.
    ref, alt = align_alleles(place, place, 3, 1, 3)
    assert alt.flatten().tolist() == [0, 1, 2, 5, 6, 7] and len(ref) == 6
    # Bases 4 and 5 are gone: they have no answer.
    ref, alt = align_alleles(place, place, 3, 3, 1)
    assert alt.flatten().tolist() == [0, 1, 2, 3, 0, 0, 4, 5] and len(ref) == 8


def test_in_python_and_with_what_does_not_fit(tmp_path: Path, genome: Genome) -> None:
    path = tmp_path / "v.vcf"
    path.write_text("".join(f"{v.chrom}\t{v.pos}\t.\t{v.ref}\t{v.alt},<X>\n" for v in variants()))
    rows = list(predict_variants(model("classification"), tmp_path / "g.fa", path, on_bad="skip", batch_size=4))
    assert [row["alt"] for row in rows] == [v.alt for v in variants()]
    assert {"ref_yes", "alt_yes", "delta_yes"} <= set(rows[0])
    with pytest.raises(ConfigError, match="found task=frames"):
        VariantScorer(model("frames"))
    with pytest.raises(ConfigError, match="multiple of 8"):
        VariantScorer(model("profile", head="bins", bin_size=8), window=30)
