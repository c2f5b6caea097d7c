"""The shipped configs build what they say."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import longseq.configs
from longseq.domains.audio.datamodule import AudioData

CONFIGS = Path(longseq.configs.__path__[0])
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment" / "audio").glob("*.yaml"))


@pytest.mark.parametrize("name", [None, *EXPERIMENTS])
def test_every_config_makes_a_data_module(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSEQ_DATA", "/somewhere")
    with initialize_config_module("longseq.configs", version_base="1.3"):
        config = compose("fit", overrides=["domain=audio"] if name is None else [f"experiment=audio/{name}"])
    assert config.domain == "audio"
    options = OmegaConf.to_container(config.data, resolve=True)
    assert isinstance(options, dict)
    assert options.pop("_target_") == f"{AudioData.__module__}.{AudioData.__qualname__}"
    data = AudioData(task=config.task.name, **{str(key): value for key, value in options.items()})
    assert (data.sources["train"] is None) == (name is None)
    assert data.tokenizer_name == ("mulaw" if config.task.name == "lm" else config.data.tokenizer)


def test_the_config_shows_every_option_with_its_default() -> None:
    import inspect

    from longseq.domains.audio.augment import Augmentation

    with initialize_config_module("longseq.configs", version_base="1.3"):
        shown = OmegaConf.to_container(compose("fit", overrides=["domain=audio"]).data, resolve=True)
    assert isinstance(shown, dict)
    parameters = inspect.signature(AudioData.__init__).parameters.values()
    own = {p.name: p.default for p in parameters if p.name not in ("self", "task", "seed", "augment")}
    own |= {field.name: field.default for field in Augmentation.__dataclass_fields__.values()}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}
    assert {key: value for key, value in shown.items() if key != "_target_"} == plain
