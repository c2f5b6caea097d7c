"""Check this machine: versions, GPU and driver, extras, kernels, audio formats, disk; each fault with its cure.

usage: longseq doctor [model=<folder>]

One line per finding. With model= it looks at a run folder, a model folder or a checkpoint instead: weights in 16 bits,
padding that is pooled, a wrong length, batch norms, another tokenizer. Exits 0 unless something that is needed is broken; on
this machine it downloads nothing and changes nothing.
"""

import importlib
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from longseq.errors import ConfigError
from longseq.pipelines.machine import (
    FAIL,
    OK,
    WARN,
    Finding,
    check_audio,
    check_cpu,
    check_folder,
    check_gpu,
    check_hub,
    check_kernels,
    check_shared_memory,
    first_line,
)

# Nothing but the standard library is imported up here: this verb is for installations that are broken.
if TYPE_CHECKING:
    from packaging.requirements import Requirement

COLOURS = {OK: "32", WARN: "33", FAIL: "31"}
MODULES = {"scikit-learn": "sklearn", "biopython": "Bio", "hydra-core": "hydra"}
# For those who work on longseq itself.
NOT_FOR_USERS = ("dev",)


def run(args: Sequence[str]) -> int:
    """The verb.

    Raises:
        ConfigError: for any argument.
    """
    models = [arg.removeprefix("model=") for arg in args if arg.startswith("model=")]
    if len(models) != len(args) or len(models) > 1:
        raise ConfigError(f"longseq doctor takes no arguments, found {' '.join(args)} (model=<folder> checks that model)")
    marks = []
    for check in CHECKS if not models else (lambda: model_findings(models[0]),):
        for finding in safely(check):
            marks.append(finding.mark)
            print(line(finding, coloured=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    print(f"{marks.count(FAIL)} broken, {marks.count(WARN)} to look at, {marks.count(OK)} fine")
    return 1 if FAIL in marks else 0


def model_findings(source: str) -> list[Finding]:
    """What is to be said of a model folder; this needs torch, unlike the checks of the machine."""
    from longseq.pipelines.doctor_model import check_model

    return check_model(source)


def line(finding: Finding, *, coloured: bool) -> str:
    """A finding as it is printed."""
    mark = f"{finding.mark:<4}"
    if coloured:
        mark = f"\x1b[{COLOURS[finding.mark]}m{mark}\x1b[0m"
    return f"{mark}  {finding.text}" + (f". {finding.cure}" if finding.cure else "")


def safely(check: Callable[[], list[Finding]]) -> list[Finding]:
    """A check's findings; if it fails itself, that is the finding: a broken machine is what this verb is for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check()
    except Exception as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        return [Finding(WARN, f"{name} could not be checked: {first_line(error)}")]


# -- Python and packages


def check_python() -> list[Finding]:
    """Python's version against what longseq declares, and longseq's own."""
    from packaging.specifiers import SpecifierSet

    try:
        declared = metadata("longseq")["Requires-Python"] or ""
    except PackageNotFoundError:
        return [
            Finding(WARN, "longseq is imported, but not installed", "pip install -e . in its folder, or pip install longseq")
        ]
    found = f"Python {platform.python_version()} at {sys.executable}; longseq {version('longseq')}"
    if not SpecifierSet(declared).contains(platform.python_version(), prereleases=True):
        return [Finding(FAIL, f"{found}; longseq needs Python {declared}", "Make an environment with a newer Python")]
    return [Finding(OK, found)]


def requirements(extra: str = "") -> "list[Requirement]":
    """What longseq declares to need, always or for one extra."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in requires("longseq") or []]
    except PackageNotFoundError:
        return []
    always = [r for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})]
    if not extra:
        return always
    return [r for r in declared if r not in always and r.marker is not None and r.marker.evaluate({"extra": extra})]


def missing(requirement: "Requirement") -> str:
    """What is wrong with a package, or nothing: not installed, not importable, or outside the declared versions."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} {found} is installed, longseq needs {requirement.specifier}"
    module = MODULES.get(requirement.name, requirement.name.replace("-", "_"))
    return "" if module in sys.modules or find_spec(module) else f"{requirement.name} is installed without its module {module}"


def check_packages() -> list[Finding]:
    """Every base dependency: there, and in the declared range."""
    needed = requirements()
    faults = [
        Finding(FAIL, fault, f"pip install '{requirement.name}{requirement.specifier}'")
        for requirement in needed
        if (fault := missing(requirement))
    ]
    good = len(needed) - len(faults)
    return [*([Finding(OK, f"{good} base packages in the declared versions")] if good else []), *faults]


def check_extras() -> list[Finding]:
    """Optional packages, by what they are for."""
    try:
        extras = metadata("longseq").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return []
    findings = []
    for extra in extras:
        if extra in NOT_FOR_USERS:
            continue
        needed = requirements(extra)
        faults = [fault for requirement in needed if (fault := missing(requirement))]
        names = ", ".join(requirement.name for requirement in needed)
        if faults:
            findings.append(
                Finding(WARN, f"extra {extra}: {'; '.join(faults)}", f"If you want it: pip install 'longseq[{extra}]'")
            )
        else:
            findings.append(Finding(OK, f"extra {extra}: {names}"))
    return findings


def check_torch_packages() -> list[Finding]:
    """Whether torch and its two companions can be imported; wheels of another build break on import, not on install."""
    findings = []
    for name in ("torch", "torchaudio", "torchvision"):
        try:
            module = importlib.import_module(name)
        except Exception as error:
            findings.append(Finding(FAIL, f"{name} cannot be imported: {first_line(error)}", torch_cure(name)))
            if name == "torch":
                return findings
            continue
        findings.append(Finding(OK, f"{name} {module.__version__}"))
    return findings


def torch_cure(name: str) -> str:
    """How to get a wheel that fits torch; the ordinary ones run on CPUs too."""
    try:
        version("torch")
    except PackageNotFoundError:
        return "pip install torch torchaudio torchvision"
    reason = "It is usually a wheel of another build than torch's, such as an ordinary one beside a CPU-only torch: "
    return f"{reason if name != 'torch' else ''}pip install --force-reinstall torch torchaudio torchvision"


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    check_python,
    check_packages,
    check_torch_packages,
    check_gpu,
    check_cpu,
    check_kernels,
    check_extras,
    check_audio,
    check_hub,
    check_folder,
    check_shared_memory,
)
