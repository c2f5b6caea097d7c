"""The verb finetune: every mode, every kind of source, and answers to what does not go together."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torch import Tensor

from longseq.checkpoint import load_model
from longseq.pipelines.finetune_model import build_for_task, open_for_task
from longseq.pipelines.fit import build_data, build_task
from longseq.registry import create_backbone
from tests.pipelines.published import publish
from tests.pipelines.resuming import ends_with_the_weights_of, last_checkpoint, signal_at

Command = Callable[..., int]
QUICK = ["trainer=cpu", "trainer.max_epochs=1", "data.batch_size=16", "trainer.log_every_n_steps=1", "baselines=false"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny causal language model."""
    from longseq.pipelines.cli import main

    folder = tmp_path_factory.mktemp("pretrained")
    letters = torch.randint(4, (3000,), generator=torch.Generator().manual_seed(0))
    (folder / "g.fa").write_text(">one\n" + "".join("ACGT"[i] for i in letters) + "\n")
    options = ["backbone.d_model=16", "backbone.n_layers=3", "data.window=128", f"data.train={folder / 'g.fa'}"]
    with pytest.raises(SystemExit) as exit_info, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LONGSEQ_CACHE", str(folder / "cache"))
        main(["fit", "task=lm", *QUICK, *options, f"run_dir={folder / 'run'}", "report=false"])
    assert exit_info.value.code == 0
    return folder / "run"


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def plain(output: str) -> str:
    return re.sub(r"\s+", " ", output)


def first_logits(source: Path, dna_csv: Path, *options: str) -> Tensor:
    """What the network answers to the first batch before any training, by the verb's own steps."""
    overrides = [f"pretrained={source}", f"data.train={dna_csv}", *options]
    with initialize_config_module("longseq.configs", version_base="1.3"):
        cfg = compose("finetune", overrides=overrides)
    opened = open_for_task(cfg)
    L.seed_everything(3, verbose=False)
    data = build_data(cfg)
    model, _ = build_for_task(cfg, opened, data, build_task(cfg, data))
    batch = next(iter(data.loader("train")))
    with torch.no_grad():
        return model.eval()(batch["inputs"], batch["mask"])


def test_layers_that_start_anew_answer_otherwise(pretrained: Path, dna_csv: Path) -> None:
    expected = first_logits(pretrained, dna_csv)
    assert expected.abs().max() > 0 and torch.equal(first_logits(pretrained, dna_csv), expected)
    assert not torch.equal(first_logits(pretrained, dna_csv, "finetune.reinit_layers=1"), expected)


