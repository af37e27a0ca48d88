"""Real trainings whose checkpoints lie on S3, with either Lightning, saving in the foreground and background."""

from __future__ import annotations

import importlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import pytest
import torch

from s3core import AccessDeniedError, NoSuchBucketError
from s3torch_checkpoint import S3Checkpoint
from s3torch_lightning import S3AsyncCheckpoint, S3FileSystem, S3LightningCheckpoint, register_filesystem
from servers import CountingServer

# Before it, Lightning's own wrapper uploads the tensors themselves, which the training goes on to change.
FIRST_THAT_COPIES = (2, 5, 4)

EVERY_EPOCH = {"monitor": "score"}
EVERY_STEP = {"every_n_train_steps": 1, "monitor": "score"}


@pytest.fixture(params=["foreground", "background", "wrapped"])
def make_plugin(request: pytest.FixtureRequest, options: dict[str, Any], pl: ModuleType) -> Callable[[], Any]:
    """Our own plugin, our own in the background, and ours in the background by Lightning's own wrapper."""

    def make() -> Any:
        if request.param == "background":
            return S3AsyncCheckpoint(**options)
        plugin = S3LightningCheckpoint(**options)
        if request.param == "wrapped":
            return importlib.import_module(f"{pl.__name__}.plugins.io").AsyncCheckpointIO(plugin)
        return plugin

    return make


@pytest.fixture
def plugin(make_plugin: Callable[[], Any]) -> Any:
    return make_plugin()


@pytest.fixture
def simple(options: dict[str, Any]) -> S3LightningCheckpoint:
    return S3LightningCheckpoint(**options)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def names(server: CountingServer, prefix: str = "run/") -> list[str]:
    return [key.removeprefix(prefix) for key in server.objects() if key.startswith(prefix)]


def test_an_interrupted_training_resumed_from_last_ends_with_the_same_weights(
    pl: ModuleType, model_class: type, make_trainer: Any, make_plugin: Any, run_uri: str, tmp_path: Path
) -> None:
    version = tuple(map(int, re.findall(r"\d+", pl.__version__)[:3]))
    if version < FIRST_THAT_COPIES and not isinstance(make_plugin(), S3LightningCheckpoint):
        pytest.skip(f"AsyncCheckpointIO of {version} saves weights of several steps at once")
    whole = model_class()
    make_trainer(None, plugins=[], enable_checkpointing=False).fit(whole)

    checkpoints = {"dirpath": run_uri, "save_last": True}
    with pytest.raises(RuntimeError, match="taken away"):
        make_trainer(make_plugin(), checkpoints).fit(model_class(fail_at_step=10))
    resumed = model_class()
    trainer = make_trainer(make_plugin(), checkpoints)  # Lightning 2.4 uses its wrapper once
    trainer.fit(resumed, ckpt_path="last")
    assert trainer.global_step == 12
    assert same(weights(resumed), weights(whole))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", [S3LightningCheckpoint, S3AsyncCheckpoint])
def test_top_k_leaves_exactly_k_checkpoints(
    model_class: type, make_trainer: Any, kind: type, options: dict[str, Any], run_uri: str, server: CountingServer
) -> None:
    # Not with Lightning's own wrapper: there a removal overtakes the save that it belongs to, and finds nothing.
    make_trainer(kind(**options), {"dirpath": run_uri, "save_top_k": 2, "filename": "{step}", **EVERY_STEP}).fit(
        model_class()
    )
    assert names(server) == ["step=11.ckpt", "step=12.ckpt"]
    assert server.uploads() == []


@pytest.mark.parametrize("kind", [S3LightningCheckpoint, S3AsyncCheckpoint])
def test_top_k_and_last_leave_k_and_one(
    model_class: type, make_trainer: Any, kind: type, options: dict[str, Any], run_uri: str, server: CountingServer
) -> None:
    checkpoints = {"dirpath": run_uri, "save_top_k": 3, "save_last": True, "filename": "{step}", **EVERY_STEP}
    make_trainer(kind(**options), checkpoints).fit(model_class())
    assert names(server) == ["last.ckpt", "step=10.ckpt", "step=11.ckpt", "step=12.ckpt"]


