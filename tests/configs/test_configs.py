"""Every shipped config composes and builds."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from longseq.optim import SCHEDULES
from longseq.pipelines.cli import CONFIGS, groups
from longseq.registry import create_backbone, list_backbones

GROUPS = groups()


def composed(*overrides: str, verb: str = "fit") -> DictConfig:
    with initialize_config_module("longseq.configs", version_base="1.3"):
        return compose(verb, overrides=list(overrides))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSEQ_DATA", "/data")


def test_every_backbone_has_a_config_and_every_config_a_backbone() -> None:
    names = {OmegaConf.to_container(composed(f"backbone={choice}").backbone)["name"] for choice in GROUPS["backbone"]}  # type: ignore[index,call-overload]
    assert names == set(list_backbones())


@pytest.mark.parametrize("choice", GROUPS["backbone"])
def test_backbone_builds(choice: str) -> None:
    options: Any = OmegaConf.to_container(composed(f"backbone={choice}", "backbone.d_model=32").backbone)
    if options.get("max_length", 0) is None:
        options["max_length"] = 64
    assert create_backbone(**options).d_model == 32


@pytest.mark.parametrize("choice", GROUPS["trainer"])
def test_trainer_names_real_options(choice: str) -> None:
    import inspect

    import lightning

    options: Any = OmegaConf.to_container(composed(f"trainer={choice}").trainer)
    assert set(options) - {"_target_"} <= set(inspect.signature(lightning.Trainer.__init__).parameters)


@pytest.mark.parametrize("choice", GROUPS["callbacks"])
def test_callbacks_build(choice: str, tmp_path: Path) -> None:
    cfg = composed(f"callbacks={choice}", f"run_dir={tmp_path}")
    for entry in cfg.callbacks.values():
        assert instantiate(entry) is not None


@pytest.mark.parametrize("choice", GROUPS["schedule"])
def test_schedules_are_known(choice: str) -> None:
    assert composed(f"schedule={choice}").schedule.name in SCHEDULES


@pytest.mark.parametrize("choice", GROUPS["logger"])
def test_loggers_name_real_classes(choice: str, tmp_path: Path) -> None:
    from hydra.utils import get_class

    for entry in composed(f"logger={choice}", f"run_dir={tmp_path}").logger.values():
        assert get_class(entry._target_) is not None


@pytest.mark.parametrize("choice", GROUPS["task"])
def test_tasks_say_what_decides(choice: str) -> None:
    from hydra.utils import get_class

    task = composed(f"task={choice}").task
    assert task.name and task.monitor and task.mode in ("min", "max")
    assert get_class(task._target_) is not None


@pytest.mark.parametrize("choice", GROUPS["domain"])
def test_domain_options_are_its_data_modules(choice: str) -> None:
    import inspect

    from hydra.utils import get_class

    cfg = composed(f"domain={choice}")
    assert cfg.domain == choice
    for part in ("data", "module"):
        # Options that a class hands on to another are that one's to check: it builds.
        found = get_class(cfg[part]._target_)
        parameters = [p for kind in found.__mro__ for p in inspect.signature(kind.__init__).parameters.values()]
        if part == "data" and any(p.kind is p.VAR_KEYWORD for p in parameters[:60]):
            instantiate(cfg.data, task=cfg.task.name, _convert_="all")
            continue
        known = {p.name for p in parameters}
        assert {str(key) for key in cfg[part]} - {"_target_"} <= known


@pytest.mark.parametrize("choice", GROUPS["experiment"])
def test_experiment_composes(choice: str) -> None:
    cfg = composed(f"experiment={choice}")
    OmegaConf.to_container(cfg, resolve=True)
    assert cfg.domain == choice.split("/")[0]


@pytest.mark.parametrize("choice", GROUPS["experiment"])
def test_experiment_builds(choice: str) -> None:
    cfg = composed(f"experiment={choice}")
    data = instantiate(cfg.data, task=cfg.task.name, _convert_="all")
    assert data.domain == cfg.domain
    options: Any = OmegaConf.to_container(cfg.backbone, resolve=True)
    if options.get("max_length", 0) is None:
        options["max_length"] = 64
    assert create_backbone(**options).d_model == options["d_model"]


@pytest.mark.parametrize("verb", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_verb_composes(verb: str) -> None:
    assert composed(verb=verb)
