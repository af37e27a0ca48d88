"""What the tests need of torch and not every version has: a test is skipped where it is not there."""

from __future__ import annotations

import inspect
import pkgutil

import pytest


def needs_torch(name: str, parameter: str | None = None) -> pytest.MarkDecorator:
    """Skip a test where torch lacks something.

    Args:
        name: What the test uses, as `torch.distributed.fsdp.fully_shard`.
        parameter: An argument of that function, where an older one does not take it.
    """
    wanted = name if parameter is None else f"{name}({parameter}=…)"
    return pytest.mark.skipif(not _has(name, parameter), reason=f"this version of torch has no {wanted}")


def _has(name: str, parameter: str | None) -> bool:
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return parameter is None or parameter in inspect.signature(found).parameters
