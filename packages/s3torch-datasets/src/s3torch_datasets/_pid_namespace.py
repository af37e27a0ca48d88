"""Names the processes among which a process id means one process: those of a machine, or of a container on it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from pathlib import Path


def find_pid_namespace() -> str:
    """Returns 12 hexadecimal digits, the same in all processes that can tell by a process id whether another lives.

    Hosts may share their name and the number of their first namespace, so that the boot of the kernel counts too
    (https://man7.org/linux/man-pages/man7/pid_namespaces.7.html). Without `/proc`, it is the host's name alone.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
