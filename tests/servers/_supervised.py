"""A server as a process of its own, under the supervisor that ends it with its owner."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_TESTS = Path(__file__).resolve().parent.parent
_SUPERVISOR = Path(__file__).with_name("_supervisor.py")
_READY_CHECK_SECONDS = 0.05


class ServerStartError(RuntimeError):
    """A local server did not start; the message ends with the last lines of its log."""


class SupervisedProcess:
    """One server process, ended by `stop`, at exit of its owner, or by the owner's death.

    Servers never run inside the test process: a child forked there would inherit them half alive, and a Python with
    threads warns at every fork.

    Args:
        command: Program and arguments. A line that it prints on standard output can be had by `read_line`.
        directory: Its directory for data and log, made when missing, removed when it ends.
        environment: Variables added to those of this process, from which `AWS_*` and proxies are left out.
        leftovers: Files outside of the directory that it leaves behind, removed too.
    """

    def __init__(
        self,
        command: list[str],
        directory: Path,
        environment: Mapping[str, str] | None = None,
        leftovers: Sequence[Path] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._owner_pid = os.getpid()
        remove = os.pathsep.join(map(str, [directory, *leftovers]))
        with (directory / "server.log").open("wb") as log:
            # Readable to the end, also when the directory is gone.
            self._log = Path(log.name).open("rb")  # noqa: SIM115 - closed by stop()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SUPERVISOR), str(self._owner_pid), remove, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_clean_environment() | dict(environment or {}),
                start_new_session=True,
            )
        atexit.register(self.stop)

    @property
    def log(self) -> str:
        """The last lines of what the server wrote to its standard error."""
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-20:])

    def read_line(self, timeout_seconds: float) -> str:
        """Return the next line that the server prints on standard output.

        Raises:
            ServerStartError: When it ends, or stays silent for `timeout_seconds`.
        """
        lines: list[bytes] = []
        assert self._process.stdout is not None
        reader = threading.Thread(
            target=lambda out: lines.append(out.readline()), args=[self._process.stdout], daemon=True
        )
        reader.start()
        reader.join(timeout_seconds)
        line = lines[0].decode().strip() if lines else ""
        if not line:
            self._fail(f"printed nothing within {timeout_seconds:g} s")
        return line

    def wait_until(self, is_ready: Callable[[], bool], timeout_seconds: float) -> None:
        """Return as soon as `is_ready()` is true.

        Raises:
            ServerStartError: When the server ends first, or is not ready within `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        while not is_ready():
            if self._process.poll() is not None:
                self._fail(f"ended with status {self._process.returncode}")
            if time.monotonic() > deadline:
                self._fail(f"was not ready within {timeout_seconds:g} s")
            time.sleep(_READY_CHECK_SECONDS)

    def stop(self) -> None:
        """End the server and remove its directory; does nothing in a forked child, or a second time."""
        if os.getpid() != self._owner_pid or self._log.closed:
            return
        atexit.unregister(self.stop)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if sys.platform != "win32":
            self._process.terminate()
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)  # Windows keeps an open log

    def _fail(self, what: str) -> None:
        program = " ".join(map(str, self._process.args[6:9])) if isinstance(self._process.args, list) else "server"
        log = self.log
        self.stop()
        raise ServerStartError(f"local server `{program} ...` {what}; its log ends with:\n{log}")


def _clean_environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith("AWS_") and not name.lower().endswith("_proxy")
    }
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_TESTS), kept.get("PYTHONPATH")]))
    return kept
