"""Reading ahead: its bound of bytes, and its order, whatever interrupts it."""

from __future__ import annotations

import gc
from typing import Any, cast

from interruptions import each_interruption, interrupted
from s3torch_datasets import _look_ahead
from s3torch_datasets._look_ahead import PROCESS_BUDGET, ByteBudget, LookAhead
from s3torch_datasets._object_source import ObjectSource


def test_bytes_that_were_given_back_can_be_taken_again() -> None:
    budget = ByteBudget()
    assert budget.try_take("a", 6, 10)
    assert not budget.try_take("b", 5, 10)
    budget.give_back("a")
    budget.give_back("a")
    assert budget.used_bytes == 0
    assert budget.try_take("c", 10, 10)
    assert budget.used_bytes == 10


def test_one_object_of_any_size_may_come_ahead() -> None:
    budget = ByteBudget()
    assert budget.try_take("a", 11, 10)
    assert not budget.try_take("b", 1, 10)


def test_a_destructor_gives_bytes_back_while_its_thread_takes_some() -> None:
    budget = ByteBudget()
    assert budget.try_take("a", 3, 10)
    assert budget.try_take("b", 3, 10)

    class Collected(int):
        def __radd__(self, used: int) -> int:  # where the garbage collector may run
            budget.give_back("a")
            return used + int(self)

    assert budget.try_take("c", Collected(4), 10)
    assert budget.used_bytes == 7


class Source:
    """A source of which nothing is fetched."""

    known_size_bytes = 1000

    def __init__(self) -> None:
        self.was_opened = False
        self.on_whole_read: Any = None

    def prefetch(self) -> None:
        pass

    def discard(self) -> None:
        pass


def test_no_bytes_of_the_bound_are_lost_whatever_is_interrupted() -> None:
    gc.collect()  # what other tests left
    before, at = PROCESS_BUDGET.used_bytes, 0
    for at, interruption in enumerate(each_interruption(_look_ahead), 1):
        ahead = LookAhead(
            lambda number: cast(ObjectSource, Source()) if number < 6 else None,
            max_objects=4,
            memory_limit_bytes=2**30,
            part_size_bytes=2**23,
        )
        number = 0
        with interrupted(interruption):
            while number < 4:
                try:
                    source: Any = ahead.get(number)
                    source.was_opened = True
                    if source.on_whole_read is not None:
                        source.on_whole_read()
                    number += 1
                except KeyboardInterrupt:
                    pass
            try:
                ahead.close()
            except KeyboardInterrupt:
                ahead.close()
        assert PROCESS_BUDGET.used_bytes == before, at
    assert at > 50