@pytest.mark.parametrize("kind", [S3LightningCheckpoint, S3AsyncCheckpoint])
def test_a_new_checkpoint_is_there_before_an_old_one_goes(
    model_class: type,
    make_trainer: Any,
    kind: type,
    options: dict[str, Any],
    run_uri: str,
    server: CountingServer,
) -> None:
    make_trainer(kind(**options), {"dirpath": run_uri, "filename": "{step}", **EVERY_STEP}).fit(model_class())
    there: set[str] = set()
    for request in server.requests:
        if request.operation == "PutObject":
            there.add(request.key)
        elif request.operation in ("DeleteObject", "DeleteObjects"):
            there.discard(request.key)
            assert there, "the only checkpoint was removed"


@pytest.mark.parametrize("monitor", [EVERY_EPOCH, {}])
@pytest.mark.parametrize("kind", [S3LightningCheckpoint, S3AsyncCheckpoint])
def test_the_checkpoint_that_was_resumed_from_stays(
    model_class: type,
    make_trainer: Any,
    kind: type,
    options: dict[str, Any],
    run_uri: str,
    server: CountingServer,
    monitor: dict[str, str],
) -> None:
    checkpoints = {"dirpath": run_uri, "save_top_k": 1, "filename": "{step}", **monitor}
    make_trainer(kind(**options), checkpoints, max_epochs=1).fit(model_class())
    assert names(server) == ["step=4.ckpt"]
    make_trainer(kind(**options), checkpoints).fit(model_class(), ckpt_path=f"{run_uri}/step=4.ckpt")
    assert names(server) == ["step=12.ckpt", "step=4.ckpt"]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("folder", ["run2", "run/next"])
def test_a_training_removes_nothing_from_the_folder_of_the_one_that_it_goes_on_from(
    model_class: type, make_trainer: Any, simple: Any, run_uri: str, server: CountingServer, folder: str
) -> None:
    checkpoints = {"save_last": True, "filename": "{step}"}
    make_trainer(simple, {"dirpath": run_uri, **checkpoints}, max_epochs=1).fit(model_class())
    trainer = make_trainer(simple, {"dirpath": run_uri.removesuffix("run") + folder, **checkpoints})
    trainer.fit(model_class(), ckpt_path=f"{run_uri}/last.ckpt")
    own = {f"{folder}/last.ckpt", f"{folder}/step=12.ckpt"}
    assert set(server.keys()) == {"run/last.ckpt", "run/step=4.ckpt", *own}


# Lightning takes the callback that saves at an exception for a sign that there is a checkpoint to load.
@pytest.mark.filterwarnings(r"ignore:`.fit\(ckpt_path=None\)` was called without a model")
def test_the_checkpoint_of_an_exception_is_saved_though_an_earlier_one_failed(
    pl: ModuleType, model_class: type, make_trainer: Any, options: dict[str, Any], run_uri: str, server: CountingServer
) -> None:
    plugin = S3AsyncCheckpoint(**options, max_in_flight=1)
    callbacks = importlib.import_module(f"{pl.__name__}.callbacks")
    at_the_end = callbacks.OnExceptionCheckpoint(run_uri, "at-the-end")
    server.fault(operation="PutObject", times=1, status=403, code="AccessDenied")
    checkpoints = {"dirpath": run_uri, "filename": "{step}", "every_n_train_steps": 2}
    with pytest.raises(AccessDeniedError, match=r"step=2\.ckpt"):
        make_trainer(plugin, checkpoints, callbacks=[at_the_end]).fit(model_class(fail_at_step=2))
    plugin.teardown()
    assert names(server) == ["at-the-end.ckpt"]


