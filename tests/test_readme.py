"""Every command of the README runs, on small files and few steps."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

from longseq.pipelines.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = ["backbone.d_model=16", "backbone.n_layers=1", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "report=false"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


LONGSEQ = [command for command in commands() if command.startswith("longseq ")]


def fasta(path: Path, records: list[str]) -> None:
    path.write_text("".join(f">chr{i + 1}\n{record}\n" for i, record in enumerate(records)))


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the README's commands name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGSEQ_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)

    def dna(length: int) -> str:
        return "".join(rng.choice(list("ACGT"), length))

    for name in ("train", "val", "test"):
        rows = [f"{dna(60)},{i % 2}" for i in range(60)]
        Path(f"{name}.csv").write_text("\n".join(["sequence,label", *rows]) + "\n")
    for name in ("human", "worm"):
        fasta(Path(f"{name}.fa"), [dna(80) for _ in range(40)])
    fasta(Path("genome.fa"), [dna(12_000) for _ in range(3)])
    starts = [(f"chr{chrom}", int(start)) for chrom in (1, 2, 3) for start in rng.integers(0, 11_000, 20)]
    lines = [f"{chrom}\t{start}\t{start + 150}\t{i % 2}\t0\t{'+-'[i % 3 == 0]}" for i, (chrom, start) in enumerate(starts)]
    Path("peaks.bed").write_text("\n".join(lines) + "\n")
    write_annotations(rng)
    write_sounds(rng)
    values = np.sin(np.arange(1000) / 4)[:, None] + 0.1 * rng.standard_normal((1000, 2))
    dates = pd.date_range("2024-01-01", periods=1000, freq="h")
    pd.DataFrame({"date": dates, "a": values[:, 0], "b": values[:, 1]}).to_csv("load.csv", index=False)
    for label in ("dark", "light"):
        Path("photos", label).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 120, (8, 8), dtype=np.uint8) + np.uint8(120 * (label == "light"))
            Image.fromarray(pixels).save(Path("photos", label, f"{i}.png"))


def write_annotations(rng: np.random.Generator) -> None:
    """A track, genes of two exons and variants of genome.fa."""
    values = rng.gamma(2, 1, (3, 120))
    rows = [f"chr{c + 1}\t{i * 100}\t{i * 100 + 100}\t{values[c, i]:.3f}" for c in range(3) for i in range(120)]
    Path("signal.bedgraph").write_text("\n".join(rows) + "\n")
    exons = [(c, gene, start) for c in (1, 2, 3) for gene in range(12) for start in (gene * 1000 + 100, gene * 1000 + 500)]
    names = [f'gene_id "g{c}.{gene}"; transcript_id "t{c}.{gene}";' for c, gene, _ in exons]
    lines = [f"chr{c}\tx\texon\t{at}\t{at + 200}\t.\t+\t.\t{name}" for (c, _, at), name in zip(exons, names, strict=True)]
    Path("genes.gtf").write_text("\n".join(lines) + "\n")
    letters = Path("genome.fa").read_text().split("\n")[1]
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for at in (3000, 7000):
        lines.append(f"chr1\t{at + 1}\tv{at}\t{letters[at]}\t{'C' if letters[at] == 'A' else 'A'}\t.\t.\t.")
    Path("variants.vcf").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs that commands start from."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(1)
    rows = [f"{''.join(rng.choice(list('ACGT'), 60))},{i % 2}" for i in range(60)]
    table = folder / "train.csv"
    table.write_text("\n".join(["sequence,label", *rows]) + "\n")
    fasta(folder / "genome.fa", ["".join(rng.choice(list("ACGT"), 12_000))])
    small = [*SMALL, "trainer=cpu", "baselines=false"]
    assert run("fit", f"data.train={table}", *small, f"run_dir={folder}/example") == 0
    language = ["task=lm", f"data.train={folder}/genome.fa", "data.window=512"]
    assert run("fit", *language, *small, f"run_dir={folder}/pretrained") == 0
    return folder


def write_sounds(rng: np.random.Generator) -> None:
    """Two classes of short tones, and a manifest of them as utterances."""
    lines = ["path,text"]
    for label, pitch in (("low", 200), ("high", 800)):
        Path("sounds", label).mkdir(parents=True)
        for i in range(12):
            tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(1600) / 8000) + 0.01 * rng.standard_normal(1600)
            soundfile.write(Path("sounds", label, f"{i}.wav"), tone, 8000)
            lines.append(f"sounds/{label}/{i}.wav,{label}")
    Path("utterances.csv").write_text("\n".join(lines) + "\n")


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(list(args))
    return int(exit_info.value.code or 0)


@pytest.mark.usefixtures("_files")
@pytest.mark.parametrize("command", LONGSEQ)
def test_command_runs(command: str, trained: Path) -> None:
    verb, *args = shlex.split(command)[1:]
    given = {a.split("=")[0] for a in args}
    if verb in ("fit", "finetune") and not {"--help", "--cfg"} & set(args):
        # The checkpoint says how large its backbone is.
        small = [o for o in SMALL if o.split("=")[0] not in given and not (verb == "finetune" and o.startswith("backbone"))]
        demo = [] if "data.train" in command else ["data.demo_rows=40"]
        args = [*args, *small, *demo, *([] if "trainer=" in command else ["trainer=cpu"])]
    if verb == "evaluate":
        args = [*args, "trainer=cpu"]
    if "runs/" in command and "run_dir" not in given:
        shutil.copytree(trained, "runs")
    # A server would go on; its own tests start it.
    assert run(verb, *args, *(["--cfg", "job"] if verb == "serve" else [])) == 0


def test_make_targets_exist() -> None:
    targets = [command.split()[1] for command in commands() if command.startswith("make ")]
    assert targets == ["fit", "test"]
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_python_examples_run() -> None:
    for block in blocks("python"):
        subprocess.run([sys.executable, "-W", "error", "-c", block], check=True, timeout=120)


def test_inline_commands_name_what_exists() -> None:
    inline = re.findall(r"`(longseq [^`…]*)`", README)
    assert inline
    for command in inline:
        verb, *args = shlex.split(command)[1:]
        if verb in ("fit", "finetune", "evaluate") and "…" not in command:
            assert run(verb, *args, "--cfg", "job") == 0


def test_the_table_of_backbones_is_complete() -> None:
    from longseq.registry import list_backbones

    for name in list_backbones():
        assert f"| `{name}` |" in README, name


def test_pictures_are_there() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file()
