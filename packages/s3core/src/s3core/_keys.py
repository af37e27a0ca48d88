"""Which keys obstore can say."""

from __future__ import annotations

import re

# obstore has paths, not keys: it drops slashes at the ends and refuses, or maps to other keys, empty, `.` and `..`
# segments and control characters. A put of `/lead` would write `lead`.
_NOT_A_PATH = re.compile(r"(?:^|/)(?:\.{0,2})(?:/|$)|[\x00-\x1f\x7f]")


def is_path(key: str) -> bool:
    """Say whether obstore transfers this key as this key; all others go through signed requests of our own."""
    return _NOT_A_PATH.search(key) is None
