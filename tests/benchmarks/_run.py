"""A run: prepares the data, measures every cell of the table round by round, and collects the records."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

import s3core
from benchmarks import _server
from benchmarks._bucket import claim, mark, remove_outputs
from benchmarks._cell import Specification
from benchmarks._data import prepare, prepare_local
from benchmarks._measure import measure
from benchmarks._scale import Scale
from benchmarks._target import REMOTE, Target
from benchmarks._workloads import WORKLOADS

_PACKAGES: tuple[str, ...] = (
    "torch",
    "boto3",
    "s3transfer",
    "obstore",
    "s3torchconnector",
    "s3fs",
    "smart_open",
    "webdataset",
)
_PACKAGES += ("mosaicml-streaming", "litdata", "runai-model-streamer", "lightning", "safetensors", "uvloop")

_WITH_OWN_SHARDS = ("mosaicml_streaming", "litdata")  # instead of tar files
_WORTH_A_SURVEY = 3  # workloads


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        scale: How much data.
        rounds: How often each cell is measured.
        settings: Of the local server; `remote` for a bucket that there is.
        peers: Names, in the order in which they take turns; with each round another one begins.
        workloads: Names, in the order in which they are measured.
        remote: The bucket, for the setting `remote`.
        pythons: Interpreters of peers that live in an environment of their own.
    """

    scale: Scale
    rounds: int
    settings: Sequence[str]
    peers: Sequence[str]
    workloads: Sequence[str]
    remote: Target | None = None
    pythons: Mapping[str, str] = field(default_factory=dict)

    def python(self, peer: str) -> str:
        """The interpreter to measure a peer with."""
        return self.pythons.get(peer, sys.executable)


def describe(plan: Plan) -> dict[str, Any]:
    """What is known before: the machine, the versions, the store and a list for the records, for JSON."""
    return {
        "made": _now(),
        "scale": plan.scale.name,
        "rounds": plan.rounds,
        "store": None if plan.remote is None else _store(plan.remote),
        "latency_seconds": _server.LATENCY_SECONDS,
        "pace_bytes_per_second": _server.PACE_BYTES_PER_SECOND,
        "machine": _machine(),
        "versions": _versions(),
        "records": [],
    }


@dataclass(frozen=True, slots=True)
class Progress:
    """What becomes of a run while it goes on.

    Attributes:
        records: Takes one record for each cell and round.
        report: Called with a line now and then.
        keep: Called when a workload is over.
    """

    records: list[dict[str, Any]]
    report: Callable[[str], object]
    keep: Callable[[], object]


def run(plan: Plan, progress: Progress) -> None:
    """Carry out a plan.

    Raises:
        ForeignDataError: When there are objects of others where data is to be put.
    """
    with tempfile.TemporaryDirectory(prefix="bench-local-") as local_directory:
        for setting in plan.settings:
            with ExitStack() as stack:
                ports: tuple[int, ...] = ()
                complete: set[str] = set()
                if setting == REMOTE:
                    assert plan.remote is not None
                    target = replace(plan.remote, local_directory=local_directory)
                    complete = claim(target)
                    stack.callback(_clean, target, progress)
                else:
                    server, target = _server.start(setting, plan.scale, local_directory)
                    stack.enter_context(server)
                    ports = server.control_ports
                _run_setting(plan, target, ports, complete, progress)


def _clean(target: Target, progress: Progress) -> None:
    try:
        remove_outputs(target)
    except (BotoCoreError, ClientError, OSError) as error:  # no reason to lose what was measured
        progress.report(f"could not remove all that was written under {target.uri('')}: {error}")


def _run_setting(plan: Plan, target: Target, ports: tuple[int, ...], complete: set[str], progress: Progress) -> None:
    def measure_cell(peer: str, workload: str) -> dict[str, Any]:
        return measure(Specification(peer, workload, target, ports), plan.python(peer))

    # Records of cells for which no process need be started, by peer and workload.
    unable: dict[str, dict[str, dict[str, Any]]] = {peer: {} for peer in plan.peers}
    if len(plan.workloads) > _WORTH_A_SURVEY:
        for peer in plan.peers:
            unable[peer] = _read_survey(measure_cell(peer, "survey"))
    is_cold = plan.rounds > 1  # with one round nobody compares
    for workload in (WORKLOADS[name] for name in plan.workloads):
        _prepare(plan, target, workload.data, progress, complete)
        if "tar" in workload.data:
            for peer, record in _prepare_own(plan, target, progress, complete).items():
                unable[peer][workload.name] = record
        if is_cold:  # whoever is the first after a server's start is slower, and not kept
            is_cold = "rate" not in measure_cell(plan.peers[0], workload.name)
        # Round by round, so that what slows the machine for a while slows all peers, and another one begins each time.
        for number in range(plan.rounds):
            first = number % len(plan.peers)
            for peer in (*plan.peers[first:], *plan.peers[:first]):
                record = unable[peer].get(workload.name) or measure_cell(peer, workload.name)
                if "cannot" in record:
                    unable[peer][workload.name] = record
                identity = {"setting": target.setting, "workload": workload.name, "peer": peer, "round": number}
                progress.records.append({**identity, "made": _now(), **record})
                progress.report(f"{target.setting}: {workload.name}: {peer}: {_say(record, workload.unit)}")
            progress.keep()


def _prepare(plan: Plan, target: Target, data: Sequence[str], progress: Progress, complete: set[str]) -> None:
    """Put data where peers read it, but for what is complete."""
    for name in data:
        if "local_disk" in plan.peers:
            prepare_local(target, name)
        if name not in complete:
            progress.report(f"{target.setting}: preparing {name}")
            prepare(target, name, is_generating=target.setting != REMOTE)
            _note(target, complete, name)


def _prepare_own(plan: Plan, target: Target, progress: Progress, complete: set[str]) -> dict[str, dict[str, Any]]:
    """Let peers write the samples in formats of their own, and return the records of those that could not."""
    failed = {}
    for peer in plan.peers:
        name = f"own-shards/{peer}"
        if peer in _WITH_OWN_SHARDS and name not in complete:
            progress.report(f"{target.setting}: preparing {name}")
            record = measure(Specification(peer, "prepare", target), plan.python(peer))
            if record:
                failed[peer] = record
            else:
                _note(target, complete, name)
    return failed


def _note(target: Target, complete: set[str], name: str) -> None:
    complete.add(name)
    if target.setting == REMOTE:
        mark(target, complete)


def _read_survey(survey: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The records of all that a peer can't do, which is everything where it can't even be loaded."""
    if "cannot" in survey or "error" in survey:
        return {workload: dict(survey) for workload in WORKLOADS}
    return {workload: {"cannot": reason} for workload, reason in survey.items() if reason}


def _say(record: Mapping[str, Any], unit: str) -> str:
    for name in ("cannot", "error"):
        if name in record:
            return f"{name}: {record[name]}"
    return f"{record['rate']:,.1f} {unit}/s"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> str:
    """What git has checked out, in brackets, or nothing where this is no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        described = subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" ({described})"


def _store(target: Target) -> dict[str, str | None]:
    return {"uri": target.uri(""), "region": target.region, "endpoint": target.endpoint}


def _machine() -> dict[str, Any]:
    model = platform.processor()
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "system": platform.platform(),
        "processor": model,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }


def _versions() -> dict[str, str]:
    found = {"ours": s3core.__version__ + _commit()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
