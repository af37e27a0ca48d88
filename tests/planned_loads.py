"""Loads of `S3Checkpoint` that fetch all tensors of an archive at once."""

from __future__ import annotations

from typing import Any

import pytest

from s3torch_checkpoint._planned_load import load_planned


def note_planned_loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have what is loaded so from now on noted in the list that is returned."""
    found = []

    def note(*arguments: Any) -> Any:
        found.append(load_planned(*arguments))
        return found[-1]

    monkeypatch.setattr("s3torch_checkpoint._checkpoint.load_planned", note)
    return found