def test_best_and_a_uri_are_loaded_by_every_stage(
    model_class: type, make_trainer: Any, plugin: Any, run_uri: str
) -> None:
    trainer = make_trainer(plugin, {"dirpath": run_uri, "filename": "{step}", "save_top_k": -1, **EVERY_STEP})
    trainer.fit(model_class())
    best = trainer.checkpoint_callback.best_model_path
    assert best == f"{run_uri}/step=12.ckpt"
    model = model_class()
    for path in ("best", f"{run_uri}/step=3.ckpt"):
        uri = best if path == "best" else path
        trainer.test(model, ckpt_path=path)
        expected = make_expected(model_class, uri)
        assert same(weights(model), expected)
        model = model_class()
        trainer.validate(model, dataloaders=model.train_dataloader(), ckpt_path=path)
        assert same(weights(model), expected)
        model = model_class()
        predictions = trainer.predict(model, ckpt_path=path)
        assert same(weights(model), expected)
        assert len(predictions) == 4


def make_expected(model_class: Any, uri: str) -> dict[str, torch.Tensor]:
    return weights(model_class.load_from_checkpoint(uri))


def test_load_from_checkpoint_reads_the_uri(model_class: Any, make_trainer: Any, simple: Any, run_uri: str) -> None:
    model = model_class()
    trainer = make_trainer(simple, {"dirpath": run_uri, "save_last": True, **EVERY_STEP})
    trainer.fit(model)
    assert same(weights(model_class.load_from_checkpoint(f"{run_uri}/last.ckpt")), weights(model))


def test_a_checkpoint_that_is_being_uploaded_is_waited_for(
    model_class: Any, make_trainer: Any, options: dict[str, Any], run_uri: str, server: CountingServer
) -> None:
    plugin, model = S3AsyncCheckpoint(**options), model_class()
    trainer = make_trainer(plugin, enable_checkpointing=False, max_epochs=1)
    trainer.fit(model)
    for value in (1.0, 2.0):
        torch.nn.init.constant_(model.layer.weight, value)
        server.fault(operation="PutObject", times=1, delay_seconds=0.3)
        trainer.save_checkpoint(f"{run_uri}/a.ckpt")
        assert same(weights(model_class.load_from_checkpoint(f"{run_uri}/a.ckpt")), weights(model))
    server.fault(operation="PutObject", times=1, delay_seconds=0.3)
    trainer.save_checkpoint(f"{run_uri}/only/last.ckpt")
    resumed = make_trainer(plugin, {"dirpath": f"{run_uri}/only", "save_last": True}, max_epochs=2)
    resumed.fit(model_class(), ckpt_path="last")
    assert resumed.ckpt_path == f"{run_uri}/only/last.ckpt"
    assert resumed.global_step == 8


def test_a_trained_checkpoint_loads_through_s3checkpoint(
    model_class: type, make_trainer: Any, plugin: Any, run_uri: str, options: dict[str, Any]
) -> None:
    model = model_class()
    make_trainer(plugin, {"dirpath": run_uri, "save_last": True, **EVERY_STEP}).fit(model)
    loaded = S3Checkpoint(**options).load(f"{run_uri}/last.ckpt")
    assert loaded["global_step"] == 12
    assert same(loaded["state_dict"], weights(model))
    with S3Checkpoint(**options).reader(f"{run_uri}/last.ckpt") as reader:
        assert torch.load(reader, weights_only=True)["global_step"] == 12


def test_default_root_dir_alone_puts_logs_and_checkpoints_on_s3(
    model_class: type,
    make_trainer: Any,
    make_plugin: Any,
    run_uri: str,
    server: CountingServer,
    tmp_path: Path,
) -> None:
    kwargs = {"default_root_dir": run_uri, "logger": True, "log_every_n_steps": 1}
    for version in (0, 1):
        make_trainer(make_plugin(), **kwargs).fit(model_class())
        metrics = server.get(f"run/lightning_logs/version_{version}/metrics.csv").decode().splitlines()
        assert metrics[0].split(",") == ["epoch", "score", "step"]
        assert len(metrics) == 13
    assert "lightning_logs/version_1/checkpoints/epoch=2-step=12.ckpt" in names(server)
    assert os.listdir(tmp_path) == []


def test_a_logger_that_appends_loses_no_line(
    pl: ModuleType,
    model_class: type,
    make_trainer: Any,
    simple: Any,
    run_uri: str,
    server: CountingServer,
) -> None:
    logger = importlib.import_module(f"{pl.__name__}.loggers").CSVLogger(run_uri, flush_logs_every_n_steps=2)
    make_trainer(simple, logger=logger, log_every_n_steps=1, enable_checkpointing=False).fit(model_class())
    lines = server.get("run/lightning_logs/version_0/metrics.csv").decode().splitlines()
    assert [line.split(",")[2] for line in lines[1:]] == [str(step) for step in range(12)]


