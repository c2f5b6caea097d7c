"""Model folders: whole or not at all, and clear answers for what is broken."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from longseq import checkpoint
from longseq.checkpoint import load_model, save_model, write_atomically
from longseq.errors import CheckpointError
from longseq.model import SequenceModel, build_model


def config(**head: Any) -> dict[str, Any]:
    return {
        "embedding": {"name": "token", "vocab_size": 16},
        "backbone": {"name": "gru", "d_model": 8, "n_layers": 1},
        "head": {"name": "pool", "n_outputs": 2, **head},
        "labels": ["a", "b"],
    }


def model(**head: Any) -> SequenceModel:
    return build_model(config(**head)).eval()


def test_round_trip_keeps_outputs_and_config(tmp_path: Path) -> None:
    saved = model()
    save_model(saved, tmp_path / "m", extra={"tokenizer.json": "{}"})
    loaded = load_model(tmp_path / "m")
    ids = torch.randint(16, (2, 9))
    assert torch.equal(loaded(ids), saved(ids))
    assert loaded.config["labels"] == ["a", "b"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_tied_weights_are_saved_once_and_tied_again(tmp_path: Path) -> None:
    saved = build_model({**config(), "head": {"name": "token", "n_outputs": 16, "tie": True}}).eval()
    save_model(saved, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    parameters = dict(loaded.named_parameters(remove_duplicate=False))
    assert parameters["head.projection.weight"] is parameters["embedding.embedding.weight"]
    ids = torch.randint(16, (1, 5))
    assert torch.equal(loaded(ids), saved(ids))


def test_a_full_disk_leaves_the_old_folder_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model()
    save_model(first, tmp_path / "m")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_model(model(), tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    ids = torch.randint(16, (1, 5))
    assert torch.equal(load_model(tmp_path / "m")(ids), first(ids))


def test_a_text_file_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "a.json", "old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError):
        write_atomically(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a model folder"):
        load_model(tmp_path)
    folder = save_model(model(), tmp_path / "m")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="truncated or corrupted"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps({"backbone": {}}))
    with pytest.raises(CheckpointError, match="embedding, head"):
        load_model(folder)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = save_model(model(), tmp_path / "m")
    found = json.loads((folder / "config.json").read_text())
    found["backbone"]["d_model"] = 12
    (folder / "config.json").write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match="another shape"):
        load_model(folder)
    found["backbone"]["n_layers"], found["backbone"]["d_model"] = 2, 8
    (folder / "config.json").write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match="missing"):
        load_model(folder)
    found["format"] = 99
    (folder / "config.json").write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match="upgrade"):
        load_model(folder)
