"""What the documentation shows is what the packages do: its code parses, its names exist, its examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from servers import S3Server

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/*.md")])
EXAMPLES = sorted(ROOT.glob("docs/examples/**/*.py"))
OURS = {path.parent.name for path in ROOT.glob("packages/*/src/*/__init__.py")}
MODULES = sorted(
    ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
    for source in ROOT.glob("packages/*/src")
    for path in source.rglob("*.py")
)


def python_blocks(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each Python block of a page; included snippets are tested as examples."""
    text = page.read_text()
    for match in re.finditer(r"^( *)```(?:python|py)\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        if "--8<--" not in match[2]:
            lines = [line.removeprefix(match[1]) for line in match[2].splitlines()]
            yield text[: match.start()].count("\n") + 1, "\n".join(lines)


BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}:{line}") for page in PAGES for line, block in python_blocks(page)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_each_block_of_code_parses_and_imports_names_that_exist(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OURS:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_hold(name: str) -> None:
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for example in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name), name):
        runner.run(example, out=report.write)
    assert runner.summarize(verbose=False).failed == 0, report.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("prefix", ["/quick", ""])
def test_the_quickstart_runs_below_a_prefix_and_in_a_bucket_of_its_own(
    moto_server: S3Server, bucket: str, prefix: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "docs/examples/quickstart.py", f"s3://{bucket}{prefix}", moto_server.region],
        cwd=ROOT,
        env=os.environ | moto_server.environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"loaded s3://{bucket}{prefix}/model.pt" in done.stdout


@pytest.mark.timeout(500)  # two jobs of two ranks with a worker each
def test_a_job_that_is_stopped_and_run_again_trains_on_every_object_once_an_epoch(
    moto_server: S3Server, bucket: str
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    seen: dict[tuple[str, str], list[str]] = {}
    for last_step in (["3"], []):  # an epoch has four steps, and there is a checkpoint after the second
        done = subprocess.run(
            [*torchrun, "docs/examples/resume.py", f"s3://{bucket}/job", moto_server.region, *last_step],
            cwd=ROOT,
            env=os.environ | moto_server.environment() | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        ran: dict[tuple[str, str], list[str]] = {}
        for epoch, step, numbers in re.findall(r"epoch (\d+) step (\d+): (\d+(?: \d+)*)", done.stdout):
            ran.setdefault((epoch, step), []).extend(numbers.split())
        # The third step is done again, with the same objects.
        assert all(sorted(seen[step]) == sorted(ran[step]) for step in seen.keys() & ran.keys())
        seen |= ran
    assert len(seen) == 8
    for epoch in ("0", "1"):
        numbers = [number for (of, _), some in seen.items() if of == epoch for number in some]
        assert sorted(numbers) == [f"{number:02}" for number in range(32)]


@pytest.mark.parametrize(
    "example", [path for path in EXAMPLES if path.name != "train_digits.py"], ids=lambda path: path.name
)
def test_an_example_without_arguments_says_which_it_takes(
    example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [example.name])
    with pytest.raises(SystemExit):  # in this process, because to import Lightning takes seconds
        runpy.run_path(str(example), run_name="__main__")
    assert "the following arguments are required: uri, region" in capsys.readouterr().err


def test_every_example_is_run_by_a_test() -> None:
    tests = [path.read_text() for path in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("packages/*/tests/**/*.py")]]
    assert [path.name for path in EXAMPLES if not any(path.name in test for test in tests)] == []