def test_last_is_found_by_a_new_trainer_that_knows_only_the_root(
    model_class: type, make_trainer: Any, simple: Any, run_uri: str
) -> None:
    checkpoints = {"save_last": True, **EVERY_EPOCH}
    make_trainer(simple, checkpoints, default_root_dir=run_uri, max_epochs=1).fit(model_class())
    trainer = make_trainer(simple, checkpoints, default_root_dir=run_uri, max_epochs=2)
    trainer.fit(model_class(), ckpt_path="last")
    assert trainer.ckpt_path == f"{run_uri}/checkpoints/last.ckpt"
    assert trainer.global_step == 8


def test_the_newest_of_several_lasts_is_taken(
    model_class: type, make_trainer: Any, simple: Any, run_uri: str, server: CountingServer
) -> None:
    checkpoints = {"dirpath": run_uri, "save_last": True, **EVERY_STEP}
    make_trainer(simple, checkpoints, max_epochs=1).fit(model_class())
    make_trainer(simple, checkpoints, max_epochs=2).fit(model_class())
    server.put("run/other.ckpt", b"newer, but no last")
    assert {"last.ckpt", "last-v1.ckpt"} <= set(names(server))
    trainer = make_trainer(simple, checkpoints, max_epochs=2)
    trainer.fit(model_class(), ckpt_path="last")
    assert trainer.ckpt_path == f"{run_uri}/last-v1.ckpt"


def test_a_sharded_last_counts_from_the_end_of_its_save(
    model_class: type, make_trainer: Any, simple: Any, run_uri: str, server: CountingServer
) -> None:
    checkpoints = {"dirpath": run_uri, "save_last": True, **EVERY_EPOCH}
    make_trainer(simple, checkpoints, max_epochs=1).fit(model_class())
    server.put("run/last-v1.ckpt/__0_0.distcp", b"of a save that was killed")
    trainer = make_trainer(simple, checkpoints, max_epochs=2)
    trainer.fit(model_class(), ckpt_path="last")
    assert trainer.ckpt_path == f"{run_uri}/last.ckpt"
    assert trainer.global_step == 8
    server.put("run/last-v1.ckpt/.metadata", b"")
    with pytest.raises(FileNotFoundError, match=r"last-v1\.ckpt is a sharded checkpoint"):
        make_trainer(simple, checkpoints, max_epochs=3).fit(model_class(), ckpt_path="last")


def test_last_on_a_local_disk_is_found_as_before(
    pl: ModuleType, model_class: type, make_trainer: Any, simple: Any, tmp_path: Path
) -> None:
    local = importlib.import_module(f"{pl.__name__}.plugins.io").TorchCheckpointIO()
    checkpoints = {"dirpath": str(tmp_path / "local"), "save_last": True, **EVERY_EPOCH}
    make_trainer(local, checkpoints, max_epochs=1).fit(model_class())
    trainer = make_trainer(local, checkpoints, max_epochs=2)
    trainer.fit(model_class(), ckpt_path="last")
    assert str(trainer.ckpt_path) == str(tmp_path / "local" / "last.ckpt")
    assert trainer.global_step == 8


def test_last_without_any_checkpoint_starts_anew(
    model_class: type, make_trainer: Any, simple: Any, run_uri: str
) -> None:
    trainer = make_trainer(simple, {"dirpath": run_uri, "save_last": True, **EVERY_STEP}, max_epochs=1)
    trainer.fit(model_class(), ckpt_path="last")
    assert trainer.global_step == 4


def test_a_callback_may_be_made_before_the_plugin(
    pl: ModuleType, model_class: type, options: dict[str, Any], run_uri: str, server: CountingServer
) -> None:
    callback = importlib.import_module(f"{pl.__name__}.callbacks").ModelCheckpoint(dirpath=run_uri, filename="a")
    plugin = S3LightningCheckpoint(**options)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    pl.Trainer(callbacks=[callback], plugins=[plugin], max_epochs=1, **quiet).fit(model_class())
    assert names(server) == ["a.ckpt"]


