"""Ctrl-C between any two steps of some modules, one after the other."""

from __future__ import annotations

import dis
import gc
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

# Behind these, and nowhere else, Python looks whether a signal has come.
LOOKS = ("CALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD")


class Interruption:
    """Raises KeyboardInterrupt once, the n-th time that Python looks for signals in some modules.

    Args:
        modules: The modules.
        at: Which time.
    """

    def __init__(self, modules: Sequence[ModuleType], at: int) -> None:
        self.came = False
        self._files = {module.__file__ for module in modules}
        self._left = at

    def strike(self) -> None:
        """What happens then."""
        raise KeyboardInterrupt

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        """Trace a call, for `sys.settrace`."""
        # Not in the calls with which a test itself looks at a stream.
        if frame.f_code.co_filename not in self._files or frame.f_code.co_name in ("tell", "__iter__"):
            return None
        names = {instruction.offset: instruction.opname for instruction in dis.get_instructions(frame.f_code)}
        before = ""

        def step(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal before
            if event == "opcode":
                looks, before = before.startswith(LOOKS), names[frame.f_lasti]
                if looks:
                    self._left -= 1
                    if self._left == 0:
                        self.came = True
                        self.strike()
            return step

        # In this order: Python 3.13 and newer begin to trace instructions here only for a frame that is traced already.
        frame.f_trace = step
        frame.f_trace_opcodes = True
        return step


@contextmanager
def interrupted(interruption: Interruption) -> Iterator[None]:
    """Have what is done within interrupted."""
    before = sys.gettrace()
    gc.disable()  # It could run the destructor of an earlier stream here, which lets no exception through.
    sys.settrace(interruption.trace)
    try:
        yield
    finally:
        sys.settrace(before)
        gc.enable()


def each_interruption(*modules: ModuleType) -> Iterator[Interruption]:
    """One for each time, until the work ends before its turn."""
    for at in itertools.count(1):
        interruption = Interruption(modules, at)
        yield interruption
        if not interruption.came:
            assert at > 10
            return
