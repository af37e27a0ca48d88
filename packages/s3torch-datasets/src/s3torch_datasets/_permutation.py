"""A shuffled order that is computed, not stored: any position of it in a few operations and no memory."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_ROUNDS = 8
_SMALL = 1024
_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15

Positions = npt.NDArray[np.int64]


class Permutation:
    """A permutation of `range(size)`, chosen by a seed, the same on every machine and version.

    A Feistel network over pairs `(left, right)` with `left * right >= size`, both about `sqrt(size)`, walked until the
    result falls inside (https://en.wikipedia.org/wiki/Format-preserving_encryption#FPE_from_a_Feistel_network).
    Such a network reaches only a part of all orders of a small range, so small ones are sorted by a hash instead.

    Args:
        size: Number of elements.
        seed: Any integer.
        epoch: Any integer; each epoch is another order.
    """

    def __init__(self, size: int, seed: int, epoch: int = 0) -> None:
        self.size = size
        key = mix_number(mix_number(seed) ^ (epoch & _MASK))
        self._round_keys = [np.uint64(mix_number(key + number)) for number in range(_ROUNDS)]
        self._left = max(1, math.isqrt(max(size - 1, 0)) + 1)
        self._right = max(1, -(-size // self._left))
        self._order: Positions | None = None
        if size <= _SMALL:
            self._order = np.argsort(_mix(np.arange(size, dtype=np.uint64) + self._round_keys[0]), kind="stable")

    def __call__(self, positions: Positions) -> Positions:
        """Returns the elements at some positions.

        Args:
            positions: Numbers in `[0, size)`, int64 of any shape.
        """
        if self._order is not None:
            return self._order[positions]
        found = self._encrypt(positions.astype(np.uint64))
        outside = np.flatnonzero(found >= self.size)
        while outside.size:
            found[outside] = self._encrypt(found[outside])
            outside = outside[found[outside] >= self.size]
        return found.astype(np.int64)

    def _encrypt(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = np.divmod(values, np.uint64(self._right))
        for number, key in enumerate(self._round_keys):
            if number % 2:
                right = (right + _mix(left + key) % np.uint64(self._right)) % np.uint64(self._right)
            else:
                left = (left + _mix(right + key) % np.uint64(self._left)) % np.uint64(self._left)
        return left * np.uint64(self._right) + right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (https://prng.di.unimi.it/splitmix64.c); arithmetic wraps at 64 bits."""
    values = values + np.uint64(_GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def mix_number(value: int) -> int:
    """Returns an even spread of 64 bits for any integer; the same as `_mix`."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
