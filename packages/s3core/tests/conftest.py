"""What the tests of s3core share: clients for the local servers, and programs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s3core import S3Client, S3ClientConfig, _fetch
from servers import S3Server
from servers._script import Script

SOURCES = [str(Path(__file__).parents[1] / "src"), str(Path(__file__).parents[3] / "tests")]


@pytest.fixture
def make_client() -> Callable[..., S3Client]:
    """Make a client of a server, with further settings as keyword arguments."""

    def make(server: S3Server, **settings: Any) -> S3Client:
        if not settings.get("unsigned") and "credentials" not in settings:
            settings = {"access_key_id": server.access_key, "secret_access_key": server.secret_key, **settings}
        config = S3ClientConfig(**{"ca_bundle": server.ca_bundle, **settings})
        return S3Client(server.region, endpoint=server.endpoint, s3client_config=config)

    return make


@pytest.fixture
def by_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have single requests go by obstore, as many at a time do, in the programs of a test as well."""
    monkeypatch.setattr(_fetch, "_FEW", 0)


@pytest.fixture(params=["few", "many"])
def each_way(request: pytest.FixtureRequest) -> None:
    """Run a test once with each way in which requests go when there are few of them, and when there are many."""
    if request.param == "many":
        request.getfixturevalue("by_obstore")


@pytest.fixture
def start_script() -> Iterator[Callable[..., Script]]:
    scripts = []

    def start(*answers: list[bytes], keeps: bool = False) -> Script:
        scripts.append(Script(*answers, keeps=keeps))
        return scripts[-1]

    yield start
    for script in scripts:
        script.close()


@pytest.fixture
def start_program(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program in an interpreter of its own; `client` and `bucket` are there for it when a server is named."""
    started = []

    def start(source: str, server: S3Server | None = None, bucket: str = "", **settings: Any) -> subprocess.Popen[str]:
        program = tmp_path / f"program{len(started)}.py"
        program.write_text(
            _PREAMBLE.format(bucket=bucket, settings=settings, few=_fetch._FEW) + textwrap.dedent(source)
        )
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["PYTHONPATH"] = os.pathsep.join([*SOURCES, os.environ.get("PYTHONPATH", "")])
        if server is not None:
            environment |= server.environment()
        process = subprocess.Popen(
            [sys.executable, "-u", str(program)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_program(start_program: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Run such a program to its end and return what it printed; its failure is the test's."""

    def run(source: str, server: S3Server | None = None, bucket: str = "", *, timeout: float = 120, **more: Any) -> str:
        process = start_program(source, server, bucket, **more)
        output, errors = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"exit code {process.returncode}\n{output}\n{errors}"
        return output

    return run


_PREAMBLE = """\
import sys
modules_at_start = set(sys.modules)
import os, threading, time
from s3core import *
from s3core import S3Client, S3ClientConfig, _fetch
_fetch._FEW = {few}
bucket = {bucket!r}
def make_client(**more):
    return S3Client(s3client_config=S3ClientConfig(**{{**{settings!r}, **more}}))
def peak_kib():  # not `ru_maxrss`, which begins with that of the process before `exec`: pytest's own peak
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
"""
