"""What `longseq list` shows is what is there, and no name is ever cut."""

import subprocess
import sys
from pathlib import Path

import pytest

from longseq.errors import ConfigError
from longseq.pipelines import list as listing
from longseq.registry import backbone_info, create_backbone, list_backbones


@pytest.fixture(scope="module")
def overview() -> str:
    return shown([])


def shown(args: list[str]) -> str:
    """What the verb prints into a pipe of 80 columns."""
    code = "import sys; from longseq.pipelines.list import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *args]
    environment = {**__import__("os").environ, "COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""
    return done.stdout


def test_the_overview_names_everything_in_eighty_columns(overview: str) -> None:
    words = set(overview.split())
    assert set(list_backbones()) <= words
    assert {"dna", "classification", "regression", "lm", "mlm"} <= words
    for topic in listing.TOPICS:
        assert topic in words
    assert max(map(len, overview.splitlines())) <= 80
    assert "…" not in overview


def test_the_table_of_backbones_fits_and_cuts_no_name() -> None:
    text = shown(["backbones"])
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    cells = [[cell.strip() for cell in line.split("│")] for line in text.splitlines() if line.startswith("│")]
    names = [row[1] for row in cells if row[1]]
    assert names == list_backbones()
    joined = "".join(row[4] for row in cells)
    for name in list_backbones():
        assert backbone_info(name).paper in joined


@pytest.mark.parametrize("name", list_backbones())
def test_direction_and_steps_are_those_of_a_built_backbone(name: str) -> None:
    facts = listing.build_backbone(name)
    backbone = create_backbone(name, d_model=256, n_layers=1)
    assert facts.direction in (("causal", "either") if backbone.causal else ("bidirectional", "either"))
    if facts.direction != "either":
        assert (facts.steps != "no") == backbone.can_step
    assert facts.cost == backbone_info(name).cost


def test_a_backbone_with_both_forms_says_either() -> None:
    assert listing.build_backbone("transformer").direction == "either"
    assert listing.build_backbone("gru").direction == "causal"


def test_patterns_and_plain_words_select(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.run(["backbones", "*former"]) == 0
    text = capsys.readouterr().out
    assert "longformer" in text and "transformer" in text and "hyena" not in text
    assert listing.list_matching("former") == listing.list_matching("*former")
    with pytest.raises(ConfigError, match="no backbone matches 'nothing'"):
        listing.run(["backbones", "nothing"])


def test_domains_are_described_without_importing_them() -> None:
    rows = dict(listing.domain_names("*"))
    assert rows["dna"].startswith("DNA at nucleotide resolution")
    code = "import sys; from longseq.pipelines.list import run; run(['domains']); run(['tasks']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_every_choice_has_a_description() -> None:
    for topic, (names, _) in listing.TOPICS.items():
        for name, text in names("*"):
            assert text, f"{topic} {name} has no description"


def test_experiments_are_read_from_nested_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "experiment" / "dna"
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text("# @package _global_\n# What it is for.\nseed: 1\n# not this\n")
    (folder / "b.yaml").write_text("seed: 1\n# not this either\n")
    monkeypatch.setattr(listing, "CONFIGS", tmp_path)
    assert listing.config_names("experiment", "*") == [("dna/a", "What it is for."), ("dna/b", "")]
    assert listing.config_names("experiment", "dna/b*") == [("dna/b", "")]
    assert listing.config_names("task", "*") == []


def test_pretrained_are_the_files_of_the_package_or_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listing, "find_spec", lambda name: None)
    assert listing.run(["pretrained"]) == 0
    assert "No published checkpoints are shipped" in capsys.readouterr().out


def test_pretrained_formats_are_listed_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hyenadna.py").write_text('"""Checkpoints of HyenaDNA."""\n')
    (tmp_path / "_private.py").write_text('"""No."""\n')

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(listing, "find_spec", lambda name: Spec)
    assert listing.pretrained_names("*") == [("hyenadna", "Checkpoints of HyenaDNA.")]


def test_a_backbone_that_cannot_be_imported_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("needs the package xyz")

    monkeypatch.setattr("longseq.registry.backbone_info", broken)
    assert listing.build_backbone("hyena").summary == "cannot be imported: needs the package xyz"


@pytest.mark.parametrize(("topic", "answer"), [("bakbones", "did you mean backbones"), ("zzz", "Topics: backbones, domains")])
def test_an_unknown_topic_is_answered_with_the_nearest(topic: str, answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        listing.run([topic])


def test_too_many_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 arguments"):
        listing.run(["backbones", "a", "b"])
