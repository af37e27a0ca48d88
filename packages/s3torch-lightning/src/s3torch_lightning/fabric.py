"""`S3ModelParallelStrategy` and `S3FSDPStrategy` of Fabric: Lightning's own, with checkpoints on S3.

For the Trainer they are in `s3torch_lightning` itself, as Lightning too has two of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn import Module
from torch.optim import Optimizer
from typing_extensions import override

from ._agreement import sendable
from ._checkpoint_io import S3LightningCheckpoint, default_weights_only
from ._library import find_library
from ._on_s3 import OnS3
from ._shards import load_fsdp_shards, load_shards, model_shards, optimizer_shards, sharded_state_dicts

if TYPE_CHECKING:
    from lightning.fabric.plugins import CheckpointIO
    from lightning.fabric.strategies.fsdp import FSDPStrategy
    from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
    from torch.distributed.tensor import DTensor
else:
    try:
        from torch.distributed.tensor import DTensor
    except ImportError:  # torch 2.4
        from torch.distributed._tensor import DTensor

    _strategies = find_library().fabric_module("strategies")
    FSDPStrategy = _strategies.FSDPStrategy
    ModelParallelStrategy = _strategies.ModelParallelStrategy

__all__ = ["S3FSDPStrategy", "S3ModelParallelStrategy"]

Filter = dict[str, Callable[[str, Any], bool]]


class _FabricOnS3(OnS3):
    """What both strategies of Fabric do alike."""

    _checkpoint_io: CheckpointIO | None

    @property
    def checkpoint_io(self) -> Any:
        """The plugin with whose settings the strategy reaches S3."""
        return self._plugin

    @checkpoint_io.setter
    def checkpoint_io(self, io: Any) -> None:
        if not isinstance(io, S3LightningCheckpoint):
            raise TypeError(
                f"{type(self).__name__} saves through S3LightningCheckpoint, got a {type(io).__name__}; leave it out"
            )
        self._checkpoint_io = io

    def _saves_shards(self) -> bool:
        raise NotImplementedError

    def _is_model(self, value: object) -> bool:
        raise NotImplementedError

    def _shards(self, module: Module, state: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _fill(self, folder: Any, name: str, module: Module, optimizers: dict[str, Any], strict: bool) -> None:
        raise NotImplementedError

    def save_checkpoint(
        self, path: Any, state: dict[str, Any], storage_options: Any | None = None, filter: Filter | None = None
    ) -> None:
        """Save the state of all ranks, each its shards, or as one object where the strategy is set to that.

        Args:
            path: `s3://bucket/folder/name.ckpt`, or a local path.
            state: One model, its optimizers, and whatever else.
            storage_options: Refused, as by the stock strategy.
            filter: What to leave out of one object; not for shards.

        Raises:
            TypeError: `storage_options` are given.
            NotImplementedError: `filter` is given for a sharded checkpoint.
            ValueError: There is no sharded model in the state, or more than one.
            Exception: A rank could not write; the checkpoint that was there before is still there.
        """
        uri = self._common_uri(path)
        if uri is None:
            super().save_checkpoint(path, state, storage_options, filter)  # type: ignore[misc]
            return
        if storage_options is not None:
            raise TypeError(f"storage_options mean nothing to a sharded strategy ({uri}); use s3client_config")
        if not self._saves_shards():
            self._save_whole(uri, state, filter)
            return
        if filter is not None:
            raise NotImplementedError(f"a sharded checkpoint ({uri}) is saved whole; leave the filter out")
        _, module = self._one_model(state)
        meta = {
            name: value.state_dict() if _is_stateful(value) else value
            for name, value in state.items()
            if not isinstance(value, Module | Optimizer)
        }
        self._save_shards(self._shards(module, state), meta, uri)

    def load_checkpoint(
        self, path: Any, state: Any = None, strict: bool = True, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load the state of all ranks, whichever way it was saved, and by however many ranks.

        Args:
            path: `s3://bucket/folder/name.ckpt`, or a local path.
            state: One model, its optimizers and whatever else is wanted, or one model to load a raw state dict into.
            strict: Refuse a checkpoint that lacks some of it.
            weights_only: As for `torch.load`, for what is not sharded.

        Returns:
            What was not asked for.

        Raises:
            ValueError: There is no sharded model in the state, or more than one, or the checkpoint is of another kind.
            KeyError: The checkpoint lacks something asked for.
            FileNotFoundError: There is no checkpoint there, or one whose save never finished.
        """
        uri = self._common_uri(path)
        options: dict[str, Any] = {"state": state, "strict": strict}
        if weights_only is not None:
            options["weights_only"] = weights_only
        if uri is None:
            local: dict[str, Any] = super().load_checkpoint(path, **options)  # type: ignore[misc]
            return local
        if not self._is_sharded(uri):
            with self._downloaded(uri) as file:
                whole: dict[str, Any] = super().load_checkpoint(file, **options)  # type: ignore[misc]
            return whole
        if not isinstance(state, Mapping) or not state:
            raise ValueError(f"{uri} is a sharded checkpoint; pass a state like {{'model': model}} to load it into")
        name, module = self._one_model(state)
        optimizers = {key: value for key, value in state.items() if isinstance(value, Optimizer)}
        folder = self._folder(uri)
        self._fill(folder, name, module, optimizers, strict)
        meta = folder.load_meta(weights_only=default_weights_only() if weights_only is None else weights_only)
        for key in state.keys() - optimizers.keys() - {name}:
            if key in meta:
                state[key] = meta.pop(key)  # type: ignore[index]  # Fabric's contract: it is filled in place
            elif strict:
                raise KeyError(f"{uri} has no {key!r}, which the state asks for; pass strict=False to do without")
        return meta

    def _one_model(self, state: Mapping[str, Any]) -> tuple[str, Module]:
        models = [(name, value) for name, value in state.items() if self._is_model(value)]
        if len(models) != 1:
            raise ValueError(
                f"a checkpoint of {type(self).__name__} holds one sharded model, and the state has {len(models)}; pass "
                "{'model': model, …} with a model that was set up by Fabric, and save each model to a path of its own"
            )
        return models[0]

    def _save_whole(self, uri: str, state: dict[str, Any], filter: Filter | None) -> None:
        self._finish_background()
        with self._local_path() as path:
            error: Exception | None = None
            try:
                super().save_checkpoint(path, state, filter=filter)  # type: ignore[misc]
            except Exception as raised:  # on rank 0 alone, which pickles and writes
                error = sendable(raised)
            self._raise_first(error)

            def send() -> None:
                self._upload(path, uri)
                self._plugin.remove_shards(uri)

            self._on_rank_zero(send)


