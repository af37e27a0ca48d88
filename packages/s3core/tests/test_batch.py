"""Jobs on a pool: how many at a time, and what an error stops."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3core._batch import run_all
from s3core._plan import READ_PARTS, plan_bytes_in_flight
from s3core._pool import Pool


class Gauge:
    """How many bytes are on their way, and were at most."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0

    def add(self, size: int) -> None:
        with self.lock:
            self.now += size
            self.most = max(self.most, self.now)


class SizedJob:
    def __init__(self, gauge: Gauge, size: int) -> None:
        self.gauge = gauge
        self.size = size
        self.is_stopped = False

    def run(self) -> int:
        self.gauge.add(-self.size)
        return self.size

    def stop(self) -> None:
        self.is_stopped = True


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 20), max_size=40), most=st.integers(1, 30), threads=st.integers(1, 4))
def test_no_more_bytes_are_handed_over_than_the_bound_allows(sizes: list[int], most: int, threads: int) -> None:
    gauge = Gauge()
    came: list[int] = []

    def jobs() -> Iterator[SizedJob]:
        for size in sizes:
            yield SizedJob(gauge, size)

    class CountingPool(Pool):
        def submit(self, call, /, *args, **kwargs):  # type: ignore[no-untyped-def]
            gauge.add(args[0].size)
            return super().submit(call, *args, **kwargs)

    run_all(CountingPool(threads), jobs(), most_bytes=most, on_end=lambda job, count: came.append(count))
    assert sorted(came) == sorted(sizes)
    assert gauge.now == 0
    assert gauge.most <= max([most, *sizes])


@pytest.mark.parametrize("size", [1, 100])
def test_as_many_jobs_run_together_as_the_bound_allows_again_and_again(size: int) -> None:
    together = threading.Barrier(4, timeout=30)

    class Meeting(SizedJob):
        def run(self) -> int:
            together.wait()
            return super().run()

    most = plan_bytes_in_flight(100, 4)
    run_all(Pool(4), iter([Meeting(Gauge(), size) for _ in range(12)]), most_bytes=most)


def test_parts_take_all_connections_up_to_a_number() -> None:
    assert plan_bytes_in_flight(8, 1) == 8
    assert plan_bytes_in_flight(8, 16) == 16 * 8
    assert plan_bytes_in_flight(8, 256) == READ_PARTS * 8


def test_the_first_error_stops_the_jobs_that_wait_for_room() -> None:
    made: list[SizedJob] = []

    class Failing(SizedJob):
        def run(self) -> int:
            raise OSError("no")

    def jobs() -> Iterator[SizedJob]:
        for _ in range(10):
            made.append(Failing(Gauge(), 10))
            yield made[-1]

    with pytest.raises(OSError, match="no"):
        run_all(Pool(2), jobs(), most_bytes=10)
    assert len(made) <= 2
    assert all(job.is_stopped for job in made[1:])


class HeldJob(SizedJob):
    """Runs until it is stopped; the first time, Ctrl-C comes while it is."""

    def __init__(self, gauge: Gauge, is_interrupted: list[bool]) -> None:
        super().__init__(gauge, 1)
        self.is_interrupted = is_interrupted
        self.may_end = threading.Event()

    def run(self) -> int:
        self.may_end.wait(60)
        return 1

    def stop(self) -> None:
        if not self.is_interrupted:
            self.is_interrupted.append(True)
            raise KeyboardInterrupt
        super().stop()
        self.may_end.set()


def test_an_interruption_of_the_end_leaves_no_job_that_is_not_stopped() -> None:
    is_interrupted: list[bool] = []
    held = [HeldJob(Gauge(), is_interrupted) for _ in range(4)]

    def jobs() -> Iterator[HeldJob]:
        yield from held
        raise LookupError("mine")

    with pytest.raises(KeyboardInterrupt):
        run_all(Pool(4), jobs())
    assert all(job.is_stopped for job in held)
