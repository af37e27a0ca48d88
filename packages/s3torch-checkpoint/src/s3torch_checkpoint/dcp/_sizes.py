"""Refuses to load a tensor into one of another size, which the planner of older versions of torch does not see."""

from __future__ import annotations

from functools import cache

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlanner


def check_sizes(planner: LoadPlanner, uri: str) -> None:
    """Compare what a planner loads into with what is stored, where torch itself has not done so.

    torch 2.4 loads the part that both have, and leaves the rest of the tensor as it was. A planner that makes its plan
    in its own way may mean just that, and is left alone.

    Args:
        planner: The planner of the load, set up.
        uri: Spells the checkpoint, for messages.

    Raises:
        ValueError: The size of a tensor is not the stored one.
    """
    if not isinstance(planner, DefaultLoadPlanner) or _planner_checks_sizes():
        return
    if type(planner).create_local_plan is not DefaultLoadPlanner.create_local_plan:
        return
    stored = planner.metadata.state_dict_metadata if planner.metadata is not None else {}
    for name, target in planner.state_dict.items():
        info = stored.get(name)
        if isinstance(target, torch.Tensor) and isinstance(info, TensorStorageMetadata) and info.size != target.size():
            raise ValueError(
                f"Size mismatch between saved {info.size} and current: {target.size()} for {name} in {uri}; load it "
                "into a tensor of the saved size"
            )


@cache
def _planner_checks_sizes() -> bool:
    """Whether this torch refuses to plan the load of one element into a tensor of two."""
    size = torch.Size([1])
    stored = TensorStorageMetadata(TensorProperties(), size, [ChunkStorageMetadata(torch.Size([0]), size)])
    planner = DefaultLoadPlanner()
    planner.set_up_planner({"a": torch.empty(2)}, Metadata({"a": stored}), is_coordinator=False)
    try:
        planner.create_local_plan()
    except ValueError:
        return True
    return False
