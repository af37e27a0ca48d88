"""The hosted workflows parse, and cover the platforms and versions that the packages promise."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(name: str) -> dict[str, Any]:
    workflow: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    return workflow


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_there_are_three_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "docs", "release"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_job_has_a_limit_and_only_the_rights_it_needs(path: Path) -> None:
    workflow = load(path.stem)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 60, name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_step_puts_an_event_field_into_a_shell_line(path: Path) -> None:
    for step in steps(load(path.stem)):
        assert "${{" not in step.get("run", ""), step


def test_the_tests_run_on_every_promised_python_and_platform() -> None:
    matrix = load("ci")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    for project in ROOT.glob("packages/*/pyproject.toml"):
        classifiers = tomllib.loads(project.read_text())["project"]["classifiers"]
        promised = [c.rpartition(" ")[2] for c in classifiers if re.fullmatch(r".*Python :: 3\.\d+", c)]
        assert matrix["python"] == promised, project


def test_the_lowest_torch_of_the_tests_is_the_one_the_packages_promise() -> None:
    included = load("ci")["jobs"]["torch"]["strategy"]["matrix"]["include"]
    lowest = next(entry for entry in included if entry["torch"] == "lowest")
    project = tomllib.loads((ROOT / "packages/s3torch-datasets/pyproject.toml").read_text())["project"]
    floor = next(r for r in project["dependencies"] if r.startswith("torch")).removeprefix("torch>=")
    assert f"torch=={floor}.*" in lowest["constraints"].split()


def test_the_lowest_lightning_of_the_tests_is_the_one_the_package_promises() -> None:
    included = load("ci")["jobs"]["torch"]["strategy"]["matrix"]["include"]
    constraints = next(entry for entry in included if entry["torch"] == "lowest")["constraints"].split()
    project = tomllib.loads((ROOT / "packages/s3torch-lightning/pyproject.toml").read_text())["project"]
    for name, (requirement,) in project["optional-dependencies"].items():
        assert requirement.replace(">=", "==") + ".*" in constraints, name


def test_the_commands_of_the_workflows_exist() -> None:
    environments = tomllib.loads((ROOT / "hatch.toml").read_text())["envs"]
    for path in WORKFLOWS:
        for step in steps(load(path.stem)):
            for command in re.findall(r"\bhatch run (\S+)", step.get("run", "")):
                environment, _, script = command.rpartition(":")
                if script != "python":
                    assert script in environments[environment or "default"]["scripts"], command


def test_publishing_needs_no_stored_token() -> None:
    publish = load("release")["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text()
