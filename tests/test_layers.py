"""The packages import one way only, do nothing at import, and are complete as distributions."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the ground up: a package may import itself and what stands before it.
LAYERS = ["s3core", "s3torch_datasets", "s3torch_checkpoint", "s3torch_lightning"]

# Libraries that one package alone may name, at the top of a module or within a function.
ONLY_IN = {
    "obstore": {"s3core"},
    "boto3": {"s3core"},
    "botocore": {"s3core"},
    "awscrt": {"s3core"},
    "lightning": {"s3torch_lightning"},
    "pytorch_lightning": {"s3torch_lightning"},
}
NEVER_IN = {"s3core": {"torch", "numpy", "tqdm"}}


@dataclass(frozen=True, slots=True)
class Package:
    """One package of the monorepo: where it lies and what its import name is."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def import_name(self) -> str:
        return self.name.replace("-", "_")

    @property
    def source(self) -> Path:
        return self.folder / "src" / self.import_name

    @property
    def project(self) -> dict[str, Any]:
        project: dict[str, Any] = tomllib.loads((self.folder / "pyproject.toml").read_text())["project"]
        return project

    @property
    def version(self) -> str:
        match = re.search(r'^__version__ = "(.+)"$', (self.source / "__about__.py").read_text(), re.MULTILINE)
        assert match is not None, f"{self.name} has no __version__ in __about__.py"
        return match.group(1)


