"""`S3LightningCheckpoint` by itself, as a Trainer or Fabric calls it."""

from __future__ import annotations

import gc
import importlib
import pickle
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest
import torch

from planned_loads import note_planned_loads
from s3core import AccessDeniedError, ConfigError, NoSuchKeyError, S3Exception
from s3torch_checkpoint import S3Checkpoint
from s3torch_lightning import S3AsyncCheckpoint, S3LightningCheckpoint
from s3torch_lightning._sharded import ShardedCheckpoint, pickled_meta
from servers import CountingServer


class SpelledPath:
    """A path class that keeps both slashes, as those of some cloud libraries do."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __fspath__(self) -> str:
        return self.uri


@pytest.fixture
def plugin(options: dict[str, Any]) -> S3LightningCheckpoint:
    return S3LightningCheckpoint(**options)


def content(value: float = 1.0) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((3, 2), value)}, "epoch": 4}


def headers_of(server: CountingServer, operation: str) -> Mapping[str, str]:
    return next(
        {name.lower(): value for name, value in request.headers.items()}
        for request in server.requests
        if request.operation == operation
    )


def test_a_saved_checkpoint_loads_as_it_was(plugin: S3LightningCheckpoint, run_uri: str) -> None:
    plugin.save_checkpoint(content(), f"{run_uri}/a.ckpt")
    loaded = plugin.load_checkpoint(f"{run_uri}/a.ckpt")
    assert loaded["epoch"] == 4
    assert torch.equal(loaded["state_dict"]["weight"], torch.ones(3, 2))


def test_a_checkpoint_of_a_trainer_is_loaded_with_all_its_tensors_at_once(
    pl: ModuleType, plugin: S3LightningCheckpoint, run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = note_planned_loads(monkeypatch)
    monkeypatch.setattr("s3torch_checkpoint._checkpoint.PLANNED_BYTES", 0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=2, plugins=[plugin], **quiet)
    trainer.fit(importlib.import_module(f"{pl.__name__}.demos.boring_classes").BoringModel())
    trainer.save_checkpoint(f"{run_uri}/a.ckpt")
    loaded = plugin.load_checkpoint(f"{run_uri}/a.ckpt")
    assert loaded is planned[0]
    assert loaded["global_step"] == 2


def test_a_saved_checkpoint_loads_with_plain_torch_load(
    plugin: S3LightningCheckpoint, run_uri: str, options: dict[str, Any], server: CountingServer, tmp_path: Path
) -> None:
    plugin.save_checkpoint(content(), f"{run_uri}/a.ckpt")
    assert S3Checkpoint(**options).load(f"{run_uri}/a.ckpt")["epoch"] == 4
    (tmp_path / "copy.ckpt").write_bytes(server.get("run/a.ckpt"))
    assert torch.load(tmp_path / "copy.ckpt", weights_only=True)["epoch"] == 4


def test_a_path_object_that_spells_the_uri_will_do(plugin: S3LightningCheckpoint, run_uri: str) -> None:
    plugin.save_checkpoint(content(), SpelledPath(f"{run_uri}/a.ckpt"))
    assert plugin.load_checkpoint(SpelledPath(f"{run_uri}/a.ckpt"))["epoch"] == 4
    plugin.remove_checkpoint(SpelledPath(f"{run_uri}/a.ckpt"))


@pytest.mark.parametrize("path", [PurePosixPath("s3://bucket/a.ckpt"), "s3:/bucket/a.ckpt", "/home/s3:/bucket/a.ckpt"])
def test_a_path_that_lost_a_slash_is_refused_with_the_uri_it_meant(plugin: S3LightningCheckpoint, path: Any) -> None:
    for call in (lambda: plugin.save_checkpoint({}, path), lambda: plugin.load_checkpoint(path)):
        with pytest.raises(TypeError, match=r"pass the str 's3://bucket/a\.ckpt'"):
            call()


@pytest.mark.parametrize("path", [7, None, b"s3://bucket/key", "/tmp/a.ckpt", Path("a.ckpt"), "gs://bucket/key"])
def test_anything_that_is_no_s3_uri_is_a_type_error(plugin: S3LightningCheckpoint, path: Any) -> None:
    for call in (
        lambda: plugin.save_checkpoint({}, path),
        lambda: plugin.load_checkpoint(path),
        lambda: plugin.remove_checkpoint(path),
    ):
        with pytest.raises(TypeError, match="s3://bucket"):
            call()


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://bucket//"])
def test_a_whole_bucket_is_no_checkpoint(plugin: S3LightningCheckpoint, uri: str) -> None:
    for call in (lambda: plugin.save_checkpoint({}, uri), lambda: plugin.remove_checkpoint(uri)):
        with pytest.raises(ValueError, match="names a bucket"):
            call()


def test_storage_options_reach_the_object(plugin: S3LightningCheckpoint, run_uri: str, server: CountingServer) -> None:
    options = {"storage_class": "STANDARD_IA", "metadata": {"team": "blue"}, "sse": "AES256"}
    plugin.save_checkpoint(content(), f"{run_uri}/a.ckpt", storage_options=options)
    headers = headers_of(server, "PutObject")
    assert headers["x-amz-storage-class"] == "STANDARD_IA"
    assert headers["x-amz-meta-team"] == "blue"
    assert headers["x-amz-server-side-encryption"] == "AES256"
    assert plugin.load_checkpoint(f"{run_uri}/a.ckpt")["epoch"] == 4


def test_storage_options_are_for_one_save_alone(
    plugin: S3LightningCheckpoint, run_uri: str, server: CountingServer
) -> None:
    plugin.save_checkpoint(content(), f"{run_uri}/a.ckpt", storage_options={"storage_class": "STANDARD_IA"})
    server.clear()
    plugin.save_checkpoint(content(), f"{run_uri}/b.ckpt")
    assert "x-amz-storage-class" not in headers_of(server, "PutObject")


@pytest.mark.parametrize("storage_options", [{"acl": "public"}, {"region": "x"}, {"storage_class": "STANDARD", "x": 1}])
def test_an_option_that_means_nothing_is_refused_by_name(
    plugin: S3LightningCheckpoint, run_uri: str, storage_options: dict[str, Any], server: CountingServer
) -> None:
    name = list(storage_options)[-1]
    with pytest.raises(TypeError, match=f"'{name}'"):
        plugin.save_checkpoint(content(), f"{run_uri}/a.ckpt", storage_options=storage_options)
    assert server.requests == []


@pytest.mark.parametrize("storage_options", ["STANDARD", 3, {"metadata": "blue"}])
def test_storage_options_of_another_type_are_refused(
    plugin: S3LightningCheckpoint, run_uri: str, storage_options: Any
) -> None:
    with pytest.raises(TypeError, match="mapping"):
        plugin.save_checkpoint(content(), f"{run_uri}/a.ckpt", storage_options=storage_options)


@pytest.mark.parametrize("kind", [S3LightningCheckpoint, S3AsyncCheckpoint])
def test_metadata_that_is_no_text_is_refused_at_once(kind: type, options: dict[str, Any], run_uri: str) -> None:
    with pytest.raises(TypeError, match="'epoch': 3"):
        kind(**options).save_checkpoint(content(), f"{run_uri}/a.ckpt", {"metadata": {"epoch": 3}})


def test_an_option_of_a_bad_value_is_refused(plugin: S3LightningCheckpoint, run_uri: str) -> None:
    with pytest.raises(ConfigError, match="storage_class"):
        plugin.save_checkpoint(content(), f"{run_uri}/a.ckpt", storage_options={"storage_class": "cheap"})


@pytest.mark.parametrize("storage_options", [None, {"metadata": {"team": "blue"}}])
def test_the_parts_follow_from_the_size_of_the_checkpoint(
    plugin: S3LightningCheckpoint, run_uri: str, server: CountingServer, storage_options: Any
) -> None:
    # What cannot be known unless the size is: that no part is large enough.
    checkpoint = {"weight": torch.UntypedStorage(64 * 2**40, device="meta")}
    with pytest.raises(ConfigError, match=r"48\.8 TiB"):
        plugin.save_checkpoint(checkpoint, f"{run_uri}/a.ckpt", storage_options=storage_options)
    assert server.requests == []


@pytest.mark.parametrize("storage_options", [None, {"metadata": {"team": "blue"}}])
def test_a_save_that_fails_leaves_the_old_checkpoint_and_says_why(
    plugin: S3LightningCheckpoint, run_uri: str, server: CountingServer, storage_options: Any
) -> None:
    plugin.save_checkpoint(content(1.0), f"{run_uri}/a.ckpt")
    server.fault(method="PUT", status=403, code="AccessDenied")
    server.fault(method="POST", status=403, code="AccessDenied")
    large = {"weight": torch.zeros(24 * 2**20, dtype=torch.uint8)}
    for checkpoint in (content(2.0), large):
        with pytest.raises(AccessDeniedError, match=r"run/a\.ckpt"):
            plugin.save_checkpoint(checkpoint, f"{run_uri}/a.ckpt", storage_options=storage_options)
    server.faults_clear()
    assert float(plugin.load_checkpoint(f"{run_uri}/a.ckpt")["state_dict"]["weight"][0, 0]) == 1.0
    assert server.uploads() == []


@pytest.mark.parametrize("storage_options", [None, {"metadata": {"step": "1"}}])
def test_nothing_is_kept_of_what_could_not_be_saved(
    plugin: S3LightningCheckpoint, server: CountingServer, run_uri: str, storage_options: dict[str, Any] | None
) -> None:
    server.fault(operation="CreateMultipartUpload", status=403, code="AccessDenied")

    def fail() -> weakref.ref[torch.Tensor]:
        weight = torch.ones(8 * 2**20)
        with pytest.raises(AccessDeniedError):
            plugin.save_checkpoint({"weight": weight}, f"{run_uri}/a.ckpt", storage_options)
        return weakref.ref(weight)

    weight = fail()
    gc.collect()
    assert weight() is None


def test_a_checkpoint_that_cannot_be_pickled_leaves_the_old_one(plugin: S3LightningCheckpoint, run_uri: str) -> None:
    plugin.save_checkpoint(content(), f"{run_uri}/a.ckpt")
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        plugin.save_checkpoint({"function": lambda: 0}, f"{run_uri}/a.ckpt")
    assert plugin.load_checkpoint(f"{run_uri}/a.ckpt")["epoch"] == 4


def test_an_empty_checkpoint_round_trips(plugin: S3LightningCheckpoint, run_uri: str) -> None:
    plugin.save_checkpoint({}, f"{run_uri}/a.ckpt")
    assert plugin.load_checkpoint(f"{run_uri}/a.ckpt") == {}


def test_an_empty_object_is_an_error_and_no_checkpoint(
    plugin: S3LightningCheckpoint, run_uri: str, server: CountingServer
) -> None:
    server.put("run/a.ckpt", b"")
    with pytest.raises((EOFError, RuntimeError, S3Exception, pickle.UnpicklingError)):
        plugin.load_checkpoint(f"{run_uri}/a.ckpt")


def test_a_missing_checkpoint_is_named(plugin: S3LightningCheckpoint, run_uri: str) -> None:
    with pytest.raises(NoSuchKeyError, match=r"run/a\.ckpt") as caught:
        plugin.load_checkpoint(f"{run_uri}/a.ckpt")
    assert isinstance(caught.value, FileNotFoundError)


def test_a_sharded_checkpoint_is_explained(plugin: S3LightningCheckpoint, run_uri: str, server: CountingServer) -> None:
    server.put("run/a.ckpt/.metadata", b"x")
    with pytest.raises(NoSuchKeyError, match=r"load it with S3FSDPStrategy or S3ModelParallelStrategy$"):
        plugin.load_checkpoint(f"{run_uri}/a.ckpt")


def test_code_in_a_checkpoint_is_not_run_where_weights_only_is_asked_for(
    plugin: S3LightningCheckpoint, run_uri: str
) -> None:
    plugin.save_checkpoint({"path": SpelledPath("s3://x/y")}, f"{run_uri}/a.ckpt")
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights"):
        plugin.load_checkpoint(f"{run_uri}/a.ckpt", weights_only=True)
    assert plugin.load_checkpoint(f"{run_uri}/a.ckpt", weights_only=False)["path"].uri == "s3://x/y"


def test_map_location_is_followed(plugin: S3LightningCheckpoint, run_uri: str) -> None:
    plugin.save_checkpoint(content(), f"{run_uri}/a.ckpt")
    assert plugin.load_checkpoint(f"{run_uri}/a.ckpt")["state_dict"]["weight"].device.type == "cpu"
    meta = plugin.load_checkpoint(f"{run_uri}/a.ckpt", map_location="meta")
    assert meta["state_dict"]["weight"].device.type == "meta"


def test_removing_one_checkpoint_removes_no_other(
    plugin: S3LightningCheckpoint, run_uri: str, server: CountingServer
) -> None:
    for key in ("run/epoch=1", "run/epoch=10", "run/epoch=1-v1", "run/epoch=11/.metadata"):
        server.put(key, b"x")
    plugin.remove_checkpoint(f"{run_uri}/epoch=1")
    assert server.keys() == ["run/epoch=1-v1", "run/epoch=10", "run/epoch=11/.metadata"]
    plugin.remove_checkpoint(f"{run_uri}/epoch=1")


def save_shards(plugin: S3LightningCheckpoint, uri: str) -> None:
    ShardedCheckpoint(plugin.settings, uri, progress=False).save({"model": torch.ones(2)}, pickled_meta({}))


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")
def test_a_sharded_checkpoint_is_removed_whole_and_its_metadata_first(
    plugin: S3LightningCheckpoint, run_uri: str, server: CountingServer
) -> None:
    for name in ("a.ckpt", "b.ckpt"):
        save_shards(plugin, f"{run_uri}/{name}")
        server.put(f"run/{name}/meta.pt", b"x")
    plugin.remove_checkpoint(f"{run_uri}/a.ckpt")
    assert not any(key.startswith("run/a.ckpt") for key in server.objects())
    server.fault(operation="DeleteObjects", status=403, code="AccessDenied")
    with pytest.raises(AccessDeniedError):
        plugin.remove_checkpoint(f"{run_uri}/b.ckpt")
    assert "run/b.ckpt/.metadata" not in server.objects()


@pytest.mark.parametrize("kind", [S3LightningCheckpoint, S3AsyncCheckpoint])
@pytest.mark.parametrize("name", ["final", "final/"])
@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")
def test_what_lies_below_the_name_of_a_checkpoint_is_not_removed_with_it(
    kind: type, name: str, options: dict[str, Any], run_uri: str, server: CountingServer
) -> None:
    plugin = kind(**options)
    save_shards(plugin, f"{run_uri}/final/inner")
    others = {*server.keys(), "run/final/epoch=1.ckpt", "run/final/tokenizer.json"}
    for key in others - server.objects().keys():
        server.put(key, b"x")
    for lie_there in (True, False):
        if lie_there:
            save_shards(plugin, f"{run_uri}/final")
            server.put("run/final/meta.pt", b"x")
        plugin.save_checkpoint(content(), f"{run_uri}/{name}")
        plugin.remove_shards(f"{run_uri}/{name}")
        plugin.teardown()
        assert set(server.keys()) == {f"run/{name}", *others}
    plugin.remove_checkpoint(f"{run_uri}/{name}")
    plugin.teardown()
    assert set(server.keys()) == others


def test_the_plugin_pickles(plugin: S3LightningCheckpoint, options: dict[str, Any], run_uri: str) -> None:
    plugin.save_checkpoint(content(), f"{run_uri}/a.ckpt")
    for each in (plugin, S3AsyncCheckpoint(**options)):
        copy = pickle.loads(pickle.dumps(each))
        assert type(copy) is type(each)
        assert copy.load_checkpoint(f"{run_uri}/a.ckpt")["epoch"] == 4
        assert (copy.region, copy.endpoint, copy.s3client_config) == tuple(
            options[name] for name in ("region", "endpoint", "s3client_config")
        )


def test_both_lightnings_take_it_for_one_of_their_own(pl: ModuleType, options: dict[str, Any]) -> None:
    fabric = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}[pl.__name__]
    checkpoint_io = importlib.import_module(f"{fabric}.plugins").CheckpointIO
    assert isinstance(S3LightningCheckpoint(**options), checkpoint_io)
    assert isinstance(S3AsyncCheckpoint(**options), checkpoint_io)


def test_bad_settings_are_refused_when_the_plugin_is_made() -> None:
    with pytest.raises(ConfigError):
        S3LightningCheckpoint(s3client_config=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_in_flight"):
        S3AsyncCheckpoint(max_in_flight=0)


def in_fresh_interpreter(program: str) -> subprocess.CompletedProcess[str]:
    paths = [path for path in sys.path if path]
    program = f"import sys; sys.path[:0] = {paths!r}\n{program}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280, check=False)


HIDE = """
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in HIDDEN else found(name, *rest)
"""


def test_without_any_lightning_the_error_says_what_to_install() -> None:
    hidden = ["lightning", "pytorch_lightning", "lightning_fabric"]
    done = in_fresh_interpreter(f"HIDDEN = {hidden}\n{HIDE}\nfrom s3torch_lightning import S3LightningCheckpoint")
    assert "ImportError: s3torch-lightning needs Lightning" in done.stderr
    assert "pip install 's3torch-lightning[lightning]'" in done.stderr


@pytest.mark.parametrize("hidden", [["lightning"], ["pytorch_lightning", "lightning_fabric"]])
def test_either_lightning_is_enough(hidden: list[str]) -> None:
    pytest.importorskip("pytorch_lightning" if hidden == ["lightning"] else "lightning")
    done = in_fresh_interpreter(
        f"HIDDEN = {hidden}\n{HIDE}\n"
        "from s3torch_lightning import S3LightningCheckpoint, S3ModelParallelStrategy, S3FSDPStrategy\n"
        "S3LightningCheckpoint(); print(S3LightningCheckpoint.__mro__[1].__module__.partition('.')[0])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["lightning_fabric" if hidden == ["lightning"] else "lightning"]


def test_an_old_lightning_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_lightning").mkdir()
    (tmp_path / "pytorch_lightning" / "__init__.py").write_text("__version__ = '2.3.3'\n")
    done = in_fresh_interpreter(
        f"sys.path.insert(0, {str(tmp_path)!r})\nHIDDEN = ['lightning']\n{HIDE}\n"
        "from s3torch_lightning import S3LightningCheckpoint"
    )
    assert "needs pytorch_lightning 2.4 or newer, and 2.3.3 is installed" in done.stderr


def test_importing_the_package_imports_neither_lightning_nor_torch() -> None:
    done = in_fresh_interpreter(
        "import s3torch_lightning; print([n for n in sys.modules if n in ('lightning', 'torch')])"
    )
    assert done.stdout.strip() == "[]", done.stderr
