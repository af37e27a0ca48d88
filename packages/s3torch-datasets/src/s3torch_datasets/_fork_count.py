"""Tells a forked child from its parent without a system call for each object."""

from __future__ import annotations

import os


class ForkCount:
    """Counts the forks that led to this process; what was made at another count was inherited."""

    now = 0

    @classmethod
    def add(cls) -> None:
        """Called in each forked child."""
        cls.now += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ForkCount.add)
