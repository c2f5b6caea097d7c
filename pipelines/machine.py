"""What `longseq doctor` says of the machine: GPUs and drivers, CPUs, kernels, folders, audio formats, the cache."""

import ctypes
import importlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

OK, WARN, FAIL = "ok", "warn", "fail"
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the answer.

    Attributes:
        mark: `ok`, `warn` (works, but not all or not well) or `fail` (something needed is broken).
        text: what was found.
        cure: what to do about it; empty if nothing.
    """

    mark: str
    text: str
    cure: str = ""


def first_line(error: BaseException) -> str:
    """An error's kind and the first line of its message."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


# -- hardware


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the NVIDIA driver supports; None without a driver. Starts no CUDA context."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        number = ctypes.c_int(0)
        if library.cuDriverGetVersion(ctypes.byref(number)) == 0 and number.value:
            return number.value // 1000, number.value % 1000 // 10
    return None


def check_gpu() -> list[Finding]:
    """GPUs, and whether torch's CUDA build and the driver go together."""
    import torch

    if torch.cuda.is_available():
        return [gpu_finding(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return [Finding(OK, "Apple GPU through MPS")]
    return [unusable_gpu(torch.version.cuda, driver_cuda(), os.environ.get("CUDA_VISIBLE_DEVICES"))]


def unusable_gpu(build: str | None, driver: tuple[int, int] | None, visible: str | None) -> Finding:
    """Why there is no GPU to use.

    Args:
        build: the CUDA version that torch was built for; None for a CPU-only wheel.
        driver: the newest that the driver supports; None without a driver.
        visible: the variable CUDA_VISIBLE_DEVICES.
    """
    if driver is None:
        return Finding(OK, "no NVIDIA driver: longseq runs on the CPU")
    supports = f"the NVIDIA driver supports CUDA {driver[0]}.{driver[1]}"
    install = "pip install --force-reinstall torch torchaudio torchvision"
    if driver[0] < 13:
        packages = "torch, torchaudio and torchvision"
        install = f"install the builds of {packages} for CUDA 12.6 (pytorch.org, Get Started, gives the command)"
    if build is None:
        return Finding(WARN, f"{supports}, but this torch is CPU-only: GPUs are not used", install)
    if int(build.split(".")[0]) > driver[0]:
        text = f"{supports}, but this torch is built for CUDA {build}: GPUs are not used"
        return Finding(WARN, text, f"Update the driver, or {install}")
    if visible is not None and visible.strip() in ("", "-1"):
        return Finding(WARN, f"{supports}, but CUDA_VISIBLE_DEVICES={visible!r} hides every GPU", "unset CUDA_VISIBLE_DEVICES")
    return Finding(WARN, f"{supports} and torch is built for CUDA {build}, but it finds no GPU", "See what nvidia-smi says")


def gpu_finding(index: int) -> Finding:
    """One GPU: name, memory, compute capability, bf16, and whether torch has code for it."""
    import torch

    found = torch.cuda.get_device_properties(index)
    text = f"GPU {index}: {found.name}, {found.total_memory / GIB:.0f} GiB, compute capability {found.major}.{found.minor}"
    return gpu_support(text, (found.major, found.minor), torch.cuda.get_arch_list())


def gpu_support(text: str, capability: tuple[int, int], compiled: Sequence[str]) -> Finding:
    """The finding on a GPU of that capability with a torch compiled for these architectures (`sm_90`, `compute_90`)."""
    major, minor = capability
    numbers = [
        (kind, int("".join(c for c in number if c.isdigit()))) for kind, _, number in (a.partition("_") for a in compiled)
    ]
    runs = any(
        (kind == "sm" and number // 10 == major and number % 10 <= minor)
        or (kind == "compute" and number <= 10 * major + minor)
        for kind, number in numbers
    )
    if compiled and not runs:
        return Finding(
            FAIL, f"{text}: this torch has no code for it ({', '.join(compiled)})", "Install a torch that supports it"
        )
    if major < 8:
        return Finding(WARN, f"{text}, no bf16", "Set trainer.precision=16-mixed or 32-true")
    return Finding(OK, f"{text}, bf16")


def check_cpu() -> list[Finding]:
    """Threads, and whether a container allows fewer processors than torch will start threads for."""
    import torch

    threads = torch.get_num_threads()
    text = f"{os.cpu_count()} CPUs, torch uses {threads} threads"
    allowed = container_cpus(Path("/sys/fs/cgroup/cpu.max"))
    if allowed is not None and threads > max(1.0, allowed):
        cure = f"export OMP_NUM_THREADS={max(1, int(allowed))}"
        return [Finding(WARN, f"{text}, but the container may use only {allowed:g} CPUs", cure)]
    return [Finding(OK, text)]


def container_cpus(path: Path) -> float | None:
    """The number of CPUs that a container's quota allows; None without one."""
    if not path.is_file():
        return None
    quota, _, period = path.read_text().strip().partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def check_kernels() -> list[Finding]:
    """Triton, and the operators that have a kernel in it."""
    import torch

    spec = find_spec("longseq.ops")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    kernels = sorted(path.parent.name for folder in folders for path in Path(folder).glob("*/triton.py"))
    compiler = shutil.which(os.environ.get("CC", "")) or shutil.which("gcc") or shutil.which("clang")
    installed = importlib.import_module("triton").__version__ if find_spec("triton") else None
    return [kernel_finding(kernels, installed, torch.cuda.is_available(), compiler)]


def kernel_finding(kernels: Sequence[str], triton: str | None, gpu: bool, compiler: str | None) -> Finding:
    """Whether the kernels can be used.

    Args:
        kernels: operators that have one.
        triton: its version; None if it is not installed.
        gpu: whether torch sees one.
        compiler: the C compiler that Triton builds its launchers with; None without one.
    """
    if not kernels:
        return Finding(
            OK, f"Triton {triton or 'is not installed'}; no Triton kernels are shipped, all operators run in PyTorch"
        )
    names = ", ".join(kernels)
    if not gpu:
        return Finding(OK, f"Triton kernels of {names} need a GPU; without one the operators run in PyTorch")
    if triton is None:
        return Finding(WARN, f"Triton is not installed, its kernels of {names} are not used", "pip install triton")
    if compiler is None:
        return Finding(WARN, f"Triton {triton} finds no C compiler for its kernels of {names}", "Install gcc, or set CC")
    return Finding(OK, f"Triton {triton} with kernels of {names}")


# -- files


def check_folder() -> list[Finding]:
    """Whether runs can be written here, and how much fits."""
    here = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=here):
            pass
    except OSError as error:
        return [Finding(FAIL, f"{here} is not writable: {first_line(error)}", "Work in another folder, or set run_dir=")]
    free = shutil.disk_usage(here).free / GIB
    text = f"{here} is writable, {free:,.0f} GiB free"
    return (
        [Finding(WARN, text, "Checkpoints and token caches need room; set run_dir= on a larger disk")]
        if free < 5
        else [Finding(OK, text)]
    )


def check_shared_memory() -> list[Finding]:
    """The memory through which loader processes hand over their batches; containers often have 64 MB."""
    path = Path("/dev/shm")
    if not path.is_dir():
        return []
    size = shutil.disk_usage(path).total / GIB
    if size < 1:
        return [
            Finding(
                WARN,
                f"/dev/shm has {size * 1024:.0f} MiB",
                "With data.num_workers above 0, start the container with --shm-size=8g",
            )
        ]
    return [Finding(OK, f"/dev/shm has {size:.0f} GiB for loader processes")]


def check_audio() -> list[Finding]:
    """What soundfile reads."""
    cure = "pip install --force-reinstall soundfile brings its own libsndfile"
    try:
        soundfile = importlib.import_module("soundfile")
    except Exception as error:
        return [Finding(FAIL, f"soundfile cannot be imported: {first_line(error)}", cure)]
    formats = soundfile.available_formats()
    lacking = [name for name in ("WAV", "FLAC", "OGG", "MP3") if name not in formats]
    text = f"soundfile {soundfile.__version__} with libsndfile {soundfile.__libsndfile_version__}"
    if lacking:
        return [Finding(WARN, f"{text} reads no {', '.join(lacking)}", cure)]
    return [Finding(OK, f"{text} reads wav, flac, ogg and mp3")]


def check_hub() -> list[Finding]:
    """Where published checkpoints are kept, and whether they may be downloaded; asks no server."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return [
            Finding(WARN, f"published checkpoints cannot be kept in {cache}: not writable", "Set HF_HOME to a folder that is")
        ]
    if constants.HF_HUB_OFFLINE:
        return [Finding(OK, f"offline (HF_HUB_OFFLINE): published checkpoints only from {cache}")]
    return [Finding(OK, f"published checkpoints are kept in {cache}; without a network, set HF_HUB_OFFLINE=1")]
