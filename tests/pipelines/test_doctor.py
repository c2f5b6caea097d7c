"""What `longseq doctor` finds on healthy and on broken machines."""

import importlib
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from longseq.errors import ConfigError
from longseq.pipelines import doctor, machine
from longseq.pipelines.machine import FAIL, OK, WARN, Finding


def test_this_machine_is_sound_and_every_line_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run([]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(line[:4].strip() in (OK, WARN) for line in lines)
    assert (
        last
        == f"0 broken, {sum(x.startswith('warn') for x in lines)} to look at, {sum(x.startswith('ok') for x in lines)} fine"
    )
    text = "\n".join(lines)
    assert f"torch {version('torch')}" in text and "base packages in the declared versions" in text
    assert "reads wav, flac, ogg and mp3" in text and str(Path.cwd()) in text


def test_something_broken_makes_the_exit_code_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def check_boom() -> list[Finding]:
        raise RuntimeError("no idea\nsecond line")

    monkeypatch.setattr(doctor, "CHECKS", (check_boom,))
    assert doctor.run([]) == 0
    assert "warn  boom could not be checked: RuntimeError: no idea\n" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [Finding(FAIL, "x is broken", "Mend it")],))
    assert doctor.run([]) == 1
    assert capsys.readouterr().out == "fail  x is broken. Mend it\n1 broken, 0 to look at, 0 fine\n"


def test_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="takes no arguments, found --fix"):
        doctor.run(["--fix"])


def test_colour_is_only_for_terminals() -> None:
    finding = Finding(WARN, "text")
    assert doctor.line(finding, coloured=False) == "warn  text"
    assert doctor.line(finding, coloured=True) == "\x1b[33mwarn\x1b[0m  text"


@pytest.mark.parametrize(
    ("declared", "installed", "fault"),
    [
        ("torch>=2.11,<2.15", "2.11.0+cu130", ""),
        ("torch>=2.11,<2.15", "2.15.0", "torch 2.15.0 is installed, longseq needs <2.15,>=2.11"),
        ("torch>=2.11,<2.15", None, "torch is not installed"),
        ("scikit-learn>=1.5", "1.9.1", ""),
        ("no-such-module>=1", "1.0", "no-such-module is installed without its module no_such_module"),
    ],
)
def test_packages_are_judged_by_presence_version_and_module(
    declared: str, installed: str | None, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretended(name: str) -> str:
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(doctor, "version", pretended)
    assert doctor.missing(Requirement(declared)) == fault


def test_base_packages_and_extras_are_told_apart() -> None:
    base = {requirement.name for requirement in doctor.requirements()}
    assert {"torch", "lightning", "numpy"} <= base and not {"onnx", "litserve", "pytest"} & base
    assert {requirement.name for requirement in doctor.requirements("serve")} == {"litserve", "python-multipart"}


def test_a_missing_extra_names_what_lacks_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "missing", lambda r: f"{r.name} is not installed" if r.name == "litserve" else "")
    findings = doctor.check_extras()
    (serve,) = [finding for finding in findings if finding.mark != OK]
    assert serve.text == "extra serve: litserve is not installed" and "pip install 'longseq[serve]'" in serve.cure
    assert not any("dev" in finding.text.split(":")[0] for finding in findings)


def test_a_missing_base_package_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "missing", lambda r: "pyfaidx is not installed" if r.name == "pyfaidx" else "")
    assert [(f.mark, f.text, f.cure) for f in doctor.check_packages() if f.mark != OK] == [
        (FAIL, "pyfaidx is not installed", "pip install 'pyfaidx>=0.9'")
    ]


def test_a_companion_of_another_build_is_a_failure_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    monkeypatch.setattr(doctor, "version", lambda name: "2.11.0+cpu")
    marks = {finding.text.split()[0]: finding for finding in doctor.check_torch_packages()}
    assert marks["torch"].mark == marks["torchaudio"].mark == OK
    assert marks["torchvision"].mark == FAIL and "operator torchvision::nms does not exist" in marks["torchvision"].text
    assert "pip install --force-reinstall torch torchaudio torchvision" in marks["torchvision"].cure


@pytest.mark.parametrize(
    ("build", "driver", "visible", "mark", "text", "cure"),
    [
        ("13.0", None, None, OK, "no NVIDIA driver", ""),
        (None, None, None, OK, "no NVIDIA driver", ""),
        (None, (13, 0), None, WARN, "this torch is CPU-only", "--force-reinstall torch"),
        ("13.0", (12, 8), None, WARN, "supports CUDA 12.8, but this torch is built for CUDA 13.0", "for CUDA 12.6"),
        ("12.6", (12, 8), "", WARN, "hides every GPU", "unset CUDA_VISIBLE_DEVICES"),
        ("12.6", (12, 8), None, WARN, "finds no GPU", "nvidia-smi"),
    ],
)
def test_why_a_gpu_is_not_used(
    build: str | None, driver: tuple[int, int] | None, visible: str | None, mark: str, text: str, cure: str
) -> None:
    finding = machine.unusable_gpu(build, driver, visible)
    assert finding.mark == mark and text in finding.text and cure in finding.cure


