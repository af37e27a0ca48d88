"""Reading ahead: its bound of bytes, and its order, whatever interrupts it."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from interruptions import each_interruption, interrupted
from s3torch_datasets import _look_ahead
from s3torch_datasets._look_ahead import LookAhead
from s3torch_datasets._object_source import ObjectSource


class Source:
    """A source of which nothing is fetched."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.known_size_bytes = size
        self.was_opened = False
        self.on_whole_read: Any = None

    def prefetch(self) -> None:
        pass

    def discard(self) -> None:
        pass


def look_ahead(*, size: int = 1000, count: int = 100, objects: int = 50) -> LookAhead:
    """A look-ahead over objects of one size, with a bound of 10,000 bytes."""
    return LookAhead(
        lambda number: cast(ObjectSource, Source(number, size)) if number < count else None,
        max_objects=objects,
        memory_limit_bytes=10_000 * 36,
        part_size_bytes=2**23,
    )


Make = Callable[..., LookAhead]


@pytest.fixture
def threads_take_turns() -> Iterator[None]:
    """Lets threads take turns far more often than they do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes look-aheads while no others are ahead."""
    made: list[LookAhead] = []

    def make(**arguments: int) -> LookAhead:
        made.append(look_ahead(**arguments))
        return made[-1]

    gc.collect()  # what other tests left
    yield make
    for ahead in made:
        ahead.close()


def read(ahead: LookAhead, number: int) -> Any:
    """Reads the source of a number as a whole."""
    source: Any = ahead.get(number)
    source.was_opened = True
    if source.on_whole_read is not None:
        source.on_whole_read()
    return source


def test_as_much_comes_as_the_bound_allows(make: Make) -> None:
    ahead = make()
    for number in range(3):
        read(ahead, number)
        assert ahead.coming_bytes == 10_000
    ahead.close()
    assert ahead.coming_bytes == 0


@pytest.mark.parametrize("size", [10_001, 9_999])
def test_one_object_of_any_size_may_come_ahead(make: Make, size: int) -> None:
    ahead = make(size=size)
    read(ahead, 0)
    assert ahead.coming_bytes == size


def test_two_at_the_same_time_have_half_of_the_bound_each(make: Make) -> None:
    first, second = make(), make()
    for number in range(6):
        read(first, number)
        read(second, number)
    assert first.coming_bytes == second.coming_bytes == 5000
    second.close()
    read(first, 6)
    assert first.coming_bytes == 10_000


def test_one_that_is_not_used_any_more_leaves_the_others_their_part(make: Make) -> None:
    unused, others = make(), [make(), make()]
    read(unused, 0)
    for number in range(6):
        for other in others:
            read(other, number)
    assert [unused.coming_bytes, *(other.coming_bytes for other in others)] == [10_000, 3000, 3000]
    unused.close()
    read(others[0], 6)
    assert others[0].coming_bytes == 5000


def test_none_is_lost_and_none_comes_twice_whatever_is_interrupted() -> None:
    at = 0
    for at, interruption in enumerate(each_interruption(_look_ahead), 1):
        ahead = look_ahead(count=6, objects=4)
        numbers: list[int] = []
        with interrupted(interruption):
            while len(numbers) < 6:
                try:
                    numbers.append(read(ahead, len(numbers)).number)
                except KeyboardInterrupt:
                    pass
            try:
                ahead.close()
            except KeyboardInterrupt:
                ahead.close()
        assert numbers == list(range(6)), at
        assert not ahead.is_ahead, at
    assert at > 50


@pytest.mark.usefixtures("threads_take_turns")
def test_threads_that_read_what_they_were_handed_out_lose_none(make: Make) -> None:
    for _ in range(20):
        ahead, turn = make(count=60, size=100), threading.Lock()
        numbers: list[int] = []

        def work(ahead: LookAhead = ahead, turn: threading.Lock = turn, numbers: list[int] = numbers) -> None:
            while len(numbers) < 100:  # of 60
                with turn:
                    source: Any = ahead.get(len(numbers))
                    if source is None:
                        return
                    numbers.append(source.number)
                source.was_opened = True
                begin = source.on_whole_read
                if begin is not None:
                    begin()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert numbers == list(range(60))
