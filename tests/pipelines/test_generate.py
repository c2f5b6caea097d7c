"""The verb generate: DNA, sound and images, the same for the same seed, and answers to bad commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

Command = Callable[..., int]
DNA = ("task=lm", "backbone=mamba", "data.window=64")


def letters(fasta: str) -> list[str]:
    """The sequences of a FASTA text."""
    return ["".join(record.split("\n")[1:]) for record in fasta.split(">")[1:]]


def test_dna_goes_on_behind_the_prompt(
    longseq: Command, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["generate", f"run={trained(*DNA)}", "prompt=acgtn", "max_new_tokens=70", "num_samples=2"]
    capsys.readouterr()
    assert longseq(*args) == 0
    printed = capsys.readouterr().out
    first, second = letters(printed)
    assert first != second
    for found in (first, second):
        assert len(found) == 75 and found.startswith("ACGTN") and set(found[5:]) <= set("ACGT")
    assert longseq(*args, "output=out.fa") == 0
    assert (tmp_path / "out.fa").read_text() == printed
    assert longseq(*args, "seed=1") == 0
    assert capsys.readouterr().out != printed


def test_a_bare_folder_and_no_prompt(longseq: Command, trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(*DNA)
    capsys.readouterr()
    assert longseq("generate", f"model={run / 'model'}", "max_new_tokens=20", "temperature=0") == 0
    (found,) = letters(capsys.readouterr().out)
    assert len(found) == 21


def test_sound_is_made_up_and_continued(longseq: Command, trained: Any, tmp_path: Path) -> None:
    run = trained("domain=audio", "task=lm", "backbone=gru", "data.demo_rows=24")
    assert longseq("generate", f"run={run}", "max_new_tokens=100", "num_samples=2", "output=new.wav") == 0
    for name in ("new_1.wav", "new_2.wav"):
        samples, rate = soundfile.read(tmp_path / name)
        assert (len(samples), rate) == (100, 4000)
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(800) / 9), 8000)
    assert longseq("generate", f"run={run}", "prompt=a.wav", "max_new_tokens=50", "top_k=5", "output=more.wav") == 0
    assert len(soundfile.read(tmp_path / "more.wav")[0]) == 450


def test_images_are_made_up_and_filled_in(longseq: Command, trained: Any, tmp_path: Path) -> None:
    run = trained("domain=vision", "task=lm", "backbone=gru", "data.tokenizer=pixel")
    assert longseq("generate", f"run={run}", "top_p=0.9", "output=new.png") == 0
    with Image.open(tmp_path / "new.png") as image:
        assert image.size == (8, 8)
        image.save(tmp_path / "prompt.png")
        upper = np.asarray(image)[:4]
    assert longseq("generate", f"run={run}", "prompt=prompt.png", "seed=5", "output=filled.png") == 0
    with Image.open(tmp_path / "filled.png") as image:
        assert np.array_equal(np.asarray(image)[:4], upper)
    assert longseq("generate", f"run={run}", "max_new_tokens=5") == 2


def test_temperatures_of_any_size(longseq: Command, trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["generate", f"run={trained(*DNA)}", "prompt=ACGT", "max_new_tokens=20"]
    found = {}
    for temperature in ("0", "1e-40", "1e-6", "1e40"):
        assert longseq(*args, f"temperature={temperature}") == 0
        found[temperature] = capsys.readouterr().out.splitlines()[-1]
    # At the coldest the likeliest alone; at the hottest any of the four, each as often.
    assert found["0"] == found["1e-40"] == found["1e-6"] and set(found["1e40"][4:]) == set("ACGT")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run=LM", "prompt=ACXGT"], "prompt is not DNA"),
        (["run=LM", "temperature=-1"], "temperature"),
        (["run=LM", "top_p=0"], "top_p"),
        (["run=LM", "num_samples=0"], "num_samples"),
        (["run=LM", "num_samples=many"], "num_samples must be at least 1"),
        (["run=LM", "temperature=hot"], "temperature must be a finite number"),
        (["run=LM", "temperature=nan"], "temperature must be a finite number"),
        (["run=LM", "temperature=null"], "temperature must be a finite number"),
        (["run=LM", "top_p=most"], "top_p must be a finite number"),
        (["run=LM", "top_k=1.5"], "top_k must be at least 1, and a whole number"),
        (["run=LM", "max_new_tokens=1.5"], "max_new_tokens must be at least 0, and a whole number"),
        (["run=LM", "seed=-1"], "seed must be at least 0"),
        (["run=LM", "seed=99999999999999999999"], "seed must be at least 0, and a whole number of 64 bits"),
        (["run=LM", "output=a.fa/b.fa"], "is a file"),
        (["run=LM", "output=folder.fa"], "there is a folder of that name"),
        (["run=LM", "output=out.wav"], ".fa"),
        (["run=CLASSES"], "task=classification"),
        (["run=MASKED"], "task=mlm"),
        (["run=LONG", "max_new_tokens=500"], "64 positions"),
        (["run=nowhere"], "not a run folder"),
        (["model=LM"], "not a model folder"),
        (["run=LM", "--device=cuda:99"], "device=cuda:99, but torch sees"),
        (["run=LM", "device=meta"], "found 'meta'"),
    ],
)
def test_bad_commands_are_answered(
    options: list[str], message: str, longseq: Command, trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {
        "LM": DNA,
        "CLASSES": ("backbone=cnn", "data.demo_rows=20"),
        "MASKED": ("backbone=mamba", "task=mlm", "data.window=64", "backbone.bidirectional=true"),
        "LONG": ("backbone=hyena", "task=lm", "data.window=64"),
    }
    for name, choice in runs.items():
        if any(option.endswith(f"={name}") for option in options):
            options = [option.replace(f"={name}", f"={trained(*choice)}") for option in options]
    Path("a.fa").touch()
    Path("folder.fa").mkdir()
    assert longseq("generate", *options) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
