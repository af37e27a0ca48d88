"""Reading ahead: its bound of bytes, and its order, whatever interrupts it."""

from __future__ import annotations

from s3torch_datasets._look_ahead import ByteBudget


def test_bytes_that_were_given_back_can_be_taken_again() -> None:
    budget = ByteBudget()
    assert budget.try_take(6, 10)
    assert not budget.try_take(5, 10)
    budget.give_back(6)
    assert budget.used_bytes == 0
    assert budget.try_take(10, 10)
    assert budget.used_bytes == 10


def test_one_object_of_any_size_may_come_ahead() -> None:
    budget = ByteBudget()
    assert budget.try_take(11, 10)
    assert not budget.try_take(1, 10)


def test_a_destructor_gives_bytes_back_while_its_thread_takes_some() -> None:
    budget = ByteBudget()
    assert budget.try_take(6, 10)

    class Collected(int):
        def __radd__(self, used: int) -> int:  # where the garbage collector may run
            budget.give_back(3)
            return used + int(self)

    assert budget.try_take(Collected(4), 10)
    assert budget.used_bytes == 4
