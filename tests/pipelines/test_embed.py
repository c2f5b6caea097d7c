"""The verb embed: features with their rows' ids, in parts, and equal to the model's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from longseq.checkpoint import save_model
from longseq.model import SequenceModel, build_model
from longseq.pipelines.cli import CONFIGS
from longseq.pipelines.embed import parts

Command = Callable[..., int]


def model_folder(folder: Path, backbone: dict[str, Any], strands: bool = False) -> SequenceModel:
    complement = [0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, 11, 12, 13, 14, 15]
    embedding: dict[str, Any] = {"name": "token", "vocab_size": 16}
    torch.manual_seed(0)
    model = build_model(
        {
            "domain": "dna",
            "task": "classification",
            "labels": ["a", "b"],
            "embedding": {**embedding, "name": "strand", "complement": complement} if strands else embedding,
            "backbone": {"d_model": 16, "n_layers": 1, **backbone},
            "head": {"name": "strand_pool" if strands else "pool", "n_outputs": 2},
        }
    )
    save_model(model, folder)
    return model.eval()


@pytest.fixture
def sequences(tmp_path: Path) -> list[str]:
    """25 sequences of different lengths in new.csv, with names."""
    rng = np.random.default_rng(0)
    found = ["".join(rng.choice(list("ACGT"), rng.integers(5, 60))) for _ in range(25)]
    pd.DataFrame({"name": [f"row{i}" for i in range(25)], "sequence": found}).to_csv(tmp_path / "new.csv", index=False)
    return found


def features(model: SequenceModel, sequence: str) -> Tensor:
    ids = torch.tensor([["ACGT".index(letter) + 7 for letter in sequence]])
    with torch.no_grad():
        return model.features(ids)[0]


def reverse_complement(sequence: str) -> str:
    return sequence[::-1].translate(str.maketrans("ACGT", "TGCA"))


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pooled_features_as_npy(longseq: Command, tmp_path: Path, sequences: list[str], pool: str) -> None:
    model = model_folder(tmp_path / "m", {"name": "mamba"})
    options = ["data.predict=new.csv", "data.id_column=name", "part_rows=7", f"pool={pool}", "device=cpu"]
    assert longseq("embed", "pretrained=m", *options, "output=out/e.npy") == 0
    found = np.load(tmp_path / "out" / "e.npy", mmap_mode="r")
    names = pd.read_csv(tmp_path / "out" / "e.csv")
    assert found.shape == (25, 16) and found.dtype == np.float32
    assert names["id"].tolist() == [f"row{i}" for i in range(25)]
    for i, sequence in enumerate(sequences):
        x_LD = features(model, sequence)
        expected = x_LD.mean(0) if pool == "mean" else x_LD.amax(0)
        np.testing.assert_allclose(found[i], expected, atol=1e-5)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"e.npy", "e.csv"}


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_every_position(longseq: Command, tmp_path: Path, sequences: list[str], ending: str) -> None:
    model = model_folder(tmp_path / "m", {"name": "gru"})
    options = ["data.predict=new.csv", "data.id_column=name", "part_rows=10", "pool=none", "device=cpu"]
    assert longseq("embed", "pretrained=m", *options, f"output=e.{ending}") == 0
    if ending == "npy":
        table, vectors = pd.read_csv("e.csv"), np.load("e.npy")
        assert len(vectors) == sum(map(len, sequences)) == table["vector_end"].iloc[-1]
        rows = [vectors[start:end] for start, end in zip(table["vector_start"], table["vector_end"], strict=True)]
    else:
        table = pd.read_parquet("e.parquet")
        rows = [np.stack(row) for row in table["embedding"]]
    assert table["id"].tolist() == [f"row{i}" for i in range(25)]
    for row, sequence in zip(rows, sequences, strict=True):
        np.testing.assert_allclose(row, features(model, sequence), atol=1e-5)


def test_models_of_both_strands_do_not_care_which_is_read(longseq: Command, tmp_path: Path, sequences: list[str]) -> None:
    model_folder(tmp_path / "m", {"name": "caduceus"}, strands=True)
    turned = pd.DataFrame({"sequence": [reverse_complement(sequence) for sequence in sequences]})
    turned.to_csv(tmp_path / "turned.csv", index=False)
    for name in ("new", "turned"):
        assert longseq("embed", "pretrained=m", f"data.predict={name}.csv", f"output={name}.parquet", "device=cpu") == 0
    first, second = (np.stack(pd.read_parquet(f"{name}.parquet")["embedding"].tolist()) for name in ("new", "turned"))
    assert first.shape == (25, 8)
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["output=e.txt"], "must end with .npy or .parquet"),
        (["pool=sum"], "mean, max, first, last or none"),
        (["data.predcit=new.csv"], "predcit"),
        (["pretrained=nowhere"], "does not exist here"),
        (["domain=dnaa"], "dnaa"),
        (["data.predict=absent.csv"], "absent.csv"),
        (["part_rows=many"], "part_rows must be at least 1, and a whole number"),
        (["part_rows=0"], "part_rows must be at least 1"),
        (["precision=fp4"], "precision must be one of 32-true, bf16-mixed or 16-mixed"),
        (["data.batch_size=many"], "data.batch_size must be a whole number"),
        (["output=new.csv/e.npy"], "nothing can be written into it"),
    ],
)
def test_mistakes_are_answered_and_leave_nothing(
    longseq: Command,
    tmp_path: Path,
    sequences: list[str],
    options: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model_folder(tmp_path / "m", {"name": "gru"})
    base = {"pretrained": "m", "data.predict": "new.csv", "output": "out/e.npy", "device": "cpu"}
    given = base | dict(option.split("=", 1) for option in options)
    assert longseq("embed", *(f"{key}={value}" for key, value in given.items())) == 2
    message = capsys.readouterr().err
    assert expected in message and "Traceback" not in message
    assert not list(tmp_path.glob("out/*")) and not list(tmp_path.glob("out/.*"))


def language_model_run(folder: Path) -> SequenceModel:
    """As the folder of a run on windows of 16 bases."""
    torch.manual_seed(0)
    parts = {"embedding": {"name": "token", "vocab_size": 16}, "head": {"name": "token", "n_outputs": 16}}
    model = build_model({"domain": "dna", "task": "lm", "backbone": {"name": "gru", "d_model": 16, "n_layers": 1}, **parts})
    save_model(model, folder / "model")
    data: Any = OmegaConf.load(CONFIGS / "domain" / "dna.yaml")
    data.data.window = 16
    OmegaConf.save(data, folder / "config.yaml")
    return model.eval()


def test_a_language_model_s_windows_are_not_those_of_the_rows(longseq: Command, tmp_path: Path, sequences: list[str]) -> None:
    model = language_model_run(tmp_path / "run")
    options = ["pretrained=run", "data.predict=new.csv", "data.id_column=name", "device=cpu"]
    assert longseq("embed", *options, "output=e.npy") == 0
    found = np.load("e.npy")
    assert found.shape == (25, 16) and pd.read_csv("e.csv")["id"].tolist() == [f"row{i}" for i in range(25)]
    for row, sequence in zip(found, sequences, strict=True):
        np.testing.assert_allclose(row, features(model, sequence).mean(0), atol=1e-5)
    # Whoever asks for windows gets them, with the places of both the window and its vectors.
    assert longseq("embed", *options, "data.window=16", "pool=none", "output=w.npy") == 0
    table, vectors = pd.read_csv("w.csv"), np.load("w.npy")
    ids, rows = {f"row{i}": sequence for i, sequence in enumerate(sequences)}, table.to_dict("records")
    assert len(rows) > 25
    for row in rows:
        expected = features(model, ids[row["id"]][row["start"] : row["end"]])
        np.testing.assert_allclose(vectors[row["vector_start"] : row["vector_end"]], expected, atol=1e-5)


def test_no_file_of_the_user_s_is_written_over(
    longseq: Command, tmp_path: Path, sequences: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model_folder(tmp_path / "m", {"name": "gru"})
    before = (tmp_path / "new.csv").read_bytes()
    # The table of ids would be called new.csv.
    assert longseq("embed", "pretrained=m", "data.predict=new.csv", "output=new.npy", "device=cpu") == 2
    assert "new.csv, which is there already" in capsys.readouterr().err
    assert (tmp_path / "new.csv").read_bytes() == before and not list(tmp_path.glob("*.npy")) + list(tmp_path.glob(".*"))
    pd.DataFrame({"sequence": sequences}).to_parquet("new.parquet")
    assert longseq("embed", "pretrained=m", "data.predict=new.parquet", "output=new.parquet", "device=cpu") == 2
    assert "is the file that data.predict reads" in capsys.readouterr().err
    for _ in range(2):
        assert longseq("embed", "pretrained=m", "data.predict=new.csv", "output=e.npy", "device=cpu") == 0


def test_parts_hold_what_memory_should() -> None:
    lengths = np.array([3, 3, 3, 9, 1, 1])
    assert [part.tolist() for part in parts(lengths, 4, 6)] == [[0, 1], [2], [3], [4, 5]]
    assert [part.tolist() for part in parts(lengths, 4, None)] == [[0, 1, 2, 3], [4, 5]]


def test_tokens_of_another_vocabulary_are_refused(
    longseq: Command, tmp_path: Path, sequences: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_folder(tmp_path / "m", {"name": "gru"})
    options = ["data.predict=new.csv", "output=out/e.npy", "device=cpu"]
    assert longseq("embed", "pretrained=m", "domain=vision", *options) == 2
    assert "there is no column 'path'" in capsys.readouterr().err
    for rows in (16, 300):
        # As a checkpoint from elsewhere, which names no domain.
        parts = {"backbone": model.config["backbone"], "head": model.config["head"]}
        save_model(build_model({**parts, "embedding": {"name": "token", "vocab_size": rows}}), tmp_path / "text")
        assert longseq("embed", "pretrained=text", "domain=dna", *options) == (0 if rows == 16 else 2)
    message = capsys.readouterr().err
    assert "its embedding is of 300 tokens, these data have 12" in message and "Traceback" not in message
    np.savez("images.npz", images=np.zeros((2, 8, 8, 1), dtype=np.uint8))
    options[0] = "data.predict=images.npz"
    assert longseq("embed", "pretrained=m", "domain=vision", *options) == 2
    assert "a model of the domain dna" in capsys.readouterr().err
