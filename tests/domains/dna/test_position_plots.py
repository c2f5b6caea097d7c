"""What the report shows along test rows: the values that the model gives, beside those of the targets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.domains.dna.datamodule import DNAData
from longseq.domains.dna.module import DNAModule
from longseq.domains.dna.position_plots import EXAMPLES, position_sections, save_examples
from longseq.domains.dna.tasks import BaseLabels, Profile
from longseq.domains.plots import to_svg
from longseq.domains.sections import RunFiles
from longseq.model import build_model
from longseq.registry import create_backbone


def trained(data: DNAData, task: Profile | BaseLabels) -> DNAModule:
    options: dict[str, Any] = {"name": "cnn", "d_model": 8, "n_layers": 1}
    backbone = create_backbone(**options)
    config = {**task.config(), **data.model_options(backbone), "backbone": options, "head": task.head()}
    return DNAModule(task=task, model=build_model(config, backbone))


@pytest.mark.parametrize("task_name", ["profile", "base_labels"])
def test_measured_and_predicted_stand_beside_each_other(task_name: str, tmp_path: Path) -> None:
    data = DNAData(task=task_name, demo_rows=20, batch_size=4)
    data.setup()
    kind: Any = Profile if task_name == "profile" else BaseLabels
    task = kind(**data.task_options())
    module = trained(data, task)
    save_examples(tmp_path, module, data, 2)
    found = json.loads((tmp_path / EXAMPLES).read_text())
    ids = data.tables["test"].ids.tolist()
    assert len(found) == 2
    for example in found:
        row = data.splits["test"][ids.index(example["id"])]
        with torch.no_grad():
            outputs = module.model(torch.from_numpy(row["ids"]).long()[None])
        answers = task.values(outputs)[0] if task_name == "profile" else outputs.softmax(-1)[0]
        shown = [list(task.labels).index(name) for name in example["labels"]]
        np.testing.assert_allclose(example["predicted"], answers[:, shown].numpy(), atol=1e-4)
        truth = row["targets"][:, None] == np.arange(len(task.labels)) if task_name == "base_labels" else row["targets"]
        np.testing.assert_allclose(example["truth"], np.asarray(truth, float)[:, shown], atol=1e-4)
    assert "none" not in found[0]["labels"]
    sections = position_sections(RunFiles(tmp_path, {}, {"task": task_name}, pd.DataFrame()))
    assert [section.title for section in sections] == [f"Along {example['id']}" for example in found]
    assert sections[0].figure is not None and "<path" in to_svg(sections[0].figure, "tracks")
    assert position_sections(RunFiles(tmp_path / "none", {}, {"task": task_name}, pd.DataFrame())) == []