class RememberingFileSystem(S3FileSystem):
    """A filesystem that remembers what it has listed, as s3fs does, and knows of no upload in the background."""

    cachable = True

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        folder = self._strip_protocol(path).rstrip("/")
        if folder not in self.dircache:
            try:
                self.dircache[folder] = super().ls(path, detail=True)
            except FileNotFoundError:
                self.dircache[folder] = []
        return [each if detail else each["name"] for each in self.dircache[folder]]

    def exists(self, path: str, **kwargs: Any) -> bool:
        name = self._strip_protocol(path).rstrip("/")
        return name in self.ls(self._parent(name), detail=False)

    def invalidate_cache(self, path: str | None = None) -> None:
        if path is None:
            self.dircache.clear()
        else:
            name = self._strip_protocol(path)
            self.dircache.pop(name, None)
            while name := self._parent(name):
                self.dircache.pop(name, None)


@pytest.fixture
def remembering() -> Iterator[None]:
    """Another filesystem than ours serves `s3://`."""
    fsspec.register_implementation("s3", RememberingFileSystem, clobber=True)
    yield
    register_filesystem(replace=True)
    RememberingFileSystem.clear_instance_cache()


@pytest.mark.usefixtures("remembering")
@pytest.mark.parametrize("kind", [S3LightningCheckpoint, S3AsyncCheckpoint])
def test_a_filesystem_that_remembers_listings_lets_no_training_overwrite_another(
    model_class: type, make_trainer: Any, kind: type, options: dict[str, Any], run_uri: str, server: CountingServer
) -> None:
    for _ in range(3):
        checkpoints = {"dirpath": run_uri, "filename": "{epoch}", "save_last": True, **EVERY_EPOCH}
        make_trainer(kind(**options), checkpoints, max_epochs=1).fit(model_class())
    versions = ("", "-v1", "-v2")
    assert set(names(server)) == {f"{name}{version}.ckpt" for name in ("epoch=0", "last") for version in versions}
    trainer = make_trainer(kind(**options), checkpoints, max_epochs=2)
    trainer.fit(model_class(), ckpt_path="last")
    assert trainer.ckpt_path == f"{run_uri}/last-v2.ckpt"


@pytest.mark.usefixtures("remembering")
def test_a_name_that_is_being_uploaded_is_taken_whichever_filesystem_is_asked(
    model_class: type, make_trainer: Any, options: dict[str, Any], run_uri: str, server: CountingServer
) -> None:
    checkpoints = {"dirpath": run_uri, "filename": "kept", "save_top_k": 2, **EVERY_STEP}
    server.fault(operation="PutObject", delay_seconds=0.05)
    make_trainer(S3AsyncCheckpoint(**options), checkpoints).fit(model_class())
    kept = [torch.load(io.BytesIO(each), weights_only=True) for each in server.objects().values()]
    assert sorted(each["global_step"] for each in kept) == [11, 12]


def test_a_link_to_the_last_checkpoint_is_refused_by_lightning(
    model_class: type, make_trainer: Any, simple: Any, run_uri: str
) -> None:
    with pytest.raises(ValueError, match="only supported for local"):
        make_trainer(simple, {"dirpath": run_uri, "save_last": "link"}).fit(model_class())


@pytest.mark.parametrize("where", ["dirpath", "default_root_dir"])
def test_a_path_object_ends_the_training_before_it_begins_and_leaves_no_local_folder(
    model_class: type, make_trainer: Any, simple: Any, run_uri: str, tmp_path: Path, where: str
) -> None:
    checkpoints = {"dirpath": Path(run_uri)} if where == "dirpath" else {}
    others = {} if where == "dirpath" else {"default_root_dir": Path(run_uri)}
    model = model_class()
    with pytest.raises(TypeError, match=f"pass that as a str, which leads to '{run_uri}"):
        make_trainer(simple, checkpoints, **others).fit(model)
    assert same(weights(model), weights(model_class()))
    assert os.listdir(tmp_path) == []


