"""How the state of a sharded model and its optimizers becomes shards, and shards become state again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch.distributed.checkpoint.optimizer import load_sharded_optimizer_state_dict
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType
from torch.distributed.fsdp.api import ShardedOptimStateDictConfig, ShardedStateDictConfig
from torch.nn import Module
from torch.optim import Optimizer

from ._sharded import ShardedCheckpoint


def model_shards(module: Module) -> dict[str, Any]:
    """This rank's shards of a model of DTensors, in host memory."""
    return get_model_state_dict(module, options=StateDictOptions(cpu_offload=True))


def optimizer_shards(module: Module, optimizer: Optimizer) -> dict[str, Any]:
    """This rank's shards of an optimizer over DTensors, in host memory."""
    state: dict[str, Any] = dict(
        get_optimizer_state_dict(module, optimizer, options=StateDictOptions(cpu_offload=True))
    )
    return state


def load_shards(
    folder: ShardedCheckpoint, model_item: str, module: Module, optimizers: Mapping[str, Optimizer], *, strict: bool
) -> None:
    """Load a model of DTensors and its optimizers, straight into the model's own memory.

    Args:
        folder: The checkpoint.
        model_item: The name of the model in it.
        module: The model.
        optimizers: The optimizers by their names in it.
        strict: Refuse a checkpoint that lacks some of the model's parameters.
    """
    state: dict[str, Any] = {model_item: get_model_state_dict(module)}
    folder.load(state, strict=strict)
    module.load_state_dict(state[model_item], strict=strict)
    for name, optimizer in optimizers.items():
        # One at a time: on a device each needs memory of its own while it is loaded.
        state = {name: get_optimizer_state_dict(module, optimizer)}
        folder.load(state)
        set_optimizer_state_dict(
            module, optimizer, optim_state_dict=state[name], options=StateDictOptions(cpu_offload=True)
        )


def sharded_state_dicts(module: Module) -> AbstractContextManager[Any]:
    """Within it, the state dicts of an FSDP model and of its optimizers hold shards in host memory."""
    context: AbstractContextManager[Any] = FullyShardedDataParallel.state_dict_type(
        module,
        StateDictType.SHARDED_STATE_DICT,
        ShardedStateDictConfig(offload_to_cpu=True),
        ShardedOptimStateDictConfig(offload_to_cpu=True),
    )
    return context


def load_fsdp_shards(
    folder: ShardedCheckpoint, model_item: str, module: Module, optimizers: Mapping[str, Optimizer], *, strict: bool
) -> None:
    """Load an FSDP model and its optimizers, within `sharded_state_dicts`.

    Args:
        folder: The checkpoint.
        model_item: The name of the model in it.
        module: The model.
        optimizers: The optimizers by their names in it.
        strict: Refuse a checkpoint that lacks some of the model's parameters.
    """
    state: dict[str, Any] = {model_item: module.state_dict()}
    folder.load(state, strict=strict)
    module.load_state_dict(state[model_item], strict=strict)
    for name, optimizer in optimizers.items():
        loaded = load_sharded_optimizer_state_dict(state[model_item], name, folder.reader())
        flat = FullyShardedDataParallel.optim_state_dict_to_load(module, optimizer, loaded[name])
        optimizer.load_state_dict(flat)
