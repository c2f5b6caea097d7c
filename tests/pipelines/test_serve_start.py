"""What is wrong before a server starts: one line that says it, no traceback, no process left behind."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longseq.checkpoint import save_model
from longseq.model import build_model

pytest.importorskip("litserve")


@pytest.fixture(autouse=True)
def _no_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from longseq.pipelines.serving.server import ModelServer

    monkeypatch.setattr(ModelServer, "_start_worker", lambda self: pytest.fail("the server started"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = {
        "domain": "dna",
        "task": "classification",
        "labels": ["no", "yes"],
        "embedding": {"name": "token", "vocab_size": 16},
        "backbone": {"name": "gru", "d_model": 8, "n_layers": 1},
        "head": {"name": "pool", "n_outputs": 2},
        "tokenizer": {"type": "nucleotide"},
    }
    torch.manual_seed(0)
    return save_model(build_model(config), tmp_path / "model")


def edited(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(model: Path) -> None:
    torch.save({"a": torch.zeros(1)}, model / "model.safetensors")


def graph_alone(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model.onnx")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "model.safetensors"),
        (pickled, "model.safetensors"),
        (graph_alone, "format=safetensors"),
        (shutil.rmtree, "not a model folder"),
        (lambda model: (model / "config.json").write_text('{"backbone": '), "not valid JSON"),
        (lambda model: (model / "config.json").write_text("{}"), "not written by longseq"),
        (lambda model: edited(model, format=99), "upgrade longseq"),
        (lambda model: edited(model, task="astrology"), "astrology"),
        (lambda model: edited(model, domain="../../etc"), "no domain's name"),
        (lambda model: edited(model, domain="astrology"), "astrology"),
        (lambda model: edited(model, backbone={"name": "gru", "d_model": 8, "n_layers": 2}), "do not fit"),
        (lambda model: edited(model, backbone={"name": "os.system"}), "os.system"),
        (lambda model: edited(model, labels=["only one"]), "1 labels"),
        (lambda model: edited(model, tokenizer={"type": "nucleotide", "vocab": {"A": 1}}), "vocabulary"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_model_folder(
    model: Path, longseq: Callable[..., int], capfd: pytest.CaptureFixture[str], damage: Callable[[Path], Any], reason: str
) -> None:
    damage(model)
    assert longseq("serve", f"model={model}", "device=cpu", "port=0") == 2
    printed = capfd.readouterr().err
    assert reason in printed and "Traceback" not in printed, printed


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("port=99999", "port"),
        ("port=abc", "port"),
        ("max_rows=0", "max_rows must be a number above 0"),
        ("max_body_mb=lots", "max_body_mb"),
        ("device=abacus", "device must be auto, cpu, cuda, cuda:1 or mps, found 'abacus'"),
        ("--device=cuda:99", "device=cuda:99, but torch sees"),
        ("max_connections=0", "max_connections must be a number above 0"),
        ("host=no.such.host.invalid", "host=no.such.host.invalid"),
        ("hots=0.0.0.0", "did you mean host"),
        ("threads=0", "threads"),
    ],
)
def test_options_that_make_no_sense(
    model: Path, longseq: Callable[..., int], capfd: pytest.CaptureFixture[str], option: str, reason: str
) -> None:
    others = [value for value in ("device=cpu", "port=0") if value.split("=")[0] not in option]
    assert longseq("serve", f"model={model}", *others, option) == 2
    assert reason in capfd.readouterr().err


def test_neither_and_both_folders(longseq: Callable[..., int], capfd: pytest.CaptureFixture[str], model: Path) -> None:
    assert longseq("serve") == 2
    assert "longseq serve model=" in capfd.readouterr().err
    assert longseq("serve", f"model={model}", f"run={model}") == 2
    assert "not both" in capfd.readouterr().err


def test_a_port_that_is_taken(longseq: Callable[..., int], capfd: pytest.CaptureFixture[str], model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert longseq("serve", f"model={model}", "device=cpu", f"port={port}") == 2
    assert f"port={port}" in capfd.readouterr().err
