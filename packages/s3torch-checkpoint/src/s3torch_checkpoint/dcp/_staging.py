"""Copies a state for `async_save` where torch itself does not copy the tensors that are on the CPU already."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_saver

# torch 2.4 moves all tensors to the CPU by this function, which gives those that are there as they are: what is trained
# on before they are written would be saved.
IS_NEEDED = hasattr(state_dict_saver, "_offload_state_dict_to_cpu")


def stage(state: dict[str, Any]) -> dict[str, Any]:
    """Copy a state to the CPU.

    Args:
        state: What is saved: nested dicts and lists of tensors on any device, and of objects.

    Returns:
        A state that shares no memory with it.
    """
    from torch.distributed._state_dict_utils import _offload_state_dict_to_cpu  # not in every version
    from torch.distributed.checkpoint._nested_dict import flatten_state_dict, unflatten_state_dict

    flat, paths = flatten_state_dict(state)
    for name, value in flat.items():
        if isinstance(value, torch.Tensor) and value.device.type == "cpu":
            flat[name] = value.detach().clone()
    copied: dict[str, Any] = _offload_state_dict_to_cpu(unflatten_state_dict(flat, paths), type_check=False)
    return copied