def test_a_wrong_bucket_ends_the_training_before_it_begins(
    model_class: type, make_trainer: Any, plugin: Any, server: CountingServer
) -> None:
    model = model_class()
    with pytest.raises(NoSuchBucketError, match="no-such-bucket"):
        make_trainer(plugin, {"dirpath": "s3://no-such-bucket/run", **EVERY_STEP}).fit(model)
    assert same(weights(model), weights(model_class()))


@pytest.mark.parametrize(
    ("status", "code", "error"), [(403, "AccessDenied", AccessDeniedError), (404, "NoSuchBucket", NoSuchBucketError)]
)
def test_what_is_lost_in_mid_training_is_named_and_earlier_checkpoints_stay(
    model_class: type,
    make_trainer: Any,
    plugin: Any,
    simple: Any,
    run_uri: str,
    server: CountingServer,
    status: int,
    code: str,
    error: type[Exception],
) -> None:
    server.fault(operation="PutObject", skip=3, status=status, code=code)
    checkpoints = {"dirpath": run_uri, "filename": "{step}", "save_top_k": 1, **EVERY_STEP}
    # In the background it is raised by the next save, which may come before or after the upload fails; Lightning's
    # wrapper goes on, and raises the last of its errors.
    with pytest.raises(error, match=r"run/step=([4-9]|1[0-2])\.ckpt"):
        make_trainer(plugin, checkpoints).fit(model_class())
    server.faults_clear()
    kept = names(server)
    if type(plugin) in (S3LightningCheckpoint, S3AsyncCheckpoint):
        assert kept == ["step=3.ckpt"]
    else:
        # Lightning's wrapper saves and removes side by side: which of the earlier ones is left is a matter of luck.
        assert set(kept) <= {"step=1.ckpt", "step=2.ckpt", "step=3.ckpt"}
    for name in kept:
        # Lightning's wrapper raises the same error for ever after.
        trainer = make_trainer(simple, checkpoints)
        trainer.fit(model_class(), ckpt_path=f"{run_uri}/{name}")
        assert trainer.global_step >= 12


def test_a_stock_sharded_strategy_refuses_s3_and_writes_no_local_folder(
    pl: ModuleType, simple: Any, run_uri: str, tmp_path: Path
) -> None:
    fabric = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}[pl.__name__]
    trainers = importlib.import_module(f"{pl.__name__}.strategies")
    fabrics = importlib.import_module(f"{fabric}.strategies")
    calls = [
        lambda: trainers.ModelParallelStrategy().save_checkpoint({}, f"{run_uri}/a.ckpt"),
        lambda: trainers.ModelParallelStrategy().load_checkpoint(f"{run_uri}/a.ckpt"),
        lambda: trainers.FSDPStrategy().save_checkpoint({}, filepath=Path(f"{run_uri}/a.ckpt")),
        lambda: trainers.FSDPStrategy().load_checkpoint(checkpoint_path=f"{run_uri}/a.ckpt"),
        lambda: trainers.ModelParallelStrategy().save_checkpoint({}, Path(f"{run_uri}/a.ckpt").absolute()),
        lambda: fabrics.ModelParallelStrategy(lambda module, mesh: module).save_checkpoint(f"{run_uri}/a.ckpt", {}),
        lambda: fabrics.FSDPStrategy().load_checkpoint(path=f"{run_uri}/a.ckpt", state={}),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"Use S3(ModelParallel|FSDP)Strategy from s3torch_lightning"):
            call()
    # Neither can be made without a package that is not installed here, nor does its class need to be.
    for strategy, arguments in [
        (trainers.DeepSpeedStrategy, ({}, f"{run_uri}/a.ckpt")),
        (fabrics.DeepSpeedStrategy, (f"{run_uri}/a.ckpt", {})),
        (fabrics.XLAFSDPStrategy, (Path(f"{run_uri}/a.ckpt"), {})),
    ]:
        with pytest.raises(TypeError, match=r"Save to a local disk"):
            strategy.save_checkpoint(object(), *arguments)
    assert os.listdir(tmp_path) == []
