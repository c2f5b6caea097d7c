"""The built wheel: one import package, configs inside, usable outside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of what git would ship, so that nothing is left in the checkout."""
    import shutil

    source, target = tmp_path_factory.mktemp("source") / "longseq", tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__", "typings", "tests")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=250)
    return next(target.glob("*.whl"))


def test_site_packages_gains_only_longseq(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"longseq"}
    for part in (
        "pipelines/serving/page.html",
        "pipelines/predict_scripts/dna.py",
        "domains/dna/datamodule.py",
        "pipelines/fit.py",
        "configs/fit.yaml",
        "configs/experiment/dna/gue_tf0.yaml",
    ):
        assert f"longseq/{part}" in names
    assert not any("tests/" in name for name in names)
    assert any("LICENSE" in name for name in names)


def test_installed_in_a_fresh_environment_it_answers(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True, timeout=120)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    before = {path.name for path in site.iterdir()}
    # Without its dependencies, which the environment of this test has shown to install.
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, timeout=120)
    gained = {path.name for path in site.iterdir()} - before
    assert {name for name in gained if not name.endswith(".dist-info")} == {"longseq"}
    script = tmp_path / "env" / "bin" / "longseq"
    done = subprocess.run([str(script), "fit", "--help"], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=60)
    assert "hyena" in done.stdout
    # This environment's packages, the installed longseq: the checkout must not be what answers.
    code = "import longseq, longseq.domains.dna.tokenizer as t; print(longseq.__file__); print(t.__file__)"
    here = next(path for path in sys.path if path.endswith("site-packages"))
    done = subprocess.run(
        [str(python), "-c", f"import sys; sys.path.append({here!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert all(line.startswith(str(site)) for line in done.stdout.split())


def test_the_folders_are_not_importable_by_their_bare_names() -> None:
    for name in ("domains", "pipelines"):
        done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 1
        assert f"import longseq.{name}" in done.stderr