def test_full_leaves_its_reports(
    longseq: Command, pretrained: Path, dna_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["finetune.layer_decay=0.5", "finetune.head_lr_multiplier=4", "optimizer.lr=1e-3", "backbone.dropout=0.1"]
    assert longseq("finetune", f"pretrained={pretrained}", f"data.train={dna_csv}", *QUICK, *options, "run_dir=run") == 0
    said = plain(capsys.readouterr().out)
    assert "mode full fine-tuning" in said
    assert "2 re-initialized (train these): head.projection.weight (2, 16)" in said
    groups = pd.read_csv(tmp_path / "run" / "parameter_groups.csv")
    # The head four times the rate, then the last norm, three layers and the embedding, each half of the one above.
    assert sorted({round(lr * 1e6) for lr in groups["lr"]}) == [62, 125, 250, 500, 1000, 4000]
    model = load_model(tmp_path / "run" / "model")
    assert sum(groups["parameters"].tolist()) == sum(p.numel() for p in model.parameters())
    keys = json.loads((tmp_path / "run" / "key_report.json").read_text())
    assert set(keys["reinitialized"]) == {"head.projection.weight", "head.projection.bias"}
    # The report, as a reader sees it, holds the same groups and keys as the files.
    report = plain(re.sub(r"<[^>]+>", " ", (tmp_path / "run" / "report.html").read_text()))
    table = report.split("Parameter groups")[-1]
    for row in groups.to_dict("records"):
        assert f"{row['such as']}" in table and f"{row['parameters']:,}" in table.replace("\u202f", ",")
    assert "full fine-tuning" in report and "Key report" in report
    loaded, renamed = len(keys["matched"]) + len(keys["renamed"]), len(keys["renamed"])
    assert f"{loaded} tensors loaded, {renamed} of them renamed" in report
    for name, shape in keys["reinitialized"].items():
        assert f"{name} started anew ({', '.join(map(str, shape))})" in report
    assert metrics(tmp_path / "run")["finetune"]["trainable"] == sum(groups["parameters"].tolist())
    assert metrics(tmp_path / "run")["backbone"] == "hyena"


def test_lora_trains_few_and_its_saved_model_is_plain(
    longseq: Command, pretrained: Path, dna_csv: Path, tmp_path: Path
) -> None:
    test = tmp_path / "test.csv"
    test.write_text("".join(dna_csv.read_text().splitlines(keepends=True)[:13]))
    options = [
        "finetune.lora.r=2",
        "finetune.lora.train_also=[*norm*]",
        "optimizer.lr=3e-2",
        f"data.test={test}",
        "report=false",
    ]
    assert longseq("finetune", f"pretrained={pretrained}", f"data.train={dna_csv}", *QUICK, *options, "run_dir=run") == 0
    facts = metrics(tmp_path / "run")["finetune"]
    assert facts["mode"] == "LoRA" and facts["share"] < 0.06
    assert facts["adapted"].startswith("LoRA on 12 of 24 linear layers, and 14 other parameters trained")
    model, before = load_model(tmp_path / "run" / "model"), load_model(pretrained / "model")
    changed = {
        n for n, p in before.state_dict().items() if not n.startswith("head.") and not torch.equal(p, model.state_dict()[n])
    }
    adapted = r"backbone\.blocks\.\d\.(mixer\.(in|out)_proj|mlp\.fc\d)\.weight"
    others = {name for name in changed if "norm" not in name}
    assert others and all(re.fullmatch(adapted, name) for name in others)
    assert "embedding.embedding.weight" not in changed
    # The merged weights answer as the adapted network did when it was tested.
    predictions = pd.read_csv(tmp_path / "run" / "predictions.csv")
    for i, line in enumerate(test.read_text().splitlines()[1:]):
        ids = torch.tensor([["ACGT".index(letter) + 7 for letter in line.split(",")[0]]])
        with torch.no_grad():
            assert model(ids).softmax(-1)[0, 1].item() == pytest.approx(predictions["p_1"][i], abs=1e-5)


def test_a_probe_keeps_its_features_and_trains_the_head_alone(
    longseq: Command, pretrained: Path, dna_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [f"pretrained={pretrained}", f"data.train={dna_csv}", *QUICK, "finetune.freeze=backbone", "report=false"]
    # One batch holds all rows, so that their order is of no matter.
    options = ["trainer.max_epochs=3", "optimizer.lr=3e-2", "module.rc_average=true", "data.batch_size=128"]
    assert longseq("finetune", *base, *options, "run_dir=kept") == 0
    said = plain(capsys.readouterr().out)
    assert "zero trainable backbone parameters" in said and "rows are kept" in said
    assert longseq("finetune", *base, *options, "run_dir=each", "finetune.cache_features=false") == 0
    assert "rows are kept" not in capsys.readouterr().out
    kept, each = (load_model(tmp_path / name / "model") for name in ("kept", "each"))
    before = load_model(pretrained / "model")
    for name, tensor in before.backbone.state_dict().items():
        assert torch.equal(tensor, kept.backbone.state_dict()[name])
    name = "head.projection.weight"
    torch.testing.assert_close(kept.state_dict()[name], each.state_dict()[name], atol=1e-5, rtol=0)
    found = [metrics(tmp_path / name) for name in ("kept", "each")]
    assert found[0]["test"]["loss"] == pytest.approx(found[1]["test"]["loss"], abs=1e-5)
    assert found[0]["validation"]["loss"] == pytest.approx(found[1]["validation"]["loss"], abs=1e-5)
    name = "backbone.final_norm.weight"
    assert torch.equal(each.state_dict()[name], before.state_dict()[name])


def test_layers_are_unfrozen_from_the_head_down(longseq: Command, pretrained: Path, dna_csv: Path, tmp_path: Path) -> None:
    options = ["finetune.unfreeze_every=1", "trainer.max_epochs=2", "report=false"]
    assert longseq("finetune", f"pretrained={pretrained}", f"data.train={dna_csv}", *QUICK, *options, "run_dir=run") == 0
    state = last_checkpoint(tmp_path / "run")["state_dict"]
    before = load_model(pretrained / "model").state_dict()
    moved = {
        i: any(not torch.equal(t, state[f"model.{n}"]) for n, t in before.items() if f"blocks.{i}." in n) for i in range(3)
    }
    assert metrics(tmp_path / "run")["finetune"]["mode"] == "gradual unfreezing"
    assert "2 of 3 layers and the embedding stay frozen" in metrics(tmp_path / "run")["finetune"]["notes"][1]
    # Epoch 0: head and last norm; epoch 1: the last layer too.
    assert moved == {0: False, 1: False, 2: True}
    assert torch.equal(before["embedding.embedding.weight"], state["model.embedding.embedding.weight"])


def test_folds_hold_out_each_row_once(longseq: Command, pretrained: Path, dna_csv: Path, tmp_path: Path) -> None:
    options = ["cv.folds=2", "finetune.freeze=backbone"]
    assert longseq("finetune", f"pretrained={pretrained}", f"data.train={dna_csv}", *QUICK, *options, "run_dir=run") == 0
    found = metrics(tmp_path / "run")
    tests = [pd.read_csv(tmp_path / "run" / f"fold_{k}" / "predictions.csv") for k in (1, 2)]
    ids = pd.concat(tests)["id"].tolist()
    assert len(ids) == 120 and len(set(ids)) == 120
    losses = [fold["loss"] for fold in found["folds"]]
    assert found["test"]["loss"] == pytest.approx(sum(losses) / 2)
    assert found["test_sd"]["loss"] == pytest.approx(pd.Series(losses).std())
    assert "Cross-validation" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("part", ["", "model", "model/model.safetensors", "checkpoints/best.ckpt"])
def test_what_a_run_starts_from_is_not_written_over(
    longseq: Command, pretrained: Path, dna_csv: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")}
    options = [f"pretrained={pretrained / part}", f"data.train={dna_csv}", *QUICK, f"run_dir={pretrained}"]
    assert longseq("finetune", *options) == 2
    assert "which would be lost" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")}


@pytest.mark.usefixtures("_signals")
def test_interrupted_folds_go_on_where_they_were(
    longseq: Command,
    pretrained: Path,
    dna_csv: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = f"data.train={dna_csv}"
    options = [f"pretrained={pretrained}", data, *QUICK, "trainer.max_epochs=2", "cv.folds=2", "report=false"]
    assert longseq("finetune", *options, "run_dir=whole") == 0
    assert longseq("finetune", *options, "run_dir=run", signal_at("on_train_batch_end", 3)) == 130
    capsys.readouterr()
    assert longseq("fit", "resume=run") == 2
    assert "go on with longseq finetune resume=run" in capsys.readouterr().err
    assert longseq("report", "run=run") == 2
    assert "Go on with: longseq finetune resume=run" in capsys.readouterr().err
    # The first fold ends with the five batches that it has left; the second one does not come to the end of its eight.
    assert longseq("finetune", *options, "run_dir=run", "resume=auto", signal_at("on_train_batch_end", 6)) == 130
    output = capsys.readouterr().out
    assert "go on with: longseq finetune resume=run" in plain(output)
    finished = (tmp_path / "run" / "fold_1" / "metrics.json").stat().st_mtime_ns
    assert longseq("finetune", "resume=run/fold_2") == 0
    assert "fold 1 of 2, finished before" in plain(capsys.readouterr().out)
    assert (tmp_path / "run" / "fold_1" / "metrics.json").stat().st_mtime_ns == finished
    whole, resumed = (pd.read_csv(tmp_path / name / "folds.csv") for name in ("whole", "run"))
    pd.testing.assert_frame_equal(whole, resumed)


def test_from_scratch_takes_nothing_but_the_shape(longseq: Command, pretrained: Path, dna_csv: Path, tmp_path: Path) -> None:
    options = ["finetune.reinit_layers=all", "optimizer.lr=1e-12", "report=false"]
    assert longseq("finetune", f"pretrained={pretrained}", f"data.train={dna_csv}", *QUICK, *options, "run_dir=run") == 0
    keys = json.loads((tmp_path / "run" / "key_report.json").read_text())
    assert not keys["matched"] and metrics(tmp_path / "run")["finetune"]["mode"] == "from scratch"
    model, before = (load_model(folder / "model") for folder in (tmp_path / "run", pretrained))
    weights = [m.backbone.blocks[0].mlp.fc1.weight for m in (model, before)]  # type: ignore[union-attr, index]
    assert not torch.allclose(weights[0], weights[1])


def test_a_head_goes_on_where_the_labels_are_the_same(
    longseq: Command, pretrained: Path, dna_csv: Path, tmp_path: Path
) -> None:
    base = [f"data.train={dna_csv}", *QUICK, "report=false", "trainer.limit_train_batches=1", "optimizer.lr=1e-12"]
    assert longseq("finetune", f"pretrained={pretrained}", *base, "run_dir=first") == 0
    assert longseq("finetune", "pretrained=first", *base, "task.dropout=0.1", "run_dir=same") == 0
    other = tmp_path / "other.csv"
    other.write_text(dna_csv.read_text().replace(",1\n", ",yes\n").replace(",0\n", ",no\n"))
    assert longseq("finetune", "pretrained=first", *base, f"data.train={other}", "run_dir=other") == 0
    assert longseq("finetune", "pretrained=first", *base, "task.pool=max", "run_dir=pooled") == 0
    anew = {
        name: json.loads((tmp_path / name / "key_report.json").read_text())["reinitialized"]
        for name in ("same", "other", "pooled")
    }
    assert not anew["same"] and anew["other"] and anew["pooled"]
    first, same, pooled = (load_model(tmp_path / name / "model") for name in ("first", "same", "pooled"))
    weight = "head.projection.weight"
    torch.testing.assert_close(same.get_parameter(weight), first.get_parameter(weight), atol=1e-6, rtol=0)
    assert same.config["head"]["dropout"] == 0.1 and pooled.config["head"]["pool"] == "max"


def test_language_model_goes_on_with_its_head(longseq: Command, pretrained: Path, tmp_path: Path) -> None:
    fasta = pretrained.parent / "g.fa"
    options = ["task=lm", f"data.train={fasta}", "data.window=128", "report=false"]
    assert longseq("finetune", f"pretrained={pretrained}", *QUICK, *options, "run_dir=run") == 0
    keys = json.loads((tmp_path / "run" / "key_report.json").read_text())
    assert not keys["reinitialized"]
    assert metrics(tmp_path / "run")["test"]["loss"] < metrics(pretrained)["test"]["loss"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["backbone=mamba"], "backbone=mamba contradicts"),
        (["backbone.d_model=32"], "d_model=16"),
        (["backbone.max_length=512"], "filters"),
        (["finetune.lora.r=2", "finetune.lora.targets=[qkv]"], "matches none of the 24 linear layers"),
        (["finetune.lora.r=2", "finetune.freeze=backbone"], "exclude each other"),
        (["finetune.lora.r=2", "finetune.lora.train_also=[nothing]"], "matches none"),
        (["finetune.freeze=[backbone.blokcs.*]"], "matches no parameter"),
        (["finetune.freeze=[*]"], "nothing to train"),
        (["finetune.reinit_layers=4"], "0 to 3"),
        (["finetune.layer_decay=1.5"], "layer_decay"),
        (["finetune.unfreeze_every=0"], "at least 1 epoch"),
        (["cv.folds=1"], "2 or more"),
        (["task=mlm"], "both sides"),
        (["format_options.shift=1"], "has no option 'shift'"),
        (["pretrained=nowhere"], "does not exist here"),
    ],
)
def test_what_does_not_go_together_is_answered(
    longseq: Command, pretrained: Path, dna_csv: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    source = [] if options[0].startswith("pretrained") else [f"pretrained={pretrained}"]
    train = f"data.train={pretrained.parent / 'g.fa'}" if "task=mlm" in options else f"data.train={dna_csv}"
    assert longseq("finetune", *source, train, *QUICK, *options, "run_dir=run") == 2
    message = capsys.readouterr().err
    assert expected in message and "Traceback" not in message


def test_longer_sequences_than_the_filters_are_refused(
    longseq: Command, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{'ACGTTGCA' * 30},{i % 2}" for i in range(40)]
    (tmp_path / "long.csv").write_text("\n".join(["sequence,label", *rows]) + "\n")
    base = [f"pretrained={pretrained}", "data.train=long.csv", *QUICK, "report=false"]
    assert longseq("finetune", *base, "run_dir=a") == 2
    message = capsys.readouterr().err
    assert "240 positions" in message and "data.max_length=128" in message
    assert longseq("finetune", *base, "data.max_length=128", "run_dir=b") == 0


@pytest.mark.parametrize("verb", ["finetune", "embed"])
def test_without_a_checkpoint_there_is_an_answer(longseq: Command, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert longseq(verb) == 2
    message = capsys.readouterr().err
    assert "pretrained=" in message and "Traceback" not in message


def test_folds_need_a_random_split(
    longseq: Command, pretrained: Path, dna_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"data.{split}={dna_csv}" for split in ("train", "val", "test")]
    assert longseq("finetune", f"pretrained={pretrained}", *files, *QUICK, "cv.folds=2", "run_dir=run", "report=false") == 2
    assert "drawn at random" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mamba", "mamba2", "caduceus", "hyena", "longformer", "s4d", "transformer", "gru"])
def test_adapters_reach_the_outputs_of_every_kind_of_layer(name: str) -> None:
    from longseq.adapters import add_lora, has_adapters, merge_weights

    torch.manual_seed(0)
    options: dict[str, Any] = {"max_length": 32} if name == "hyena" else {}
    backbone, plain_one = (create_backbone(name, d_model=32, n_layers=2, **options) for _ in range(2))
    x_BLD = torch.randn(2, 16, 32)
    before = backbone(x_BLD)
    adapted = add_lora(backbone, r=2)
    torch.testing.assert_close(backbone(x_BLD), before)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    after = backbone(x_BLD)
    after.square().sum().backward()
    trained = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(adapted.layers)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())
    assert has_adapters(backbone) and (after - before).abs().max() > 1e-3
    plain_one.load_state_dict(merge_weights(backbone, backbone.state_dict()))
    torch.testing.assert_close(plain_one(x_BLD), after, atol=2e-5, rtol=1e-4)


def test_a_model_of_both_strands_stays_equivariant(longseq: Command, dna_csv: Path, tmp_path: Path) -> None:
    letters = torch.randint(4, (2000,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "g.fa").write_text(">one\n" + "".join("ACGT"[i] for i in letters) + "\n")
    options = ["task=mlm", "backbone=caduceus", "backbone.d_model=16", "backbone.n_layers=1", "data.window=128"]
    assert longseq("fit", *QUICK, *options, "data.train=g.fa", "run_dir=pre", "report=false") == 0
    base = ["pretrained=pre", f"data.train={dna_csv}", *QUICK, "report=false", "optimizer.lr=1e-2"]
    lora = ["finetune.lora.r=4", "finetune.lora.targets=[in_proj,out_proj]", "data.rc_augment=false", "module.rc_average=false"]
    for name, mode in (("full", []), ("probe", ["finetune.freeze=backbone"]), ("lora", lora)):
        assert longseq("finetune", *base, *mode, f"run_dir={name}") == 0
        model = load_model(tmp_path / name / "model")
        assert model.backbone.reverse_complement and model.config["head"]["name"] == "strand_pool"
        ids = torch.randint(7, 11, (2, 19))
        with torch.no_grad():
            torch.testing.assert_close(model(ids), model(17 - ids.flip(1)), atol=1e-5, rtol=1e-5)


def test_adapters_of_the_shipped_caduceus_are_few() -> None:
    from longseq.adapters import add_lora

    with initialize_config_module("longseq.configs", version_base="1.3"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGSEQ_DATA", "/data")
        options = OmegaConf.to_container(compose("fit", overrides=["experiment=dna/pretrain_caduceus"]).backbone)
    backbone = create_backbone(**options)  # type: ignore[arg-type]
    before = sum(p.numel() for p in backbone.parameters())
    adapted = add_lora(backbone, r=4, targets=["in_proj", "out_proj"])
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert backbone.reverse_complement and len(adapted.layers) == 2 * options["n_layers"]  # type: ignore[index, call-overload]
    assert 0 < trained / (before + trained) < 0.05


@pytest.mark.parametrize("backbone", ["longformer", "caduceus", "transformer"])
def test_longer_sequences_than_in_pretraining_where_no_weights_depend_on_it(
    longseq: Command, dna_csv: Path, tmp_path: Path, backbone: str
) -> None:
    letters = torch.randint(4, (600,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "g.fa").write_text(">one\n" + "".join("ACGT"[i] for i in letters) + "\n")
    options = [f"backbone={backbone}", "backbone.d_model=16", "backbone.n_layers=1", "data.window=24", "data.train=g.fa"]
    task = "lm" if backbone == "transformer" else "mlm"
    assert longseq("fit", f"task={task}", *QUICK, *options, "run_dir=pre", "report=false", "data.batch_size=4") == 0
    base = ["pretrained=pre", f"data.train={dna_csv}", *QUICK, "report=false", "trainer.limit_train_batches=1"]
    assert longseq("finetune", *base, "run_dir=run") == 0
    assert not set(json.loads((tmp_path / "run" / "key_report.json").read_text())["reinitialized"]) - {
        f"head.{part}projection.{kind}" for part in ("", "strand.") for kind in ("weight", "bias")
    }


def test_bad_checkpoints_are_answered_and_leave_no_run(
    longseq: Command, pretrained: Path, dna_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(source: Path, *options: str) -> str:
        assert longseq("finetune", f"pretrained={source}", f"data.train={dna_csv}", *QUICK, *options, "run_dir=run") == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message and not (tmp_path / "run" / "model").exists()
        return message

    folder = publish(pretrained, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    vocabulary = {token: i for i, token in enumerate(["CLS", "SEP", "BOS", "MASK", "PAD", "RESERVED", "UNK"])}
    named = {f"[{token}]": i for token, i in vocabulary.items()} | {"A": 8, "C": 7, "G": 9, "T": 10, "N": 11}
    (folder / "vocab.json").write_text(json.dumps(named))
    assert "A is 8 instead of 7" in answer(folder)
    (folder / "vocab.json").unlink()
    for key in ("d_model", "max_seq_len"):
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != key}))
        assert key in answer(folder)
    (folder / "config.json").write_text(json.dumps({**config, "d_model": 32}))
    assert "16 wide, config.json says 32" in answer(folder)
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 4}))
    assert "missing" in answer(folder)
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated or corrupted" in answer(folder)
    weights.unlink()
    torch.save({"state_dict": {}, "run": re.compile}, folder / "weights.ckpt")
    assert "refused" in answer(folder)


def test_a_hub_id_offline_says_how_to_fetch_it(
    longseq: Command, dna_csv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    def offline(*args: Any, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    source = "LongSafari/hyenadna-tiny-1k-seqlen-hf"
    assert longseq("finetune", f"pretrained={source}", f"data.train={dna_csv}", *QUICK, "run_dir=run") == 2
    message = capsys.readouterr().err
    assert f"hf download {source} --local-dir hyenadna-tiny-1k-seqlen-hf" in message and "give its path" in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["finetune.lora.r=abc"], "finetune.lora.r must be a whole number"),
        (["finetune.lora.r=2.5"], "finetune.lora.r must be a whole number"),
        (["finetune.lora.r=-1"], "finetune.lora.r must be 0"),
        (["finetune.lora=8"], "finetune.lora must be a mapping"),
        (["finetune.lora.r=2", "finetune.lora.alpha=0"], "adapters change nothing"),
        (["finetune.layer_decay=null"], "finetune.layer_decay must be a number"),
        (["finetune.unfreeze_every=1.5"], "finetune.unfreeze_every must be a whole number or null"),
        (["finetune.reinit_layers=true"], "finetune.reinit_layers must be a whole number"),
        (["finetune.reinit_layers=all", "finetune.unfreeze_every=1"], "would stay random"),
        (["finetune.freeze=true"], "finetune.freeze must be text"),
        (["finetune.freeze=backbone", "finetune.cache_passes=0"], "cache_passes must be at least 1"),
        (["format_options=3"], "format_options holds"),
        (["cv.folds=500"], "cv.folds=500: no rows are left for test"),
        (["pretrained="], "must name what to start from"),
    ],
)
def test_options_of_the_wrong_kind_are_answered_before_a_run_begins(
    longseq: Command, pretrained: Path, dna_csv: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    assert longseq("finetune", f"pretrained={pretrained}", f"data.train={dna_csv}", *QUICK, *options, "run_dir=run") == 2
    message = capsys.readouterr().err
    assert expected in message and "Traceback" not in message
    assert not Path("run").exists()


def test_a_module_s_name_freezes_all_that_is_in_it(longseq: Command, pretrained: Path, dna_csv: Path, tmp_path: Path) -> None:
    options = ["finetune.freeze=[head,backbone.blocks.1]", "optimizer.lr=1e-2", "report=false"]
    assert longseq("finetune", f"pretrained={pretrained}", f"data.train={dna_csv}", *QUICK, *options, "run_dir=run") == 0
    facts = metrics(tmp_path / "run")["finetune"]
    assert facts["mode"] == "partial fine-tuning" and facts["frozen"]["head"] == 2 * 16 + 2
    after, before = (load_model(folder / "model").state_dict() for folder in (tmp_path / "run", pretrained))
    same = {i: all(torch.equal(t, after[n]) for n, t in before.items() if f"blocks.{i}." in n) for i in range(3)}
    assert same == {0: False, 1: True, 2: False}


def test_one_pattern_stands_for_a_list(longseq: Command, pretrained: Path, dna_csv: Path, tmp_path: Path) -> None:
    options = ["finetune.lora.r=2", "finetune.lora.train_also=*norm*", "finetune.lora.targets=in_proj", "report=false"]
    assert longseq("finetune", f"pretrained={pretrained}", f"data.train={dna_csv}", *QUICK, *options, "run_dir=run") == 0
    assert metrics(tmp_path / "run")["finetune"]["adapted"] == "LoRA on 3 of 24 linear layers, and 14 other parameters trained"


class StopAtStep(L.Callback):
    """Ends training with an error, as a fault of the machine would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step >= self.step:
            raise RuntimeError("stopped")


@pytest.mark.parametrize(
    "mode",
    [
        ["backbone.dropout=0.2"],
        ["finetune.lora.r=2"],
        ["finetune.unfreeze_every=1", "callbacks.checkpoint.every_n_steps=1"],  # Goes on inside an epoch.
    ],
)
def test_the_same_command_goes_on_where_it_was(
    longseq: Command, pretrained: Path, dna_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: list[str]
) -> None:
    options = [f"pretrained={pretrained}", f"data.train={dna_csv}", *QUICK, *mode, "trainer.max_epochs=3", "report=false"]
    assert longseq("finetune", *options, "run_dir=whole") == 0
    with pytest.raises(RuntimeError, match="stopped"):
        longseq("finetune", *options, f"+callbacks.stop={{_target_: {__name__}.StopAtStep, step: 9}}")
    (begun,) = (tmp_path / "runs" / "dna" / "hyena").iterdir()
    # Other options are another run.
    assert longseq("finetune", *options, "optimizer.lr=2e-3", "resume=auto", "run_dir=other") == 0
    assert "starting a new one" in capsys.readouterr().out and not (begun / "metrics.json").exists()
    assert longseq("finetune", *options, "resume=auto") == 0
    assert metrics(begun)["test"] == metrics(tmp_path / "whole")["test"]
    assert metrics(begun)["training"]["epochs"] == 3
    assert ends_with_the_weights_of(begun, tmp_path / "whole")


@pytest.mark.parametrize(
    "mode",
    [
        ["finetune.freeze=backbone"],
        ["finetune.lora.r=2", "finetune.lora.targets=out_proj"],
        ["finetune.unfreeze_every=5"],
    ],
)
def test_what_starts_anew_is_trained_in_every_mode(
    longseq: Command, pretrained: Path, dna_csv: Path, tmp_path: Path, mode: list[str]
) -> None:
    """A new embedding or layer that stayed frozen would hand noise to the rest."""
    anew = ["allow_missing=embedding.*", "finetune.reinit_layers=1", "report=false"]
    options = [f"pretrained={pretrained}", f"data.train={dna_csv}", *QUICK, *anew, *mode]
    for name, lr in (("still", "1e-12"), ("run", "1e-2")):
        assert longseq("finetune", *options, f"optimizer.lr={lr}", f"run_dir={name}") == 0
    first, last = (load_model(tmp_path / name / "model").state_dict() for name in ("still", "run"))
    for name in ("embedding.embedding.weight", "backbone.blocks.2.mixer.in_proj.weight", "head.projection.weight"):
        assert not torch.allclose(first[name], last[name], atol=1e-6), name
    frozen = "backbone.blocks.0.mixer.in_proj.weight"
    assert torch.allclose(first[frozen], last[frozen], atol=1e-6)
    if "unfreeze" not in mode[0]:
        assert any("start anew and are trained" in note for note in metrics(tmp_path / "run")["finetune"]["notes"])
