"""Fine-tuning outside DNA: every mode on sound, series and images, from our own pretraining and from published weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from longseq.checkpoint import load_model

Command = Callable[..., int]
Trained = Callable[..., Path]
QUICK = [
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "baselines=false",
    "report=false",
]
SOUNDS = ["domain=audio", "data.demo_rows=24", "data.batch_size=8"]
SERIES = ["domain=timeseries", "data.demo_days=120", "data.batch_size=16"]
IMAGES = ["domain=vision", "data.batch_size=128"]
BOTH_SIDES = ["backbone=mamba", "backbone.bidirectional=true"]
TWO_LAYERS = "backbone.n_layers=2"


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())["finetune"]


def keys(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "key_report.json").read_text())


def unchanged(before: Path, after: Path, part: str = "backbone") -> bool:
    old, new = (load_model(folder / "model").state_dict() for folder in (before, after))
    return all(torch.equal(tensor, new[name]) for name, tensor in old.items() if name.startswith(f"{part}."))


# -- series


@pytest.fixture
def series(trained: Trained) -> Path:
    return trained("task=masked_series", *SERIES, TWO_LAYERS)


def test_series_from_hidden_spans_to_forecasts(longseq: Command, series: Path, tmp_path: Path) -> None:
    options = [f"pretrained={series}", *SERIES, *QUICK, "task=forecasting", "finetune.layer_decay=0.5"]
    # Other series, and more of them: each goes through the network by itself, with its own statistics.
    assert longseq("finetune", *options, "data.demo_series=6", "finetune.head_lr_multiplier=4", "run_dir=run") == 0
    model, before = load_model(tmp_path / "run" / "model"), load_model(series / "model")
    assert model.config["embedding"]["n_channels"] == 6 and before.config["embedding"]["n_channels"] == 4
    statistics = model.state_dict()["embedding.normalizer.mean_C"].tolist()
    assert statistics == pytest.approx(model.config["embedding"]["mean"], rel=1e-5) and len(statistics) == 6
    found = keys(tmp_path / "run")
    assert "embedding.normalizer.mean_C" in found["computed"] and "embedding.projection.weight" in found["matched"]
    assert all(name.startswith("head.") for name in found["reinitialized"])
    assert len({group["lr"] for group in facts(tmp_path / "run")["groups"]}) == 5


def test_series_to_classes_unfreezing_layer_by_layer(longseq: Command, series: Path, tmp_path: Path) -> None:
    options = [f"pretrained={series}", *SERIES, *QUICK, "task=classification", "trainer.max_epochs=2"]
    assert longseq("finetune", *options, "finetune.unfreeze_every=1", "optimizer.lr=1e-2", "run_dir=run") == 0
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    before = load_model(series / "model").state_dict()
    moved = {
        i: any(not torch.equal(t, state[f"model.{n}"]) for n, t in before.items() if f"blocks.{i}." in n) for i in range(2)
    }
    assert moved == {0: False, 1: True}


def test_a_forecasting_head_goes_on_where_the_question_is_the_same(longseq: Command, trained: Trained, tmp_path: Path) -> None:
    first = trained("task=forecasting", *SERIES)
    options = [f"pretrained={first}", *SERIES, *QUICK, "task=forecasting", "optimizer.lr=1e-12"]
    assert longseq("finetune", *options, "data.demo_series=6", "run_dir=same") == 0
    assert not keys(tmp_path / "same")["reinitialized"]
    assert load_model(tmp_path / "same" / "model").config["head"]["n_channels"] == 6
    assert longseq("finetune", *options, "data.horizon=12", "run_dir=other") == 0
    assert load_model(tmp_path / "other" / "model").config["head"]["horizon"] == 12
    assert keys(tmp_path / "other")["reinitialized"]


# -- images


@pytest.fixture
def images(trained: Trained) -> Path:
    return trained("task=masked_patch", *IMAGES, *BOTH_SIDES, TWO_LAYERS)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("linear probe", ["finetune.freeze=backbone"]),
        ("LoRA", ["finetune.lora.r=2", "finetune.lora.targets=[in_proj,out_proj]"]),
        ("full fine-tuning", ["finetune.reinit_layers=1"]),
        ("from scratch", ["finetune.reinit_layers=all"]),
    ],
)
def test_images_from_hidden_patches_to_classes(
    longseq: Command, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, options: list[str]
) -> None:
    assert longseq("finetune", f"pretrained={images}", *IMAGES, *QUICK, *options, "run_dir=run") == 0
    assert facts(tmp_path / "run")["mode"] == mode
    assert unchanged(images, tmp_path / "run") == (mode == "linear probe")
    assert ("rows are kept" in capsys.readouterr().out) == (mode == "linear probe")
    assert keys(tmp_path / "run")["dropped"]["embedding.mask_vector"] == "not of this task"


def test_a_class_token_that_pretraining_had_not_is_new(longseq: Command, images: Path, tmp_path: Path) -> None:
    options = [f"pretrained={images}", *IMAGES, *QUICK, "data.class_token=middle"]
    assert longseq("finetune", *options, "run_dir=run") == 0
    model = load_model(tmp_path / "run" / "model")
    assert model.config["embedding"]["class_token"] == model.config["head"]["place"] == "middle"
    assert "embedding.class_vector" in keys(tmp_path / "run")["reinitialized"]


def vit(folder: Path) -> Path:
    """A small vision transformer as timm's hub repositories hold it."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5, "patch_size": 4}
    network = timm.create_model("vit_tiny_patch16_224", **sizes)
    folder.mkdir()
    config = {"architecture": "vit_tiny_patch16_224", "num_heads": 3, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


def test_a_published_vision_transformer(longseq: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = vit(tmp_path / "vit")
    options = [f"pretrained={source}", *IMAGES, *QUICK]
    # Grey images of 8 x 8 pixels come to the size, the channels and the patches of the weights.
    assert longseq("finetune", *options, "finetune.layer_decay=0.75", "run_dir=run") == 0
    assert "data.size=[16, 16], data.channels=3" in capsys.readouterr().out
    model = load_model(tmp_path / "run" / "model")
    assert model.config["head"]["name"] == "class_token" and model.config["head"]["n_outputs"] == 10
    assert set(keys(tmp_path / "run")["reinitialized"]) == {"head.projection.weight", "head.projection.bias"}
    # Larger images: positions are spread over the larger grid.
    assert longseq("finetune", *options, "data.size=24", "run_dir=large") == 0
    large = load_model(tmp_path / "large" / "model")
    assert large.get_parameter("embedding.space_positions").shape[:2] == (4, 4)
    assert longseq("finetune", *options, "data.class_token=end", "run_dir=no") == 2
    assert "stands at front" in capsys.readouterr().err
    # A token for classes has no place where every patch is answered.
    assert longseq("finetune", *options, "task=masked_patch", "run_dir=masked") == 0
    found = keys(tmp_path / "masked")
    assert found["dropped"]["cls_token"] == "not of this task" and "embedding.mask_vector" in found["reinitialized"]


def vim(folder: Path) -> Path:
    """Vision Mamba weights under their published names."""
    torch.manual_seed(0)
    D, E, N, K, R, side, patch = 16, 32, 4, 4, 1, 4, 4
    weights = {
        "patch_embed.proj.weight": torch.randn(D, 3, patch, patch) * 0.2,
        "patch_embed.proj.bias": torch.zeros(D),
        "cls_token": torch.randn(1, 1, D),
        "pos_embed": torch.randn(1, side * side + 1, D),
        "norm_f.weight": torch.ones(D),
        "head.weight": torch.randn(7, D),
        "head.bias": torch.zeros(7),
    }
    for i in range(2):
        at = f"layers.{i}.mixer."
        shared = {"in_proj.weight": torch.randn(2 * E, D) * 0.3, "out_proj.weight": torch.randn(D, E) * 0.3}
        weights |= {f"layers.{i}.norm.weight": torch.ones(D), **{at + name: tensor for name, tensor in shared.items()}}
        for b in ("", "_b"):
            weights |= {
                f"{at}A{b}_log": torch.rand(E, N),
                f"{at}D{b}": torch.ones(E),
                f"{at}conv1d{b}.weight": torch.randn(E, 1, K) * 0.3,
                f"{at}conv1d{b}.bias": torch.zeros(E),
                f"{at}x_proj{b}.weight": torch.randn(R + 2 * N, E) * 0.3,
                f"{at}dt_proj{b}.weight": torch.randn(E, R) * 0.3,
                f"{at}dt_proj{b}.bias": torch.randn(E) - 2,
            }
    folder.mkdir()
    torch.save({"model": weights, "epoch": 299}, folder / "vim.pth")
    return folder / "vim.pth"


def test_published_vision_mamba_with_adapters(longseq: Command, tmp_path: Path) -> None:
    source = vim(tmp_path / "vim")
    options = [f"pretrained={source}", "format=vim", *IMAGES, *QUICK, "finetune.lora.r=2"]
    assert longseq("finetune", *options, "run_dir=run") == 0
    model = load_model(tmp_path / "run" / "model")
    assert model.config["head"]["place"] == "middle" and model.config["embedding"]["size"] == [16, 16]
    found = facts(tmp_path / "run")
    assert found["mode"] == "LoRA" and 0 < found["share"] < 0.5


# -- sound


@pytest.fixture
def sounds(trained: Trained) -> Path:
    return trained("task=masked_sound", *SOUNDS, *BOTH_SIDES, TWO_LAYERS, "data.tokenizer=logmel")


def test_sound_from_hidden_frames_to_classes_in_folds(longseq: Command, sounds: Path, tmp_path: Path) -> None:
    wavs(tmp_path / "clips")
    # The front end of the checkpoint holds, though the domain's default is another.
    options = [f"pretrained={sounds}", "domain=audio", "data.train=clips", "data.batch_size=8", *QUICK]
    assert longseq("finetune", *options, "cv.folds=2", "finetune.freeze=backbone", "run_dir=run") == 0
    rows = pd.concat([pd.read_csv(tmp_path / "run" / f"fold_{k}" / "predictions.csv") for k in (1, 2)])
    assert rows["id"].is_unique and len(pd.read_csv(tmp_path / "run" / "folds.csv")) == 2
    assert load_model(tmp_path / "run" / "fold_1" / "model").config["embedding"]["name"] == "logmel"
    assert unchanged(sounds, tmp_path / "run" / "fold_1")


def test_sound_from_the_next_level_to_classes(longseq: Command, trained: Trained, tmp_path: Path) -> None:
    options = [*SOUNDS, "data.clip_s=0.05"]
    first = trained("task=lm", *options, "module.generate_clips=0")
    wavs(tmp_path / "clips")
    own = ["domain=audio", "data.train=clips", "data.clip_s=0.05", *QUICK, "finetune.lora.r=2"]
    assert longseq("finetune", f"pretrained={first}", *own, "run_dir=run") == 0
    model = load_model(tmp_path / "run" / "model")
    assert model.config["tokenizer"]["name"] == "mulaw" and model.config["head"]["name"] == "pool"
    assert unchanged(first, tmp_path / "run", "embedding") and not unchanged(first, tmp_path / "run")


def wavs(folder: Path) -> None:
    """Two classes of short tones."""
    import soundfile

    for name, pitch in (("low", 200), ("high", 900)):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            tone = 0.5 * np.sin(2 * np.pi * pitch * np.arange(1200 + 10 * i) / 4000 + i)
            soundfile.write(folder / name / f"{i}.wav", tone.astype(np.float32), 4000)


def test_embeddings_of_sound_that_was_pretrained(longseq: Command, sounds: Path, tmp_path: Path) -> None:
    wavs(tmp_path / "clips")
    assert longseq("embed", f"pretrained={sounds}", "data.predict=clips", "output=e.parquet") == 0
    found = pd.read_parquet(tmp_path / "e.parquet")
    assert len(found) == 24 and len(found["embedding"].iloc[0]) == 16


def test_embeddings_of_images_from_published_weights(
    longseq: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = vit(tmp_path / "vit")
    images = np.random.default_rng(0).integers(0, 255, (5, 20, 20, 3), dtype=np.uint8)
    np.savez(tmp_path / "new.npz", images=images)
    options = [f"pretrained={source}", "domain=vision", "data.predict=new.npz", "pool=first", "device=cpu"]
    assert longseq("embed", *options, "output=out/e.npy") == 0
    assert "vit (timm): " in capsys.readouterr().out
    assert np.load(tmp_path / "out" / "e.npy").shape == (5, 24)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"e.npy", "e.csv", "e.key_report.json"}
