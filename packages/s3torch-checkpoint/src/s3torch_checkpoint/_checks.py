"""Checks of arguments, each refusal naming the argument, the value and what is allowed."""

from __future__ import annotations


def check_count(name: str, value: object, lowest: int = 1, *, optional: bool = False) -> None:
    """Refuse what is not a whole number of at least `lowest`.

    Args:
        name: The argument's name.
        value: What was given.
        lowest: The lowest value allowed.
        optional: Whether None is allowed too.

    Raises:
        ValueError: The value is not allowed.
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(
            f"{name} is {value!r}; it must be a whole number of at least {lowest}" + (", or None" if optional else "")
        )
