"""One cell of the table: a workload of a peer, in a fresh process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks._cell import Specification
from benchmarks._peers import IS_THOROUGH
from benchmarks._target import REMOTE, Target
from benchmarks._workloads import WORKLOADS

_ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT_SECONDS = 600
_GRACE_SECONDS = 10
_SAMPLE_SECONDS = 0.2


def measure(specification: Specification, python: str = sys.executable) -> dict[str, Any]:
    """Measure it, whatever happens.

    Args:
        specification: What to measure.
        python: The interpreter to measure with, for a peer that lives in an environment of its own.

    Returns:
        The record that `benchmarks._cell.run` describes, with an `error` when the process died or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="bench-cell-") as directory:
        output, log = Path(directory, "record.json"), Path(directory, "log")
        with log.open("wb") as log_file:
            process = subprocess.Popen(
                [python, "-m", "benchmarks._cell", specification.to_json(), str(output)],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                env=_environment(specification.target),
                start_new_session=True,
            )
            status: int | None
            workload = WORKLOADS.get(specification.workload)
            memory = _MemorySampler(process.pid, is_needed=bool(workload and workload.workers))
            try:
                with memory:
                    status = process.wait(_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(process)
        lines = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        if status is None:
            return {"error": f"took more than {_TIMEOUT_SECONDS} s", "log": lines}
        if not output.exists():
            return {"error": f"ended with status {status}", "log": lines}
        record: dict[str, Any] = json.loads(output.read_text())
        if "error" in record:
            record["log"] = lines
        if memory.peak_bytes:
            record["peak_rss_bytes"] = memory.peak_bytes
        return record


class _MemorySampler:
    """The memory of a process and all below it, looked at again and again; shared pages count once.

    `getrusage` has the peak of the largest child alone, and sums of resident sizes count what a fork shares many times.
    """

    def __init__(self, pid: int, is_needed: bool) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._is_needed = is_needed and sys.platform == "linux"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _MemorySampler:
        if self._is_needed:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._is_needed:
            self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, _tree_bytes(self._pid))


def _tree_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, ProcessLookupError):  # it has just ended
        return 0
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    return own + sum(_tree_bytes(int(child)) for child in children)


def _environment(target: Target) -> dict[str, str]:
    is_local = target.setting != REMOTE
    kept = {
        name: value
        for name, value in os.environ.items()
        if not (is_local and (name.startswith("AWS_") or name.lower().endswith("_proxy")))
    }
    if target.scale.name == "quick":
        kept[IS_THOROUGH] = "1"
    # Without byte code each process would compile all that it imports, some of it while it is being measured.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    paths = [str(_ROOT / "tests"), *map(str, sorted(_ROOT.glob("packages/*/src"))), kept.get("PYTHONPATH", "")]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONWARNINGS": "ignore",
        **target.environment(),
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process, which may abort its uploads before, and whatever it left running."""
    try:
        if process.poll() is None:
            _signal(process, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)
    finally:  # at once, where another Ctrl-C comes while it may
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the process and all that it started, as a terminal does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
