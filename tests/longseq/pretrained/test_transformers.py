"""Mamba, FalconMamba, Mamba-2 and Longformer as `transformers` saves them: the same logits, to 1e-4."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longseq.backbones.longformer import global_tokens
from longseq.checkpoint import load_model, save_model
from longseq.errors import CheckpointError
from longseq.pretrained import detect_format, load_pretrained
from longseq.registry import create_mixer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = 1e-4


def randomise(module: nn.Module) -> None:
    """Weights as after training: norms not at one, biases not at zero; the states' rates stay stable."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith(("A_log", "dt_bias", "dt_proj.bias")):
                parameter.add_(0.1 * torch.randn_like(parameter))


def saved(theirs: Any, folder: Path) -> Path:
    randomise(theirs)
    theirs.eval().save_pretrained(folder)
    return folder


def largest_error(ours: Tensor, theirs: Tensor) -> float:
    assert theirs.abs().max() > 0.1
    return float((ours - theirs).abs().max())


SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "use_cache": False}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "mamba": ("Mamba", {**SIZES, "state_size": 8}, "mamba"),
    "mamba-untied": ("Mamba", {**SIZES, "tie_word_embeddings": False, "use_bias": True, "time_step_rank": 5}, "mamba"),
    "falcon": ("FalconMamba", {**SIZES, "tie_word_embeddings": False, "mixer_rms_eps": 1e-3}, "mamba"),
    "mamba2": ("Mamba2", {**SIZES, "num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 2, "chunk_size": 16}, "mamba2"),
    "mamba2-limits": (
        "Mamba2",
        {**SIZES, "num_heads": 4, "head_dim": 16, "n_groups": 1, "time_step_limit": (0.02, 0.05), "layer_norm_epsilon": 1e-3},
        "mamba2",
    ),
    "mamba2-tied": ("Mamba2", {**SIZES, "num_heads": 4, "head_dim": 16, "n_groups": 1, "tie_word_embeddings": True}, "mamba2"),
}


@pytest.mark.parametrize("name", MODELS)
def test_language_models_give_the_same_logits(name: str, tmp_path: Path) -> None:
    kind, options, format = MODELS[name]
    theirs = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**options))
    folder = saved(theirs, tmp_path / "m")
    assert detect_format(folder) == format
    ours, report = load_pretrained(folder)
    ids = torch.randint(50, (2, 37))
    with torch.no_grad():
        assert largest_error(ours(ids), theirs(ids).logits) <= TOLERANCE
    assert not report.unexpected and not report.missing and not report.reinitialized
    assert ("head.projection.weight" in report.tied) == theirs.config.tie_word_embeddings
    assert len(report.matched) + len(report.renamed) + len(report.tied) == len(ours.state_dict())
    save_model(ours, tmp_path / "own")
    assert torch.equal(load_model(tmp_path / "own")(ids), ours(ids))
    again, again_report = load_pretrained(tmp_path / "own")
    assert again_report.format == "longseq" and torch.equal(again(ids), ours(ids))


def test_a_base_model_without_prefix_gets_a_tied_head(tmp_path: Path) -> None:
    theirs = transformers.MambaModel(transformers.MambaConfig(**SIZES))
    ours, report = load_pretrained(saved(theirs, tmp_path / "m"))
    ids = torch.randint(50, (1, 9))
    with torch.no_grad():
        assert largest_error(ours.features(ids), theirs(ids).last_hidden_state) <= TOLERANCE
    assert "head.projection.weight" in report.tied


LONGFORMER = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "attention_window": [8, 4],
    "max_position_embeddings": 66,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "layer_norm_eps": 1e-5,
}


def test_longformer_gives_the_same_logits_with_and_without_global_tokens(tmp_path: Path) -> None:
    theirs = transformers.LongformerForMaskedLM(transformers.LongformerConfig(**LONGFORMER))
    ours, report = load_pretrained(saved(theirs, tmp_path / "m"))
    ids = torch.randint(3, 60, (2, 41))
    mask = torch.ones(2, 41, dtype=torch.bool)
    ids[1, 30:], mask[1, 30:] = 1, False
    first = torch.zeros_like(ids)
    first[:, 0] = 1
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask.long(), global_attention_mask=first).logits
        assert largest_error(ours(ids, mask)[mask], expected[mask]) <= TOLERANCE
        expected = theirs(ids, attention_mask=mask.long()).logits
        with global_tokens(ours, torch.zeros_like(mask)):
            assert largest_error(ours(ids, mask)[mask], expected[mask]) <= TOLERANCE
        chosen = torch.zeros_like(mask)
        chosen[:, [3, 20]] = True
        expected = theirs(ids, attention_mask=mask.long(), global_attention_mask=chosen.long()).logits
        with global_tokens(ours, chosen):
            assert largest_error(ours(ids, mask)[mask], expected[mask]) <= TOLERANCE
    assert report.tied == {"head.projection.weight": "embedding.embedding.weight"}
    assert not report.unexpected and not report.reinitialized
    save_model(ours, tmp_path / "own")
    assert torch.equal(load_model(tmp_path / "own")(ids, mask), ours(ids, mask))
    with pytest.raises(ValueError, match="64 positions"):
        ours(torch.full((1, 65), 5))


