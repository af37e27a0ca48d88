"""What is measured inside of a process, between the start and the end of a piece of work."""

from __future__ import annotations

import contextlib
import gc
import resource
import time
from collections import Counter
from dataclasses import dataclass, field

from servers.counting import send_command

_COUNTERS = ("connections", "bytes_sent", "bytes_received", "most_in_flight")


@dataclass(slots=True)
class Meter:
    """Wall time, CPU time and progress of one piece of work.

    Attributes:
        units: How many units were done.
        needed_bytes: How many bytes the work needed to move.
        first_seconds: From the start to the first progress.
        seconds: From the start to the last progress, or to the end when there was none.
        cpu_seconds: Of this process and of its children that have ended.
        intervals: Seconds between one progress and the next.
        peak_rss_bytes: The most memory that was resident from the start to the end.
        control_ports: Of the local server's processes.
        counted: What the local server counted from the start to the end.
    """

    units: int = 0
    needed_bytes: int = 0
    first_seconds: float | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    intervals: list[float] = field(default_factory=list)
    peak_rss_bytes: int = 0
    control_ports: tuple[int, ...] = ()
    counted: dict[str, int] = field(default_factory=dict)
    _start: float = 0.0
    _last: float = 0.0
    _cpu_start: float = 0.0

    def start(self) -> None:
        """Begin to measure.

        What the imports left is collected before: a full collection takes 80 ms once torch is loaded, and strikes
        whoever makes Python objects next. `timeit` turns the collector off for the same reason
        (https://docs.python.org/3/library/timeit.html#timeit.Timer.timeit); here it stays on.
        """
        gc.collect()
        for port in self.control_ports:
            send_command(port, "clear")
        _reset_peak()
        self._cpu_start = _cpu_seconds()
        self._start = self._last = time.perf_counter()

    def tick(self, units: int, needed_bytes: int) -> None:
        """Note progress."""
        now = time.perf_counter()
        if self.first_seconds is None:
            self.first_seconds = now - self._start
        self.intervals.append(now - self._last)
        self._last = now
        self.units += units
        self.needed_bytes += needed_bytes

    @property
    def elapsed_seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start

    def stop(self) -> None:
        """End to measure: wall time ends with the last progress, CPU time now; children must have ended."""
        self.seconds = (self._last if self.intervals else time.perf_counter()) - self._start
        self.cpu_seconds = _cpu_seconds() - self._cpu_start
        self.peak_rss_bytes = peak_rss_bytes()
        self.counted = self._read_counters()

    def _read_counters(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for port in self.control_ports:
            found = send_command(port, "counters")
            counts["requests"] += sum(found["operations"].values())
            counts.update({name: found[name] for name in _COUNTERS})
        return dict(counts)


def peak_rss_bytes() -> int:
    """The most memory that this process had since it began, or since the last start of a `Meter`.

    Not `ru_maxrss`, which on Linux begins with that of the process before `exec`.
    """
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except FileNotFoundError:  # macOS, in bytes there
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _reset_peak() -> None:
    """Forget what was needed to prepare the work, where the system can."""
    # https://www.kernel.org/doc/html/latest/filesystems/proc.html
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
