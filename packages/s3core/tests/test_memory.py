"""Raw memory, threads and the bound on bytes."""

from __future__ import annotations

import gc
import io
import mmap
import platform
import sys
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core._budget import ByteBudget
from s3core._memory import Destination, new_buffer
from s3core._pool import Pool, wait_for


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@given(pieces=st.lists(st.binary(max_size=50), max_size=10))
def test_pieces_come_one_behind_the_other(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    destination, made = Destination.of_new_bytes(len(data))
    slot = destination.slot(0, len(data))
    assert all(slot.write(piece) for piece in pieces)
    assert made == data
    assert slot.filled == len(data)


@pytest.mark.parametrize("make", [bytearray, lambda n: array("B", bytes(n)), lambda n: mmap.mmap(-1, n)])
def test_slots_fill_their_own_slice_of_a_buffer(make: Callable[[int], Any]) -> None:
    buffer = make(10)
    destination = Destination.of_buffer(buffer)
    destination.slot(6, 10).write(b"WXYZ")
    destination.slot(0, 3).write(memoryview(b"abc"))
    assert bytes(memoryview(buffer)) == b"abc\0\0\0WXYZ"


@pytest.mark.parametrize("size", [0, 5, 3 * 2**20])
def test_a_new_buffer_can_be_filled_and_cut(size: int) -> None:
    buffer = new_buffer(size)
    assert (type(buffer), len(buffer)) == (bytearray, size)
    buffer[:] = bytes(size)
    del buffer[size // 2 :]
    assert buffer == bytes(size // 2)


@pytest.mark.parametrize("make", [bytearray, lambda n: mmap.mmap(-1, n)])
@pytest.mark.parametrize("first", [b"", b"some bytes"])
def test_a_large_slot_at_any_address_leaves_the_rest_as_it_is(make: Callable[[int], Any], first: bytes) -> None:
    size, start, end = 3 * 2**20, 12_345, 2 * 2**20 + 1
    buffer = make(size)
    view = memoryview(buffer)
    view[:] = b"x" * size
    slot = Destination.of_buffer(buffer).slot(start, end)
    slot.map_pages()
    rest = bytes(end - start - len(first))
    assert slot.write(first)
    assert slot.write(rest)
    assert bytes(view) == b"x" * start + first + rest + b"x" * (size - end)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux maps pages at one go")
def test_a_slot_has_its_own_pages_mapped_and_no_others() -> None:
    size = 8 * 2**20
    buffer = mmap.mmap(-1, 4 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    before = resident_bytes()
    Destination.of_buffer(buffer).slot(size, 2 * size).map_pages()
    grown = resident_bytes() - before
    assert grown < 1.5 * size
    closed = Destination.of_buffer(buffer).slot(2 * size, 4 * size)
    closed.close()
    closed.map_pages()
    assert resident_bytes() - before < 1.5 * size
    if tuple(map(int, platform.release().split(".")[:2])) >= (5, 14):
        assert grown > 0.9 * size


def test_a_released_buffer_can_be_resized_or_closed() -> None:
    buffer, mapped = bytearray(10), mmap.mmap(-1, 10)
    for owner in (buffer, mapped):
        destination = Destination.of_buffer(owner)
        slot = destination.slot(0, 10)
        slot.write(b"0123456789")
        destination.release()
    buffer.append(0)
    mapped.close()


def test_more_bytes_than_there_is_room_for_are_refused_whole() -> None:
    buffer = bytearray(10)
    slot = Destination.of_buffer(buffer).slot(2, 5)
    slot.write(b"ab")
    with pytest.raises(OverflowError, match="4 bytes came for a range of 3"):
        slot.write(b"cd")
    assert buffer == b"\0\0ab" + bytes(6)


def test_a_closed_slot_takes_nothing() -> None:
    buffer = bytearray(4)
    slot = Destination.of_buffer(buffer).slot(0, 4)
    slot.write(b"a")
    slot.close()
    assert not slot.write(b"b")
    assert not slot.is_open
    assert buffer == b"a\0\0\0"


def test_bytes_are_received_in_place() -> None:
    buffer = bytearray(6)
    slot = Destination.of_buffer(buffer).slot(1, 6)
    source = io.BytesIO(b"abcdefgh")
    assert slot.receive(source.readinto, 2, pytest.fail) == 2
    assert slot.receive(source.readinto, 100, pytest.fail) == 3
    assert (slot.filled, buffer) == (5, b"\0abcde")
    slot.close()
    assert slot.receive(source.readinto, 1, pytest.fail) is None


def test_a_slot_that_is_closed_interrupts_who_waits_for_bytes() -> None:
    begun, interrupted = threading.Event(), threading.Event()
    slot = Destination.of_buffer(bytearray(4)).slot(0, 4)
    results: list[int | None] = []

    def read(view: memoryview) -> int:
        begun.set()
        assert interrupted.wait(20)
        return 0

    thread = threading.Thread(target=lambda: results.append(slot.receive(read, 4, interrupted.set)))
    thread.start()
    assert begun.wait(20)
    slot.close()
    thread.join()
    assert results == [None]


def test_empty_buffers_are_fine() -> None:
    assert Destination.of_buffer(bytearray()).slot(0, 0).write(b"")
    assert Destination.of_new_bytes(0)[1] == b""


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=30))
def test_a_bound_is_kept_and_what_is_returned_counts_again(steps: list[tuple[bool, int]]) -> None:
    budget, held = ByteBudget(100), []
    for number, (is_return, size) in enumerate(steps):
        if is_return and held:
            holder, _ = held.pop()
            budget.give_back(holder)
            budget.give_back(holder)
        elif budget.try_take(number, size):
            held.append((number, size))
        assert budget.used == sum(size for _, size in held) <= 100
    budget.take("one", 1000)
    assert not budget.try_take("other", 1)
    budget.take("one", 500)
    budget.give_back("one")
    assert budget.used == sum(size for _, size in held)


def test_what_is_returned_does_not_pile_up() -> None:
    budget = ByteBudget(100)
    for _ in range(1000):
        holder = object()
        budget.take(holder, 10)
        budget.give_back(holder)
    assert len(budget._returned) + len(budget._held) < 500


def test_a_pool_runs_as_many_at_a_time_as_it_has_threads() -> None:
    pool, barrier = Pool(4), threading.Barrier(4)
    futures = [pool.submit(barrier.wait, 20) for _ in range(8)]
    assert sorted(wait_for(future) for future in futures) == [0, 0, 1, 1, 2, 2, 3, 3]
    names = [thread for thread in threading.enumerate() if thread.name.startswith("s3core-")]
    assert all(thread.daemon for thread in names)


def test_a_pool_starts_no_more_threads_than_it_needs() -> None:
    before, pool = set(threading.enumerate()), Pool(64)
    for _ in range(50):
        wait_for(pool.submit(int))
        wait_for(pool.submit(int))
    assert len(set(threading.enumerate()) - before) <= 3


def test_an_error_of_a_task_is_raised_where_it_is_waited_for() -> None:
    pool = Pool(1)
    with pytest.raises(ZeroDivisionError):
        wait_for(pool.submit(lambda: 1 // 0))
    with pytest.raises(TimeoutError, match="the task's own"):
        wait_for(pool.submit(_raise, TimeoutError("the task's own")))
    assert wait_for(pool.submit(int)) == 0


def _raise(error: Exception) -> None:
    raise error


def test_what_a_destructor_hands_over_is_run() -> None:
    pool, done = Pool(2), threading.Event()
    wait_for(pool.submit(int))
    pool.run_soon(done.set)
    assert done.wait(20)
    assert wait_for(pool.submit(int)) == 0


def test_the_threads_of_a_dropped_pool_end() -> None:
    before, pool = set(threading.enumerate()), Pool(3)
    barrier = threading.Barrier(3)
    for future in [pool.submit(barrier.wait, 20) for _ in range(3)]:
        wait_for(future)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 3
    del pool, future
    gc.collect()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_a_pool_goes_on_with_the_threads_it_has_when_no_more_can_start(run_program: Callable[..., str]) -> None:
    output = run_program(
        """
        from s3core._pool import Pool, wait_for
        pool = Pool(64)
        wait_for(pool.submit(int))
        threading.stack_size(1 << 46)  # more than there is: no thread starts any more
        futures = [pool.submit(lambda n=n: n) for n in range(100)]
        print([wait_for(future) for future in futures] == list(range(100)))
        """
    )
    assert output == "True\n"