class S3ModelParallelStrategy(_FabricOnS3, ModelParallelStrategy):
    """Fabric's `ModelParallelStrategy`, whose checkpoints lie on S3 where their path says so.

    Args:
        *args: As for `ModelParallelStrategy`.
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.
        **kwargs: As for `ModelParallelStrategy`.

    Example:
        >>> strategy = S3ModelParallelStrategy(parallelize, region="eu-central-1")  # doctest: +SKIP
        >>> fabric = Fabric(strategy=strategy, devices=2)  # doctest: +SKIP
        >>> fabric.save("s3://my-bucket/run/step-100", {"model": model})  # doctest: +SKIP
    """

    def _saves_shards(self) -> bool:
        return self._save_distributed_checkpoint

    @override
    def _is_model(self, value: object) -> bool:
        return isinstance(value, Module) and any(isinstance(tensor, DTensor) for tensor in value.parameters())

    @override
    def _shards(self, module: Module, state: Mapping[str, Any]) -> dict[str, Any]:
        shards: dict[str, Any] = {}
        for name, value in state.items():
            if isinstance(value, Module):
                shards[name] = model_shards(value)
            elif isinstance(value, Optimizer):
                shards[name] = optimizer_shards(module, value)
        return shards

    @override
    def _fill(self, folder: Any, name: str, module: Module, optimizers: dict[str, Any], strict: bool) -> None:
        load_shards(folder, name, module, optimizers, strict=strict)


class S3FSDPStrategy(_FabricOnS3, FSDPStrategy):
    """Fabric's `FSDPStrategy`, whose checkpoints lie on S3 where their path says so.

    Args:
        *args: As for `FSDPStrategy`.
        region: AWS region of the bucket; None for the environment's.
        endpoint: URL of an S3-compatible store; None for AWS, or the environment's.
        s3client_config: Settings of the client.
        **kwargs: As for `FSDPStrategy`.

    Example:
        >>> strategy = S3FSDPStrategy(region="eu-central-1")
        >>> fabric = Fabric(strategy=strategy, devices=2)  # doctest: +SKIP
        >>> fabric.save("s3://my-bucket/run/step-100", {"model": model})  # doctest: +SKIP
    """

    def _saves_shards(self) -> bool:
        return self._state_dict_type == "sharded"

    @override
    def _is_model(self, value: object) -> bool:
        return isinstance(value, Module) and any(
            isinstance(module, FullyShardedDataParallel) for module in value.modules()
        )

    @override
    def _shards(self, module: Module, state: Mapping[str, Any]) -> dict[str, Any]:
        shards: dict[str, Any] = {}
        with sharded_state_dicts(module):
            for name, value in state.items():
                if isinstance(value, Module):
                    shards[name] = value.state_dict()
                elif isinstance(value, Optimizer):
                    shards[name] = FullyShardedDataParallel.optim_state_dict(module, value)
        return shards

    @override
    def _fill(self, folder: Any, name: str, module: Module, optimizers: dict[str, Any], strict: bool) -> None:
        with sharded_state_dicts(module):
            load_fsdp_shards(folder, name, module, optimizers, strict=strict)


def _is_stateful(value: object) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))
