"""Where checkpoints come from: folders, files, runs, the hub; and files that are broken or cannot be trusted."""

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from longseq.checkpoint import save_model
from longseq.errors import CheckpointError
from longseq.model import build_model
from longseq.pretrained import detect_format, list_formats, list_pretrained, load_pretrained

CONFIG = {"hidden_size": 8, "state_size": 4, "conv_kernel": 4, "num_hidden_layers": 1, "vocab_size": 8, "model_type": "mamba"}


def mamba_weights() -> dict[str, torch.Tensor]:
    model = build_model(
        {
            "embedding": {"name": "token", "vocab_size": 8},
            "backbone": {"name": "mamba", "d_model": 8, "n_layers": 1, "d_state": 4},
            "head": {"name": "token", "n_outputs": 8, "tie": True},
        }
    )
    names = {
        "embedding.embedding.weight": "backbone.embeddings.weight",
        "backbone.final_norm.weight": "backbone.norm_f.weight",
        "backbone.blocks.0.norm1.weight": "backbone.layers.0.norm.weight",
    }
    weights = {names.get(name, name.replace("blocks", "layers")): x for name, x in model.state_dict().items()}
    del weights["head.projection.weight"]
    return weights


class Evil:
    """Unpickled without care, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_every_known_checkpoint_has_a_format_and_an_id_of_its_own() -> None:
    known = list_pretrained()
    assert len({info.id for info in known}) == len(known) >= 30
    assert {info.format for info in known} <= set(list_formats())
    assert all(str(info) == info.id and info.id.count("/") == 1 for info in known)
    small = next(info for info in known if info.id == "LongSafari/hyenadna-small-32k-seqlen-hf")
    assert (small.format, small.domain, small.length) == ("hyenadna", "dna", 32770)


def test_a_folder_a_file_and_a_sharded_folder_are_the_same(write_checkpoint: Callable[..., Path]) -> None:
    weights, ids = mamba_weights(), torch.randint(8, (1, 9))
    whole = write_checkpoint(CONFIG, weights)
    expected = load_pretrained(whole)[0](ids)
    assert torch.equal(load_pretrained(whole / "model.safetensors")[0](ids), expected)
    sharded = write_checkpoint(CONFIG, {}, "unused.pt")
    (sharded / "unused.pt").unlink()
    half = len(weights) // 2
    parts = {"a.safetensors": dict(list(weights.items())[:half]), "b.safetensors": dict(list(weights.items())[half:])}
    for file, part in parts.items():
        save_file(part, sharded / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load_pretrained(sharded)[0](ids), expected)
    (sharded / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 2 shards"):
        load_pretrained(sharded)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_pretrained(sharded)


def test_a_run_folder_is_its_model(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "embedding": {"name": "token", "vocab_size": 8},
        "backbone": {"name": "gru", "d_model": 8, "n_layers": 1},
        "head": {"name": "pool", "n_outputs": 2},
        "labels": ["a", "b"],
    }
    saved = build_model(config).eval()
    save_model(saved, tmp_path / "run" / "model")
    model, report = load_pretrained(tmp_path / "run")
    ids = torch.randint(8, (2, 5))
    assert torch.equal(model(ids), saved(ids))
    assert report.format == "longseq" and model.config["labels"] == ["a", "b"]
    assert len(report.matched) == len(saved.state_dict())
    deeper = build_model({**config, "backbone": {**config["backbone"], "n_layers": 2}})
    save_model(deeper, tmp_path / "deeper")
    with pytest.raises(CheckpointError, match="without a place in the network"):
        load_pretrained(tmp_path / "deeper", n_layers=1)
    _, report = load_pretrained(tmp_path / "run", head={"name": "pool", "n_outputs": 4})
    assert set(report.reinitialized) == {"head.projection.weight", "head.projection.bias"}


def test_a_pickle_that_wants_to_run_something_is_refused(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_checkpoint(CONFIG, mamba_weights(), "pytorch_model.bin", hyper_parameters=Evil(tmp_path / "created"))
    with pytest.raises(CheckpointError, match=r"refused.*would run code"):
        load_pretrained(folder)
    assert not (tmp_path / "created").exists()


def test_hyperparameters_beside_the_weights_are_left_alone(write_checkpoint: Callable[..., Path]) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    hyper = omegaconf.OmegaConf.create({"model": {"d_model": 8}, "path": ["a", 1]})
    folder = write_checkpoint(CONFIG, mamba_weights(), "weights.ckpt", hyper_parameters=hyper)
    with pytest.raises(Exception, match="omegaconf"):
        torch.load(folder / "weights.ckpt", weights_only=True)
    model, report = load_pretrained(folder)
    assert report.format == "mamba" and model(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()


def damage_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2:40] = bytes(38)
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "damage", [damage_end, damage_header, lambda path: path.write_bytes(b""), lambda path: path.write_text("<html>")]
)
def test_damaged_files(write_checkpoint: Callable[..., Path], file: str, damage: Callable[[Path], Any]) -> None:
    folder = write_checkpoint(CONFIG, mamba_weights(), file)
    damage(folder / file)
    with pytest.raises(CheckpointError, match="truncated or corrupted"):
        load_pretrained(folder)


def test_weights_that_are_no_weights(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    weights = mamba_weights()
    weights["backbone.norm_f.weight"][3] = float("nan")
    with pytest.raises(CheckpointError, match=r"NaN or infinity, backbone\.norm_f\.weight first"):
        load_pretrained(write_checkpoint(CONFIG, weights))
    with pytest.raises(CheckpointError, match=r"no known checkpoint format.*model_type in its config: mamba.*known: caduceus"):
        load_pretrained(write_checkpoint(CONFIG, {"conv.weight": torch.zeros(2)}))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_pretrained(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no tensors; found epoch"):
        load_pretrained(tmp_path / "list.pt")
    (tmp_path / "weights.txt").write_text("x")
    with pytest.raises(CheckpointError, match="neither safetensors"):
        load_pretrained(tmp_path / "weights.txt")


def test_quantised_weights_are_refused(write_checkpoint: Callable[..., Path]) -> None:
    weights, name = mamba_weights(), "backbone.layers.0.mixer.in_proj.weight"
    with pytest.raises(CheckpointError, match=rf"1 tensors are quantised \({name} is in float8_e4m3fn\)"):
        load_pretrained(write_checkpoint(CONFIG, {**weights, name: weights[name].to(torch.float8_e4m3fn)}))
    with pytest.raises(CheckpointError, match=rf"1 of whole numbers, as quantised networks have: {name} \(int8\)"):
        load_pretrained(write_checkpoint(CONFIG, {**weights, name: (100 * weights[name]).to(torch.int8)}))


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_what_git_leaves_without_lfs(write_checkpoint: Callable[..., Path], file: str) -> None:
    folder = write_checkpoint(CONFIG, mamba_weights(), file)
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match=rf"{file} is a pointer of Git LFS.*git lfs pull"):
        load_pretrained(folder)


def test_a_pickle_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": Evil(tmp_path / "created")}))
    with pytest.raises(CheckpointError, match=r"a pickle that torch\.save did not write"):
        load_pretrained(tmp_path / "x.pt")
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_networks_saved_inside_a_wrapper(write_checkpoint: Callable[..., Path], wrapper: str) -> None:
    weights, ids = mamba_weights(), torch.randint(8, (1, 9))
    expected = load_pretrained(write_checkpoint(CONFIG, weights))[0](ids)
    wrapped = {wrapper + name: tensor for name, tensor in weights.items()}
    model, report = load_pretrained(write_checkpoint(CONFIG, wrapped, "weights.ckpt"))
    assert torch.equal(model(ids), expected) and not report.unexpected


@pytest.mark.parametrize(
    "place",
    [
        lambda weights: {"net": weights, "acc": 0.9},
        lambda weights: {"checkpoint": {"model": {"state_dict": weights}}},
        lambda weights: {"state_dict": {"n_averaged": torch.tensor(3), **{f"module.{k}": x for k, x in weights.items()}}},
        lambda weights: {"model": {name: x.to_sparse() for name, x in weights.items()}, "args": argparse.Namespace(lr=1e-3)},
    ],
)
def test_containers_of_training_scripts(write_checkpoint: Callable[..., Path], place: Callable[..., Any]) -> None:
    weights, ids = mamba_weights(), torch.randint(8, (1, 9))
    folder = write_checkpoint(CONFIG, weights, "pytorch_model.bin")
    expected = load_pretrained(folder)[0](ids)
    torch.save(place(weights), folder / "model_best.pth.tar")
    model, report = load_pretrained(folder / "model_best.pth.tar")
    assert torch.equal(model(ids), expected) and not report.unexpected and not report.notes


def test_a_moving_average_is_told_of(write_checkpoint: Callable[..., Path]) -> None:
    weights, ids = mamba_weights(), torch.randint(8, (1, 9))
    average = {name: x / 2 for name, x in weights.items()}
    folder = write_checkpoint(CONFIG, weights, "x.pth")
    expected, averaged = load_pretrained(folder)[0](ids), write_checkpoint(CONFIG, average)
    torch.save({"model": weights, "model_ema": average, "epoch": 2}, folder / "x.pth")
    model, report = load_pretrained(folder)
    assert torch.equal(model(ids), expected) and "(model_ema), which was not taken" in str(report)
    torch.save({"model_ema": average, "epoch": 2}, folder / "x.pth")
    model, report = load_pretrained(folder)
    assert torch.equal(model(ids), load_pretrained(averaged)[0](ids)) and "average of the weights alone" in str(report)
    # A container may hold itself.
    endless: dict[str, Any] = {}
    endless["model"] = endless
    torch.save(endless, folder / "x.pth")
    with pytest.raises(CheckpointError, match="no tensors; found model"):
        load_pretrained(folder)


def test_a_head_is_a_mapping(write_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(TypeError, match=r"head must be a mapping.*found 'pool'"):
        load_pretrained(write_checkpoint(CONFIG, mamba_weights()), head="pool")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"a": 3}}, {"weight_map": ["a"]}])
def test_an_index_that_names_no_files(write_checkpoint: Callable[..., Path], index: dict[str, Any]) -> None:
    folder = write_checkpoint(CONFIG, mamba_weights(), "weights.pt")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json is not an index of shards"):
        load_pretrained(folder)


def test_small_files_as_other_programs_write_them(write_checkpoint: Callable[..., Path]) -> None:
    folder = write_checkpoint(CONFIG, mamba_weights())
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8-sig")
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"content": "x", "id": None}], "model": {"vocab": []}}))
    assert load_pretrained(folder)[1].format == "mamba"


def test_one_pattern_of_what_may_be_missing_is_no_list_of_letters(write_checkpoint: Callable[..., Path]) -> None:
    weights = mamba_weights()
    del weights["backbone.layers.0.mixer.D"]
    # As letters, the * in it would allow everything.
    with pytest.raises(CheckpointError, match="1 missing"):
        load_pretrained(write_checkpoint(CONFIG, weights), allow_missing="*.A_log")
    assert set(load_pretrained(write_checkpoint(CONFIG, weights), allow_missing="*.D")[1].missing) == {
        "backbone.blocks.0.mixer.D"
    }


def test_folders_that_are_no_checkpoints(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_checkpoint(CONFIG, mamba_weights())
    with pytest.raises(CheckpointError, match="unknown checkpoint format 'mambo'; known: caduceus"):
        load_pretrained(folder, format="mambo")
    for content, problem in (("{", "not valid JSON"), ("[1]", "holds a list"), ("{}", "lacks 'vocab_size'.*no keys at all")):
        (folder / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=problem):
            load_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    save_file({"x": torch.zeros(1)}, folder / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"several checkpoints \(one.safetensors, two.safetensors\)"):
        load_pretrained(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no weights.*\.pth$"):
        load_pretrained(tmp_path / "empty")
    for fold in ("fold_1", "fold_2"):
        (tmp_path / "empty" / fold / "model").mkdir(parents=True)
        (tmp_path / "empty" / fold / "model" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds 2 runs: take one of them, such as .*fold_1"):
        load_pretrained(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="does not exist here"):
        load_pretrained(tmp_path / "nowhere")


def test_a_checkpoint_of_another_architecture_is_refused(write_checkpoint: Callable[..., Path]) -> None:
    folder = write_checkpoint(CONFIG, mamba_weights())
    for name in list_formats():
        if name != "mamba":
            with pytest.raises(CheckpointError):
                load_pretrained(folder, format=name)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "eight"},
        {"hidden_size": 0},
        {"hidden_size": [8]},
        {"state_size": -4},
        {"vocab_size": "8"},
        {"num_hidden_layers": 0},
        {"conv_kernel": "four"},
        {"time_step_rank": "half"},
    ],
)
def test_configs_of_the_wrong_kind(write_checkpoint: Callable[..., Path], change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint-0"):
        load_pretrained(write_checkpoint({**CONFIG, **change}, mamba_weights()))


def test_a_width_that_is_not_the_files_is_found_before_anything_is_built(write_checkpoint: Callable[..., Path]) -> None:
    # A network of this width would not fit into memory.
    with pytest.raises(CheckpointError, match=r"embedding is 8 wide, config\.json says 100000000"):
        load_pretrained(write_checkpoint({**CONFIG, "hidden_size": 10**8}, mamba_weights()))


def test_a_failed_load_says_so_before_a_weight_is_copied(
    write_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = mamba_weights()
    del weights["backbone.layers.0.mixer.D"]
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *args, **kwargs: pytest.fail("copied"))
    with pytest.raises(CheckpointError, match=r"1 missing: backbone\.blocks\.0\.mixer\.D"):
        load_pretrained(write_checkpoint(CONFIG, weights))


# -- the hub, without a network


def fake_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[dict[str, Any]]:
    """Answers downloads with the files of a folder that the patterns select."""
    calls: list[dict[str, Any]] = []
    copy = folder.parent / f"cache-{len(list(folder.parent.iterdir()))}"

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append({"repository": repository, "revision": revision, "patterns": allow_patterns})
        for path in folder.rglob("*"):
            relative = path.relative_to(folder)
            if path.is_file() and any(relative.match(pattern) for pattern in allow_patterns):
                (copy / relative).parent.mkdir(parents=True, exist_ok=True)
                (copy / relative).write_bytes(path.read_bytes())
        copy.mkdir(exist_ok=True)
        return str(copy)

    def listed(self: Any, repository: str, *, revision: str | None) -> list[str]:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listed)
    return calls


def test_safetensors_are_fetched_and_pickles_only_where_there_are_none(
    write_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(CONFIG, mamba_weights())
    (folder / "modeling_mamba.py").write_text("raise SystemExit")
    (folder / "consolidated.safetensors").write_text("the same again, large")
    (folder / "pytorch_model.bin").write_text("the same again, large")
    calls = fake_hub(monkeypatch, folder)
    _, report = load_pretrained("someone/mamba", revision="v1")
    assert report.source == "someone/mamba" and len(calls) == 1 and calls[0]["revision"] == "v1"
    fetched = next(folder.parent.glob("cache-*"))
    assert sorted(path.name for path in fetched.iterdir()) == ["config.json", "model.safetensors"]


def test_pickles_and_named_files_of_a_repository(
    write_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(CONFIG, mamba_weights(), "pytorch_model.bin")
    calls = fake_hub(monkeypatch, folder)
    model, _ = load_pretrained("someone/mamba")
    assert len(calls) == 2 and "pytorch_model.bin" in calls[1]["patterns"]
    assert model.config["pretrained"] == {"source": "someone/mamba", "format": "mamba"}
    load_pretrained("someone/mamba/pytorch_model.bin")
    assert calls[-1]["patterns"][-1] == "pytorch_model.bin"
    with pytest.raises(CheckpointError, match=r"has no file checkpoints/x\.pt"):
        load_pretrained("someone/mamba/checkpoints/x.pt")


def test_a_repository_of_several_checkpoints_is_not_fetched_whole(
    write_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(CONFIG, mamba_weights(), "one_in1k.pth")
    fake_hub(monkeypatch, folder)
    assert load_pretrained("someone/vision")[1].format == "mamba"
    (folder / "two_in1k.pth").write_text("large")
    calls = fake_hub(monkeypatch, folder)
    with pytest.raises(CheckpointError, match=r"several checkpoints: one_in1k\.pth, two.*as in someone/other/one_in1k\.pth"):
        load_pretrained("someone/other")
    assert all("two_in1k.pth" not in call["patterns"] for call in calls)


def made(kind: type[Exception], text: str) -> Exception:
    # Without a response, whose type depends on the client's version.
    return kind.__new__(kind, text)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (made(errors.GatedRepoError, "gated"), "is gated: accept its terms"),
        (made(errors.RepositoryNotFoundError, "none"), "neither a folder here nor a repository"),
        (made(errors.RevisionNotFoundError, "none"), "no revision 'v9'"),
        (made(errors.LocalEntryNotFoundError, "offline"), "hf download owner/name --revision v9 --local-dir name"),
        (ConnectionError("no route"), r"ConnectionError: no route.*copy the folder here"),
    ],
)
def test_what_the_hub_answers_is_passed_on(error: Exception, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=problem):
        load_pretrained("owner/name", revision="v9")


def test_detection_by_names_and_config(write_checkpoint: Callable[..., Path]) -> None:
    assert detect_format(write_checkpoint(CONFIG, mamba_weights())) == "mamba"
    assert detect_format(write_checkpoint(None, mamba_weights())) == "mamba"
