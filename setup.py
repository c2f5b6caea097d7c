"""Maps the five top-level folders onto one import package, `longseq`; everything else stands in pyproject.toml."""

from setuptools import find_namespace_packages, setup

FOLDERS = ("domains", "pipelines", "configs")

packages = find_namespace_packages(include=["longseq", "longseq.*"])
for folder in FOLDERS:
    packages += [f"longseq.{name}" for name in find_namespace_packages(include=[folder, f"{folder}.*"])]

setup(packages=packages, package_dir={f"longseq.{folder}": folder for folder in FOLDERS})
