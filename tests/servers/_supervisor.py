"""Runs one server command and ends it as soon as its owner is gone, however the owner ended.

A script of the standard library alone, started as ``python -I -S _supervisor.py OWNER_PID PATHS COMMAND...`` with a
pipe as its standard input. Three things end the command: SIGTERM, the end of standard input, and the owner's death.
The pipe alone would not do, for whatever the owner forks inherits its other end; nor would an ``atexit`` hook, which
SIGKILL skips. PATHS, separated like those of ``PATH``, are removed afterwards.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading

OWNER_CHECK_SECONDS = 0.2


def main(owner_pid: int, leftovers: list[str], command: list[str]) -> int:
    """Run the command until it ends or has to, then remove what it leaves; return its exit status."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server = _start(command)
        threading.Thread(target=_wait_for_end_of_input, args=[stop], daemon=True).start()
        while server.poll() is None and _is_alive(owner_pid) and not stop.wait(OWNER_CHECK_SECONDS):
            pass
        _kill(server)
        return server.wait()
    finally:
        for path in leftovers:
            _remove(path)


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    if sys.platform == "win32":
        return subprocess.Popen(command, stdin=subprocess.DEVNULL)
    # A group of its own, so that one signal reaches the server's children too. No thread yet: preexec_fn is safe.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_die_with_parent)


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (Linux, ``prctl(2)``)."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _wait_for_end_of_input(stop: threading.Event) -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock is fatal when the interpreter ends first
        pass
    stop.set()


def _is_alive(owner_pid: int) -> bool:
    # Windows keeps the parent's id when the parent is gone; there it is the end of input that tells, and nothing forks.
    return sys.platform == "win32" or os.getppid() == owner_pid


def _kill(server: "subprocess.Popen[bytes]") -> None:
    if sys.platform == "win32":
        server.kill()
        return
    try:
        os.killpg(server.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2].split(os.pathsep), sys.argv[3:]))
