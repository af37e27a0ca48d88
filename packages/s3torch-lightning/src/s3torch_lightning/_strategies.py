"""`S3ModelParallelStrategy` and `S3FSDPStrategy` of the Trainer: Lightning's own, with checkpoints on S3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ._checkpoint_io import default_weights_only
from ._library import find_library
from ._on_s3 import OnS3
from ._paths import meant_uri
from ._shards import load_fsdp_shards, load_shards, sharded_state_dicts

if TYPE_CHECKING:
    from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
else:
    _strategies = find_library().trainer_module("strategies")
    FSDPStrategy = _strategies.FSDPStrategy
    ModelParallelStrategy = _strategies.ModelParallelStrategy


class _TrainerOnS3(OnS3):
    """What both strategies of the Trainer do alike."""

    # How the stock strategy names the model's shards.
    _model_item: str
    optimizers: list[Any]
    lightning_module: Any
    model: Any

    def _saves_shards(self) -> bool:
        raise NotImplementedError

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Save the checkpoint of all ranks, each its shards, or as one object where the strategy is set to that.

        Args:
            checkpoint: What the Trainer wants saved.
            filepath: `s3://bucket/folder/name.ckpt`, or a local path.
            storage_options: For one object, as for `S3LightningCheckpoint`.

        Raises:
            TypeError: `storage_options` are given for a sharded checkpoint.
            Exception: A rank could not write; the checkpoint that was there before is still there.
        """
        uri = self._common_uri(filepath)
        if uri is None:
            super().save_checkpoint(checkpoint, filepath, storage_options=storage_options)  # type: ignore[misc]
            return
        if not self._saves_shards():

            def save() -> None:
                self._plugin.save_checkpoint(checkpoint, uri, storage_options)
                self._plugin.remove_shards(uri)

            self._on_rank_zero(save)
            return
        if storage_options is not None:
            raise TypeError(f"storage_options mean nothing for the sharded checkpoint {uri}; use s3client_config")
        state = {self._model_item: checkpoint.pop("state_dict")}
        for index, optimizer_state in enumerate(checkpoint.pop("optimizer_states", [])):
            state[f"optimizer_{index}"] = optimizer_state
        self._save_shards(state, checkpoint, uri)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load the checkpoint of all ranks, whichever way it was saved, and by however many ranks.

        Args:
            checkpoint_path: `s3://bucket/folder/name.ckpt`, or a local path.
            weights_only: As for `torch.load`, for what is not sharded.

        Returns:
            What is not sharded.

        Raises:
            FileNotFoundError: There is no checkpoint there, or one whose save never finished.
        """
        uri = self._common_uri(checkpoint_path)
        options = {} if weights_only is None else {"weights_only": weights_only}
        if uri is None:
            local: dict[str, Any] = super().load_checkpoint(checkpoint_path, **options)  # type: ignore[misc]
            return local
        if not self._is_sharded(uri):
            with self._downloaded(uri) as path:
                full: dict[str, Any] = super().load_checkpoint(path, **options)  # type: ignore[misc]
            return full
        folder = self._folder(uri)
        is_fitting = self.lightning_module.trainer.state.fn == "fit"
        optimizers = {f"optimizer_{index}": each for index, each in enumerate(self.optimizers)} if is_fitting else {}
        self._fill(folder, optimizers)
        return folder.load_meta(weights_only=default_weights_only() if weights_only is None else weights_only)

    def _fill(self, folder: Any, optimizers: dict[str, Any]) -> None:
        raise NotImplementedError

    def remove_checkpoint(self, filepath: Any) -> None:
        """Remove a checkpoint with all its shards.

        Args:
            filepath: `s3://bucket/folder/name.ckpt`, or a local path.
        """
        uri = meant_uri(filepath)
        if uri is None:
            super().remove_checkpoint(filepath)  # type: ignore[misc]
        elif self.is_global_zero:
            self._plugin.remove_checkpoint(uri.rstrip("/"))

    def teardown(self) -> None:
        """End what the strategy has begun, and wait for a plugin that saves in the background."""
        super().teardown()  # type: ignore[misc]
        self._plugin.teardown()


class S3ModelParallelStrategy(_TrainerOnS3, ModelParallelStrategy):
    """Lightning's `ModelParallelStrategy`, whose checkpoints lie on S3 where their path says so.

    Args:
        *args: As for `ModelParallelStrategy`.
        region: AWS region of the bucket; None for the plugin's, or the environment's.
        endpoint: URL of an S3-compatible store; None for the plugin's, for AWS, or the environment's.
        s3client_config: Settings of the client; None for the plugin's.
        **kwargs: As for `ModelParallelStrategy`.

    Example:
        >>> strategy = S3ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, region="eu-central-1")
        >>> trainer = Trainer(strategy=strategy, default_root_dir="s3://my-bucket/run")  # doctest: +SKIP
    """

    _model_item = "state_dict"

    def _saves_shards(self) -> bool:
        return self._save_distributed_checkpoint

    @override
    def _fill(self, folder: Any, optimizers: dict[str, Any]) -> None:
        load_shards(folder, self._model_item, self.model, optimizers, strict=self.lightning_module.strict_loading)


class S3FSDPStrategy(_TrainerOnS3, FSDPStrategy):
    """Lightning's `FSDPStrategy`, whose checkpoints lie on S3 where their path says so.

    Args:
        *args: As for `FSDPStrategy`.
        region: AWS region of the bucket; None for the plugin's, or the environment's.
        endpoint: URL of an S3-compatible store; None for the plugin's, for AWS, or the environment's.
        s3client_config: Settings of the client; None for the plugin's.
        **kwargs: As for `FSDPStrategy`.

    Example:
        >>> strategy = S3FSDPStrategy(state_dict_type="sharded", region="eu-central-1")
        >>> trainer = Trainer(strategy=strategy, default_root_dir="s3://my-bucket/run")  # doctest: +SKIP
    """

    _model_item = "model"

    def _saves_shards(self) -> bool:
        return self._state_dict_type == "sharded"

    @override
    def _fill(self, folder: Any, optimizers: dict[str, Any]) -> None:
        with sharded_state_dicts(self.model):
            load_fsdp_shards(
                folder, self._model_item, self.model, optimizers, strict=self.lightning_module.strict_loading
            )