PACKAGES = [Package(path.parent) for path in sorted(ROOT.glob("packages/*/pyproject.toml"))]
each_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the top-level name of each absolute import of a module, also of those within functions."""
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.partition(".")[0]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name | ast.Attribute)
            and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr) in {"import_module", "__import__"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        ):
            yield node.lineno, node.args[0].value.partition(".")[0]


def imports_of(package: Package) -> list[tuple[str, str]]:
    """Return each import of a package as (file:line, name)."""
    return [
        (f"{path.relative_to(ROOT)}:{line}", name)
        for path in sorted(package.source.rglob("*.py"))
        for line, name in imported_names(path)
    ]


@cache  # several tests ask for the same import, and one of torch takes seconds
def after_import(statement: str) -> dict[str, list[str]]:
    """Run a statement in a fresh interpreter; return the modules loaded and the threads running afterwards."""
    program = (
        f"import sys, threading, json\n{statement}\n"
        "print(json.dumps({'modules': sorted(sys.modules), 'threads': [t.name for t in threading.enumerate()]}))"
    )
    paths = [str(package.folder / "src") for package in PACKAGES]
    # Neither -P nor PYTHONPATH alone finds the packages both where they are installed and where they are not.
    bootstrap = f"import sys; sys.path[:0] = {paths!r}\n{program}"
    done = subprocess.run([sys.executable, "-c", bootstrap], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_there_are_packages_and_each_has_its_layer() -> None:
    assert [package.import_name for package in PACKAGES]
    assert {package.import_name for package in PACKAGES} <= set(LAYERS)


@each_package
def test_imports_between_packages_point_down(package: Package) -> None:
    above = set(LAYERS[LAYERS.index(package.import_name) + 1 :])
    assert [(where, name) for where, name in imports_of(package) if name in above] == []


@each_package
def test_no_package_uses_what_is_private_to_another(package: Package) -> None:
    siblings = [name for name in LAYERS if name != package.import_name]
    private = re.compile(rf"^\s*(?:from|import)\s+(?:{'|'.join(siblings)})(?:\.\w+)*\._.*", re.MULTILINE)
    found = {str(path.relative_to(ROOT)): private.findall(path.read_text()) for path in package.source.rglob("*.py")}
    assert {where: lines for where, lines in found.items() if lines} == {}


@each_package
def test_a_library_is_named_only_by_the_package_that_owns_it(package: Package) -> None:
    foreign = {name for name, owners in ONLY_IN.items() if package.import_name not in owners}
    foreign |= NEVER_IN.get(package.import_name, set())
    assert [(where, name) for where, name in imports_of(package) if name in foreign] == []


@each_package
def test_every_third_party_import_is_a_declared_dependency(package: Package) -> None:
    project = package.project
    requirements = list(project["dependencies"])
    for extra in project.get("optional-dependencies", {}).values():
        requirements += extra
    declared = {re.split(r"[^A-Za-z0-9_-]", requirement)[0].lower().replace("-", "_") for requirement in requirements}
    declared |= {"botocore"} if "boto3" in declared else set()
    # What a sibling promises to bring along need not be said twice.
    for sibling in PACKAGES:
        if sibling.import_name in declared:
            declared |= {re.split(r"[^A-Za-z0-9_-]", r)[0].replace("-", "_") for r in sibling.project["dependencies"]}
    known = declared | set(sys.stdlib_module_names) | {package.import_name}
    assert [(where, name) for where, name in imports_of(package) if name not in known] == []


def test_relative_imports_stay_inside_their_package() -> None:
    for package in PACKAGES:
        for path in package.source.rglob("*.py"):
            depth = len(path.relative_to(package.source).parts)
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    assert node.level <= depth, f"{path}:{node.lineno} reaches out of {package.import_name}"


def test_importing_s3core_loads_neither_torch_nor_a_native_library_nor_an_sdk() -> None:
    heavy = {"torch", "numpy", "obstore", "boto3", "botocore", "awscrt", "tqdm"}
    loaded = {name.partition(".")[0] for name in after_import("import s3core")["modules"]}
    assert loaded & heavy == set()


@each_package
def test_nothing_at_import_starts_a_thread(package: Package) -> None:
    assert after_import(f"import {package.import_name}")["threads"] == ["MainThread"]


@each_package
def test_importing_a_package_loads_no_native_client_and_no_sdk(package: Package) -> None:
    loaded = {name.partition(".")[0] for name in after_import(f"import {package.import_name}")["modules"]}
    assert loaded & {"obstore", "boto3", "botocore"} == set()


@each_package
def test_each_package_is_complete(package: Package) -> None:
    for file in ["README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"]:
        assert (package.folder / file).is_file(), f"{package.name} lacks {file}"
    for file in ["__init__.py", "__about__.py", "py.typed"]:
        assert (package.source / file).is_file(), f"{package.name} lacks {file}"
    assert (package.folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@each_package
def test_the_changelog_speaks_of_the_version(package: Package) -> None:
    headings = re.findall(r"^## (\S+)", (package.folder / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == package.version


@each_package
def test_the_version_is_said_in_one_place(package: Package) -> None:
    assert package.project["dynamic"] == ["version"]
    assert after_import(f"import {package.import_name} as p; assert p.__version__ == {package.version!r}")


@each_package
def test_wheels_never_pin_a_version(package: Package) -> None:
    siblings = {other.name for other in PACKAGES}
    for requirement in package.project["dependencies"]:
        match = re.match(r"([A-Za-z0-9_.-]+?)(?:\[.*\])?([<>=!~].*)?$", requirement)
        assert match is not None, requirement
        name, specifiers = match.groups()
        if name in siblings:
            version = next(other.version for other in PACKAGES if other.name == name)
            major, minor = version.split(".")[:2]
            assert specifiers == f">={major}.{minor},<{major}.{int(minor) + 1}", requirement
        else:
            assert specifiers is not None, f"{requirement} has no lower bound"
            # Known bad versions may be left out; an upper bound would fight with the user's other packages.
            assert re.fullmatch(r">=[0-9.]+(,!=[0-9.*]+)*", specifiers), f"{requirement} bounds more than from below"


def test_torch_is_pinned_for_this_repository_alone() -> None:
    assert (ROOT / "constraints.txt").read_text().splitlines()[-1].startswith("torch==")
    floors = {r for package in PACKAGES for r in package.project["dependencies"] if r.startswith("torch")}
    assert floors <= {"torch>=2.4"}


def test_modules_stay_small_enough_to_read() -> None:
    # 300 lines is the aim; a module of twice that holds more than one idea.
    long = {
        str(path.relative_to(ROOT)): lines
        for package in PACKAGES
        for path in package.source.rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 600
    }
    assert long == {}
