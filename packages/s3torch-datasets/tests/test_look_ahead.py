"""Reading ahead: its bound of bytes, and its order, whatever interrupts it."""

from __future__ import annotations

import dis
import gc
import itertools
import sys
from types import FrameType
from typing import Any, cast

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


class Interruption:
    """Raises KeyboardInterrupt the n-th time that Python looks for signals in the module, as it does behind calls."""

    def __init__(self, at: int) -> None:
        self.came = False
        self._left = at

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != _look_ahead.__file__:
            return None
        frame.f_trace_opcodes = True
        names = {instruction.offset: instruction.opname for instruction in dis.get_instructions(frame.f_code)}
        before = ""

        def step(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal before
            if event == "opcode":
                looks, before = before.startswith(("CALL", "RESUME", "JUMP_BACKWARD")), names[frame.f_lasti]
                self._left -= looks
                if looks and self._left == 0:
                    self.came = True
                    raise KeyboardInterrupt
            return step

        return step


def test_no_bytes_of_the_bound_are_lost_whatever_is_interrupted() -> None:
    gc.collect()  # what other tests left
    before = PROCESS_BUDGET.used_bytes
    for at in itertools.count(1):
        ahead = LookAhead(
            lambda number: cast(ObjectSource, Source()) if number < 6 else None,
            max_objects=4,
            memory_limit_bytes=2**30,
            part_size_bytes=2**23,
        )
        interruption, number, tracing = Interruption(at), 0, sys.gettrace()
        gc.disable()
        sys.settrace(interruption.trace)
        try:
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
        finally:
            sys.settrace(tracing)
            gc.enable()
        assert PROCESS_BUDGET.used_bytes == before, at
        if not interruption.came:
            assert at > 50
            return
