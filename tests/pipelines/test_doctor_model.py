"""doctor model=…: what quietly costs accuracy in a model folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from longseq.checkpoint import load_model, save_model
from longseq.heads import create_head
from longseq.model import build_model
from longseq.pipelines import doctor, doctor_model
from longseq.pipelines.doctor_model import check_batch_norm, check_model, check_padding
from longseq.pipelines.machine import FAIL, OK, WARN
from tests.pipelines.published import publish

VOCABULARY = {"[PAD]": 4, "A": 7, "C": 8, "G": 9, "T": 10}


def folder(path: Path, **backbone: Any) -> Path:
    torch.manual_seed(0)
    config = {
        "domain": "dna",
        "embedding": {"name": "token", "vocab_size": 16},
        "tokenizer": {"type": "nucleotide", "vocab": VOCABULARY},
        "backbone": {"name": "mamba", "d_model": 16, "n_layers": 1, **backbone},
        "head": {"name": "pool", "n_outputs": 2},
    }
    return save_model(build_model(config), path)


def published_hyena(place: Path, name: str) -> Path:
    """The folder of a causal language model as its authors publish it."""
    made = folder(place / "run" / "model", name="hyena", max_length=96).parent
    model = load_model(made / "model")
    model.config["head"] = {"name": "token", "n_outputs": 16}
    model.head = create_head("token", 16, n_outputs=16)
    save_model(model, made / "model")
    return publish(made, place / name)


def marks(path: Path) -> dict[str, list[str]]:
    found = check_model(str(path))
    return {mark: [finding.text for finding in found if finding.mark == mark] for mark in (OK, WARN, FAIL)}


def test_a_sound_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = marks(folder(tmp_path / "m"))
    assert not found[WARN] and not found[FAIL]
    assert any("padding changes no output" in text for text in found[OK])
    assert doctor.run([f"model={tmp_path / 'm'}"]) == 0
    assert "0 broken, 0 to look at" in capsys.readouterr().out


def test_weights_in_16_bits(tmp_path: Path) -> None:
    path = folder(tmp_path / "m") / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    (text,) = marks(tmp_path / "m")[WARN]
    assert "stored in bfloat16" in text and "A_log" in text


def test_a_tokenizer_with_other_ids(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    (path / "tokenizer.json").write_text(json.dumps({"vocab": {**VOCABULARY, "A": 8, "C": 7}}))
    assert "A=8" in marks(path)[FAIL][0]
    (path / "tokenizer.json").write_text(json.dumps({"vocab": {**VOCABULARY, "Z": 16}}))
    assert "16 rows" in marks(path)[FAIL][0]


def test_a_length_that_is_not_the_runs(tmp_path: Path) -> None:
    folder(tmp_path / "run" / "model", name="hyena", max_length=64)
    (tmp_path / "run" / "config.yaml").write_text("backbone: {name: hyena, max_length: 128}\n")
    (text,) = marks(tmp_path / "run")[WARN]
    assert "64" in text and "128" in text


def test_a_length_that_is_not_the_published_one(tmp_path: Path) -> None:
    # The weights fit any length, so only the name tells that the config was changed.
    path = published_hyena(tmp_path, "hyenadna-tiny-1k-seqlen-hf")
    (text,) = marks(path)[WARN]
    assert "max_length is 96" in text and "1,026" in text


def test_what_the_importer_noted(tmp_path: Path) -> None:
    path = published_hyena(tmp_path, "mine")
    weights = load_file(path / "model.safetensors")
    torch.save({"state_dict": weights, "ema": weights}, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    assert any("also holds a moving average of the weights (ema), which was not taken" in text for text in marks(path)[OK])


def test_a_published_folder_with_another_tokenizer(tmp_path: Path) -> None:
    path = published_hyena(tmp_path, "mine")
    names = ["[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "G", "C", "T", "N"]
    (path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (text,) = marks(path)[FAIL]
    assert "C is 9 instead of 8" in text


def test_pads_that_are_pooled_and_batch_norms(tmp_path: Path) -> None:
    class Careless(nn.Module):
        def forward(self, x_BLD: torch.Tensor, mask_BL: torch.Tensor | None = None) -> torch.Tensor:
            return x_BLD.mean(1) + x_BLD.shape[1]

    model = doctor_model.load_pretrained(folder(tmp_path / "m"))[0]
    model.head = Careless()
    (finding,) = check_padding(model)
    assert finding.mark == WARN and "even with its mask" in finding.text
    assert not check_batch_norm(model)
    model.backbone.extra = nn.BatchNorm1d(4)
    assert "never seen a batch" in check_batch_norm(model)[0].text
    model.backbone.extra.num_batches_tracked += 3  # type: ignore[operator, union-attr]
    assert "statistics of their training data" in check_batch_norm(model)[0].text


def test_what_cannot_be_loaded_is_broken(tmp_path: Path) -> None:
    path = folder(tmp_path / "m") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    assert "truncated" in marks(tmp_path / "m")[FAIL][0]
    assert doctor.run([f"model={tmp_path / 'm'}"]) == 1


def test_a_length_that_the_embedding_sets(tmp_path: Path) -> None:
    from longseq.pretrained._modules import register_modules

    register_modules()
    config = {
        "embedding": {"name": "roberta", "vocab_size": 16, "n_positions": 42, "pad_id": 1},
        "backbone": {"name": "longformer", "d_model": 16, "n_layers": 1, "n_heads": 2, "window": 4, "rotary": False},
        "head": {"name": "token", "n_outputs": 16},
    }
    found = marks(save_model(build_model(config), tmp_path / "m"))
    assert "sequences of up to 40 positions" in found[OK]
    # Nothing is pooled by a head of every position.
    assert any("pads are read like tokens" in text for text in found[OK])