@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_fine_tuned_longformers_keep_their_heads(kind: str, tmp_path: Path) -> None:
    config = transformers.LongformerConfig(**LONGFORMER, num_labels=2)
    theirs = getattr(transformers, f"LongformerFor{kind}")(config)
    ours, report = load_pretrained(saved(theirs, tmp_path / "m"))
    assert not report.reinitialized and not report.unexpected
    ids = torch.randint(3, 60, (2, 16))
    first = torch.zeros_like(ids)
    first[:, 0] = 1
    with torch.no_grad():
        answer = theirs(ids, global_attention_mask=first)
        expected = torch.stack([answer.start_logits, answer.end_logits], -1) if kind == "QuestionAnswering" else answer.logits
        assert largest_error(ours(ids), expected) <= TOLERANCE


def test_an_untied_longformer_answers_with_its_decoders_bias(tmp_path: Path) -> None:
    theirs = transformers.LongformerForMaskedLM(transformers.LongformerConfig(**LONGFORMER, tie_word_embeddings=False))
    ours, report = load_pretrained(saved(theirs, tmp_path / "m"))
    ids = torch.randint(3, 60, (2, 16))
    first = torch.zeros_like(ids)
    first[:, 0] = 1
    with torch.no_grad():
        assert largest_error(ours(ids), theirs(ids, global_attention_mask=first).logits) <= TOLERANCE
    assert "lm_head.bias" in report.dropped and not report.tied


def test_positions_grow_only_where_they_are_asked_to(tmp_path: Path) -> None:
    folder = saved(transformers.LongformerForMaskedLM(transformers.LongformerConfig(**LONGFORMER)), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 100}))
    with pytest.raises(CheckpointError, match=r"position_embeddings\.weight \(66, 32\) instead of \(100, 32\)"):
        load_pretrained(folder)


@pytest.mark.parametrize("how", ["copy", "interpolate"])
def test_positions_beyond_the_table(how: str, tmp_path: Path) -> None:
    theirs = transformers.LongformerForMaskedLM(transformers.LongformerConfig(**LONGFORMER))
    folder = saved(theirs, tmp_path / "m")
    plain, _ = load_pretrained(folder)
    table = plain.state_dict()["embedding.positions.weight"]
    published = len(table) - 2
    longer, report = load_pretrained(folder, max_length=2 * published, positions=how)
    found = longer.state_dict()["embedding.positions.weight"]
    assert len(found) == 2 * published + 2 and torch.equal(found[:2], table[:2])
    assert any(f"positions={how}" in note for note in report.notes)
    if how == "copy":
        assert torch.equal(found[2:], table[2:].repeat(2, 1))
        ids = torch.randint(3, 60, (1, 16))
        assert torch.equal(longer(ids), plain(ids))
    else:
        torch.testing.assert_close(found[[2, -1]], table[[2, -1]])
        # Row k of the longer table lies at place k (n - 1) / (2 n - 1) of the published one.
        place = 7 * (published - 1) / (2 * published - 1)
        low, share = int(place), place - int(place)
        torch.testing.assert_close(found[9], (1 - share) * table[2 + low] + share * table[3 + low])
    with pytest.raises(CheckpointError, match="copy or interpolate"):
        load_pretrained(folder, positions="guess")


def test_a_new_head_is_initialised_and_the_backbone_is_not(tmp_path: Path) -> None:
    theirs = transformers.MambaForCausalLM(transformers.MambaConfig(**SIZES))
    ours, report = load_pretrained(saved(theirs, tmp_path / "m"), head={"name": "pool", "n_outputs": 3}, dropout=0.1)
    ids = torch.randint(50, (2, 9))
    assert ours(ids).shape == (2, 3)
    assert set(report.reinitialized) == {"head.projection.weight", "head.projection.bias"}
    assert ours.config["backbone"]["dropout"] == 0.1
    with torch.no_grad():
        assert largest_error(ours.features(ids), theirs.backbone(ids).last_hidden_state) <= TOLERANCE
    with pytest.raises(TypeError, match="did you mean"):
        load_pretrained(tmp_path / "m", dropuot=0.1)


def test_the_norms_of_falcon_hold_in_streaming_and_in_bfloat16() -> None:
    layer = create_mixer("mamba", 32, bcdt_norm=True, bcdt_norm_eps=1e-3)
    randomise(layer)
    x, state = torch.randn(2, 23, 32), layer.init_state(2)
    expected = layer(x)
    assert (expected - create_mixer_like(layer, bcdt_norm=False)(x)).abs().max() > 1e-2
    first, state = layer.forward_chunk(x[:, :10], state)
    steps = []
    for t in range(10, 23):
        y, state = layer.step(x[:, t], state)
        steps.append(y)
    torch.testing.assert_close(torch.cat([first, torch.stack(steps, 1)], 1), expected, rtol=1e-4, atol=1e-5)
    half = layer.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


def create_mixer_like(layer: nn.Module, **options: Any) -> nn.Module:
    other = create_mixer("mamba", 32, **options)
    other.load_state_dict(layer.state_dict())
    return other
