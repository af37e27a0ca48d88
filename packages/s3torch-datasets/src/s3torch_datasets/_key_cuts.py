"""Finds keys that cut a flat prefix into parts of about the same size, by asking for single keys.

S3 tells the first key after any text. Asking for texts that differ at one position finds out where the coming keys
begin to differ, and with which characters; each character then begins a part. Nothing depends on the cuts being right:
a bad guess makes the parts uneven.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Asks for the first key after each of some texts, at the same time; None where there is none.
Probe = Callable[[list[str]], list[str | None]]

_MOST_PROBES = 256
_MAX_LEVELS = 3
_SURROGATES = range(0xD800, 0xE000)


def find_key_cuts(probe: Probe, prefix: str, known: Sequence[str], wanted: int) -> list[str]:
    """Returns keys after the known ones that cut what is still to come.

    Args:
        probe: Asks the store.
        prefix: What all keys begin with.
        known: Keys from the beginning of the listing, in order; at least one.
        wanted: Number of cuts that is enough.

    Returns:
        Existing keys in order; few or none where the coming keys are few, or differ late.
    """
    last = known[-1]
    positions = range(len(prefix), len(last))
    # Where is there a key that differs from the last known one at this position, but not before?
    beyond = probe([last[:position] + _next(last[position]) for position in positions])
    depth = next((position for position, key in zip(positions, beyond, strict=True) if key is not None), None)
    if depth is None:
        return []
    seen = [key[len(prefix) :] for key in [*known, *filter(None, beyond)]]
    alphabet = sorted(set("".join(seen)))
    cuts: set[str] = set()
    parts = [last[:depth]]
    for _ in range(_MAX_LEVELS):
        points = [part + character for part in parts for character in alphabet if part + character > last]
        if not points or len(points) > _MOST_PROBES:
            break
        cuts.update(key for key in probe(points) if key is not None)
        if len(cuts) >= wanted:
            break
        parts = sorted({key[: len(parts[0]) + 1] for key in [last, *cuts]})
    return sorted(cuts)


def _next(character: str) -> str:
    """The character after one, in the order of UTF-8."""
    number = ord(character) + 1
    if number in _SURROGATES:
        number = _SURROGATES.stop
    return chr(min(number, 0x10FFFF))
