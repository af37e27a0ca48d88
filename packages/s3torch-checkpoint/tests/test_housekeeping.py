"""Housekeeping: only what is committed counts, metadata goes first, and nothing that is named is ever deleted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from s3torch_checkpoint import CorruptCheckpointError, NoCheckpointError
from s3torch_checkpoint.dcp import (
    RoundRobinPrefixStrategy,
    S3StorageReader,
    S3StorageWriter,
    clean,
    delete_checkpoint,
    keep_last,
    latest,
    list_checkpoints,
)
from servers.counting import CountingServer
from torch_features import needs_torch

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
Options = dict[str, Any]
saves_alone = needs_torch("torch.distributed.checkpoint.save", "use_collectives")


def save(options: Options, uri: str, value: float = 1.0, *, use_collectives: bool = True) -> None:
    writer = S3StorageWriter(path=uri, **options)
    alone: dict[str, Any] = {} if use_collectives else {"use_collectives": False}
    dcp.save({"a": torch.full((10,), value)}, storage_writer=writer, **alone)


def load(options: Options, uri: str) -> float:
    state = {"a": torch.zeros(10)}
    dcp.load(state, storage_reader=S3StorageReader(path=uri, **options))
    return float(state["a"][0])


@pytest.fixture
def three(options: Options, root: str) -> list[str]:
    uris = [f"{root}/step-{step}" for step in (9, 10, 100)]
    for uri in uris:
        save(options, uri)
    return uris


def test_checkpoints_are_listed_by_commit_and_number(options: Options, root: str, three: list[str]) -> None:
    assert [found.uri for found in list_checkpoints(root, **options)] == three


def test_what_was_never_committed_is_not_listed(
    options: Options, root: str, three: list[str], counting_server: CountingServer
) -> None:
    counting_server.delete("run/step-100/.metadata")
    counting_server.put("run/notes.txt", b"")
    assert latest(root, **options) == three[1]


def test_there_may_be_no_checkpoint_at_all(options: Options, root: str) -> None:
    assert list_checkpoints(root, **options) == []
    with pytest.raises(NoCheckpointError, match="run"):
        latest(root, **options)


def test_only_the_last_checkpoints_are_kept(
    options: Options, root: str, three: list[str], counting_server: CountingServer
) -> None:
    counting_server.put("run/step-9/config.json", b"{}")
    counting_server.clear()
    assert keep_last(root, 1, **options) == three[:2]
    assert [found.uri for found in list_checkpoints(root, **options)] == three[2:]
    left = [key for key in counting_server.objects() if not key.startswith("run/step-100/")]
    assert left == ["run/step-9/config.json"]
    assert load(options, three[2]) == 1.0


@pytest.mark.parametrize("operation", ["HeadObject", "GetObject"], ids=["after it is found", "after it is read"])
def test_a_checkpoint_that_is_saved_again_meanwhile_is_kept(
    options: Options, root: str, three: list[str], counting_server: CountingServer, operation: str
) -> None:
    old = counting_server.get("run/step-9/.metadata")
    save(options, three[0], 2.0)
    new = counting_server.get("run/step-9/.metadata")
    counting_server.put("run/step-9/.metadata", old)
    for uri in three[1:]:
        save(options, uri, 3.0)
    counting_server.fault(key="run/step-9/.metadata", operation=operation, times=1, replace_with=new)
    assert keep_last(root, 1, **options) == [three[1]]
    assert load(options, three[0]) == 2.0


def test_one_checkpoint_is_deleted_and_nothing_else(
    options: Options, root: str, three: list[str], counting_server: CountingServer
) -> None:
    counting_server.put("run/step-9/config.json", b"{}")
    save(options, f"{three[0]}/inner")
    for _ in range(2):
        delete_checkpoint(three[0] + "/", **options)
    left = {key for key in counting_server.objects() if key.startswith("run/step-9/")}
    assert {key for key in left if not key.startswith("run/step-9/inner/")} == {"run/step-9/config.json"}
    assert load(options, f"{three[0]}/inner") == load(options, three[1]) == 1.0


def test_a_checkpoint_whose_metadata_cannot_be_read_is_not_deleted(
    options: Options, root: str, three: list[str], counting_server: CountingServer
) -> None:
    counting_server.put("run/step-9/.metadata", b"no pickle")
    before = counting_server.keys()
    with pytest.raises(CorruptCheckpointError, match="step-9"):
        delete_checkpoint(three[0], **options)
    assert counting_server.keys() == before


def test_the_metadata_is_deleted_first(
    options: Options, root: str, three: list[str], counting_server: CountingServer
) -> None:
    counting_server.fault(operation="DeleteObjects", status=403, code="AccessDenied")
    with pytest.raises(PermissionError):
        keep_last(root, 2, **options)
    assert "run/step-9/.metadata" not in counting_server.objects()


def test_keeping_more_than_there_are_deletes_nothing(options: Options, root: str, three: list[str]) -> None:
    assert keep_last(root, 3, **options) == []
    assert len(list_checkpoints(root, **options)) == 3


@pytest.mark.parametrize("n", [0, -1, True, 1.0])
def test_keeping_none_is_refused(options: Options, root: str, three: list[str], n: Any) -> None:
    with pytest.raises(ValueError, match="n is"):
        keep_last(root, n, **options)
    assert len(list_checkpoints(root, **options)) == 3


def test_clean_deletes_what_no_metadata_names(
    options: Options, root: str, three: list[str], counting_server: CountingServer
) -> None:
    counting_server.delete("run/step-9/.metadata")
    counting_server.put("run/step-10/__1_0.distcp", b"left over")
    counting_server.put("run/step-10/weights.bin", b"somebody else's")
    deleted = clean(root, min_age_seconds=-1, **options)
    assert len(deleted) == 2
    assert "run/step-10/weights.bin" in counting_server.objects()
    assert [load(options, uri) for uri in three[1:]] == [1.0, 1.0]
    assert clean(root, min_age_seconds=-1, **options) == []


def test_clean_of_a_folder_within_a_checkpoint_keeps_what_the_checkpoint_names(options: Options, root: str) -> None:
    strategy = RoundRobinPrefixStrategy(["shards/left"])
    state = {"a": torch.ones(10)}
    dcp.save(state, storage_writer=S3StorageWriter(path=f"{root}/one", prefix_strategy=strategy, **options))
    for folder in ("one/shards", "one/shards/left"):
        assert clean(f"{root}/{folder}", min_age_seconds=-1, **options) == []
    assert load(options, f"{root}/one") == 1.0


def test_clean_deletes_nothing_where_the_folders_above_may_not_be_listed(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    strategy = RoundRobinPrefixStrategy(["shards"])
    dcp.save({"a": torch.ones(10)}, storage_writer=S3StorageWriter(path=root, prefix_strategy=strategy, **options))
    counting_server.fault(query={"prefix": "run/.metadata"}, status=403, code="AccessDenied")
    with pytest.raises(PermissionError, match=r"nothing under .*/run/shards was deleted"):
        clean(f"{root}/shards", min_age_seconds=-1, **options)
    assert load(options, root) == 1.0


@saves_alone
def test_clean_keeps_what_a_rank_names_that_saved_on_its_own(options: Options, root: str) -> None:
    strategy = RoundRobinPrefixStrategy(["shards"])
    writer = S3StorageWriter(path=f"{root}/one", prefix_strategy=strategy, **options)
    dcp.save({"a": torch.ones(10)}, storage_writer=writer, use_collectives=False)
    assert clean(root, min_age_seconds=-1, **options) == []
    assert clean(f"{root}/one/shards", min_age_seconds=-1, **options) == []
    assert load(options, f"{root}/one") == 1.0


@saves_alone
def test_what_ranks_saved_on_their_own_is_deleted_by_its_name(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    save(options, f"{root}/one", use_collectives=False)
    save(options, f"{root}/one/two")
    delete_checkpoint(f"{root}/one", **options)
    assert {key.rpartition("/")[0] for key in counting_server.objects()} == {"run/one/two"}
    assert load(options, f"{root}/one/two") == 1.0


@saves_alone
def test_what_a_rank_saves_while_its_earlier_save_is_deleted_stays(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    save(options, root, 2.0, use_collectives=False)
    newer = counting_server.objects()
    save(options, root, 1.0, use_collectives=False)
    for key, content in newer.items():
        if key != "run/__0.metadata":
            counting_server.put(key, content)
    # The new commit comes after the metadata was read.
    counting_server.fault(method="GET", key="run/__0.metadata", times=1, replace_with=newer["run/__0.metadata"])
    delete_checkpoint(root, **options)
    assert load(options, root) == 2.0


@saves_alone
def test_a_checkpoint_of_the_whole_job_replaces_what_ranks_saved_on_their_own(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    save(options, f"{root}/one", 1.0, use_collectives=False)
    counting_server.put("run/one/__7.metadata", b"garbage")
    save(options, f"{root}/one", 2.0)
    save(options, f"{root}/two", 3.0)
    assert load(options, f"{root}/one") == 2.0
    assert len([key for key in counting_server.objects() if key.startswith("run/one/")]) == 2
    keep_last(root, 1, **options)
    with pytest.raises(CheckpointException, match="no checkpoint at"):
        load(options, f"{root}/one")


@pytest.fixture
def hidden(options: Options, root: str, counting_server: CountingServer) -> None:
    """Put a checkpoint of rank 0 alone under one of the whole job, as a refused removal leaves it."""
    save(options, f"{root}/one", 1.0, use_collectives=False)
    alone = counting_server.objects()
    save(options, f"{root}/one", 2.0)
    save(options, f"{root}/two", 3.0)
    for key, content in alone.items():
        counting_server.put(key, content)


@saves_alone
@pytest.mark.usefixtures("hidden")
def test_what_is_removed_does_not_uncover_what_ranks_saved_on_their_own(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    counting_server.fault(method="DELETE", key="run/one/.metadata", times=1, status=403, code="AccessDenied")
    with pytest.raises(PermissionError):
        keep_last(root, 1, **options)
    assert load(options, f"{root}/one") == 2.0
    assert keep_last(root, 1, **options) == [f"{root}/one"]
    assert not [key for key in counting_server.objects() if key.endswith(".metadata") and "/one/" in key]
    clean(root, min_age_seconds=-1, **options)
    assert not [key for key in counting_server.objects() if "/one/" in key]
    assert load(options, f"{root}/two") == 3.0


@saves_alone
@pytest.mark.usefixtures("hidden")
def test_clean_deletes_what_ranks_saved_on_their_own_where_a_checkpoint_hides_it(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    assert clean(root, **options) == []
    deleted = clean(root, min_age_seconds=-1, **options)
    assert sorted(key.endswith("one/__0.metadata") for key in deleted) == [False, True]
    assert [load(options, f"{root}/{name}") for name in ("one", "two")] == [2.0, 3.0]
    assert len(counting_server.objects()) == 4


@saves_alone
def test_a_save_that_may_not_overwrite_leaves_what_ranks_saved_on_their_own(options: Options, root: str) -> None:
    save(options, root, 1.0, use_collectives=False)
    writer = S3StorageWriter(path=root, overwrite=False, **options)
    with pytest.raises(CheckpointException, match="overwrite=False"):
        dcp.save({"a": torch.zeros(10)}, storage_writer=writer)
    assert load(options, root) == 1.0


def test_a_folder_without_a_name_is_not_taken_for_the_one_around_it(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    for uri in (root, f"{root}//", f"{root}/step"):
        save(options, uri)
    assert {found.uri for found in list_checkpoints(root, **options)} == {f"{root}//", f"{root}/step"}
    keep_last(root, 1, **options)
    assert load(options, root) == 1.0


def test_clean_leaves_a_save_in_progress_alone(options: Options, root: str, counting_server: CountingServer) -> None:
    counting_server.put("run/step-1/__0_0.distcp", b"just written")
    assert clean(root, **options) == []
    assert "run/step-1/__0_0.distcp" in counting_server.objects()


def test_clean_deletes_nothing_where_metadata_cannot_be_read(
    options: Options, root: str, three: list[str], counting_server: CountingServer
) -> None:
    counting_server.put("run/step-9/.metadata", b"garbage")
    before = list(counting_server.objects())
    with pytest.raises(CorruptCheckpointError, match="step-9"):
        clean(root, min_age_seconds=-1, **options)
    assert list(counting_server.objects()) == before


def test_objects_named_by_torchs_layout_are_kept(
    options: Options, root: str, counting_server: CountingServer, tmp_path: Any
) -> None:
    dcp.save({"a": torch.ones(10)}, storage_writer=dcp.FileSystemWriter(tmp_path))
    for path in tmp_path.iterdir():
        counting_server.put(f"run/foreign/{path.name}", path.read_bytes())
    assert clean(root, min_age_seconds=-1, **options) == []
    assert load(options, f"{root}/foreign") == 1.0
