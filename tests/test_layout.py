"""The layers of the package: who may import whom, read from the files' import statements."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("lightning", "hydra", "omegaconf", "pandas", "torchmetrics")
CORE_FILES = sorted((ROOT / "longseq").glob("*.py"))
DOMAINS = sorted(path.name for path in (ROOT / "domains").iterdir() if (path / "__init__.py").is_file())


def imports(path: Path) -> set[str]:
    """Every module that a file imports, with the names of `from` imports appended."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if within(name, "longseq")}


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("longseq/ops"), ids=str)
def test_ops_import_only_ops(path: Path) -> None:
    assert all(within(name, "longseq.ops") or name == "longseq" for name in ours(path)), ours(path)
    if not path.name.startswith("triton"):
        assert not any(within(name, "triton") for name in imports(path))


@pytest.mark.parametrize("path", files("longseq/layers"), ids=str)
def test_layers_import_ops_layers_and_the_contract(path: Path) -> None:
    allowed = ("longseq.ops", "longseq.layers", "longseq.backbone")
    assert all(within(name, *allowed) or name == "longseq" for name in ours(path)), ours(path)


@pytest.mark.parametrize("path", files("longseq/backbones"), ids=str)
def test_backbones_do_not_import_each_other_or_what_is_above(path: Path) -> None:
    allowed = ("longseq.registry", "longseq.backbone", "longseq.layers", "longseq.ops", "longseq.errors")
    assert all(within(name, *allowed) or name == "longseq" for name in ours(path)), ours(path)


@pytest.mark.parametrize("path", [p for p in files("longseq") if p.name != "__init__.py"], ids=str)
def test_the_core_needs_no_lightning_hydra_or_pandas(path: Path) -> None:
    found = imports(path)
    assert not any(within(name, *HEAVY) for name in found)
    assert not any(within(name, "longseq.domains", "longseq.pipelines") for name in found)


@pytest.mark.parametrize("path", files("domains"), ids=str)
def test_a_domain_imports_no_other_domain_no_pipeline_and_no_hydra(path: Path) -> None:
    found = imports(path)
    assert not any(within(name, "longseq.pipelines", "hydra", "omegaconf") for name in found)
    own = path.relative_to(ROOT / "domains").parts[0]
    others = [f"longseq.domains.{name}" for name in DOMAINS if name != own]
    assert not any(within(name, *others) for name in found)


@pytest.mark.parametrize("path", files("pipelines"), ids=str)
def test_pipelines_reach_domains_through_configs(path: Path) -> None:
    assert not any(within(name, *(f"longseq.domains.{domain}" for domain in DOMAINS)) for name in imports(path))


def test_every_verb_has_a_description() -> None:
    from longseq.pipelines.cli import verbs

    assert all(summary for summary in verbs().values())


def test_configs_hold_yaml_only() -> None:
    others = [p for p in (ROOT / "configs").rglob("*") if p.is_file() and p.suffix not in (".yaml", ".pyc")]
    assert [p.name for p in others] == ["__init__.py"]