@pytest.mark.parametrize(
    ("capability", "compiled", "mark"),
    [
        ((9, 0), ["sm_80", "sm_90"], OK),
        ((8, 6), ["sm_80", "sm_90"], OK),
        ((12, 1), ["sm_90", "compute_90"], OK),
        ((10, 0), ["sm_80", "sm_90"], FAIL),
        ((7, 5), ["sm_75", "sm_80"], WARN),
        ((6, 1), ["sm_75", "sm_80"], FAIL),
        ((9, 0), ["sm_90a"], OK),
    ],
)
def test_gpus_are_judged_by_their_compute_capability(capability: tuple[int, int], compiled: list[str], mark: str) -> None:
    assert machine.gpu_support("GPU 0", capability, compiled).mark == mark


def test_the_drivers_version_is_read_from_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def driver_version(pointer: Any) -> int:
        pointer._obj.value = 12080
        return 0

    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=driver_version))
    assert machine.driver_cuda() == (12, 8)

    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(machine.ctypes, "CDLL", absent)
    assert machine.driver_cuda() is None


@pytest.mark.parametrize(
    ("kernels", "triton", "gpu", "compiler", "mark", "text"),
    [
        ([], "3.6.0", True, "/usr/bin/gcc", OK, "no Triton kernels are shipped"),
        (["ssd"], "3.6.0", False, None, OK, "ssd need a GPU"),
        (["ssd"], None, True, "/usr/bin/gcc", WARN, "not installed"),
        (["ssd"], "3.6.0", True, None, WARN, "no C compiler"),
        (["selective_scan", "ssd"], "3.6.0", True, "/usr/bin/gcc", OK, "Triton 3.6.0 with kernels of selective_scan, ssd"),
    ],
)
def test_kernels(kernels: list[str], triton: str | None, gpu: bool, compiler: str | None, mark: str, text: str) -> None:
    finding = machine.kernel_finding(kernels, triton, gpu, compiler)
    assert finding.mark == mark and text in finding.text


def test_a_container_with_fewer_cpus_than_threads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpu.max"
    assert machine.container_cpus(path) is None
    path.write_text("max 100000\n")
    assert machine.container_cpus(path) is None
    path.write_text("150000 100000\n")
    assert machine.container_cpus(path) == 1.5
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    monkeypatch.setattr(machine, "container_cpus", lambda _: 4.0)
    (finding,) = machine.check_cpu()
    assert finding.mark == WARN and finding.cure == "export OMP_NUM_THREADS=4"


def test_a_folder_that_cannot_be_written_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise PermissionError("Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (finding,) = machine.check_folder()
    assert finding.mark == FAIL and "not writable: PermissionError" in finding.text and "run_dir=" in finding.cure


def test_a_nearly_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * machine.GIB, total=64 * 2**20))
    assert machine.check_folder()[0].mark == WARN
    (shared,) = machine.check_shared_memory()
    assert shared.mark == WARN and "64 MiB" in shared.text and "--shm-size" in shared.cure


def test_soundfile_without_mp3_or_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soundfile.available_formats", lambda: {"WAV": "", "FLAC": "", "OGG": ""})
    (finding,) = machine.check_audio()
    assert finding.mark == WARN and "reads no MP3" in finding.text

    def absent(name: str) -> None:
        raise OSError("sndfile library not found")

    monkeypatch.setattr(machine.importlib, "import_module", absent)
    (finding,) = machine.check_audio()
    assert finding.mark == FAIL and "sndfile library not found" in finding.text


def test_the_hub_may_be_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "offline (HF_HUB_OFFLINE)" in machine.check_hub()[0].text
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    (finding,) = machine.check_hub()
    assert finding.mark == WARN and str(tmp_path) in finding.text


def test_it_answers_with_nothing_but_the_standard_library() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'torchaudio', 'torchvision', 'rich', 'packaging', 'numpy', 'soundfile', 'huggingface_hub'):\n"
        "    sys.modules[name] = None\n"
        "from longseq.pipelines.doctor import run\n"
        "sys.exit(run([]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr == ""
    assert "fail  torch cannot be imported" in done.stdout and "fail  soundfile cannot be imported" in done.stdout
