"""A save finds out while it writes its data whether it is the first in its place, and commits by one request then."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from held_planner import HeldPlanner
from s3torch_checkpoint.dcp import S3StorageReader, S3StorageWriter
from servers import S3Server
from servers.counting import CountingServer
from torch_features import needs_torch

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
Options = dict[str, Any]
METADATA = "run/.metadata"


def save(options: Options, root: str, value: float, **more: Any) -> None:
    dcp.save({"a": torch.full((1000,), value)}, storage_writer=S3StorageWriter(path=root, **options), **more)


def load(options: Options, root: str) -> float:
    target = {"a": torch.zeros(1000)}
    dcp.load(target, storage_reader=S3StorageReader(path=root, **options))
    (value,) = set(target["a"].tolist())
    return float(value)


def data_keys(server: CountingServer) -> list[str]:
    return [key for key in server.keys() if key.endswith(".distcp")]  # noqa: SIM118  # a server is no dict


def metadata_requests(server: CountingServer) -> list[tuple[str, int | None]]:
    return [(request.method, request.status) for request in server.requests if request.key == METADATA]


@contextmanager
def held_save(options: Options, root: str, server: CountingServer, value: float) -> Iterator[Callable[[], Any]]:
    """A save that has looked for a checkpoint, and stands still; gives what lets it go on and waits for its end."""
    planner = HeldPlanner()
    with ThreadPoolExecutor(1) as thread:
        saving = thread.submit(save, options, root, value, planner=planner)
        try:
            assert planner.is_held.wait(60)
            server.wait_for_requests(1, key=METADATA, method="HEAD", status=404)

            def finish() -> Any:
                planner.may_go_on.set()
                return saving.result()

            yield finish
        finally:
            planner.may_go_on.set()


def test_the_first_save_commits_without_another_look(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    with held_save(options, root, counting_server, 1.0) as finish:
        looks = len(counting_server.requests)
        finish()
    (commit,) = [request for request in counting_server.requests[looks:] if request.key == METADATA]
    assert (commit.method, commit.status, commit.headers.get("if-none-match")) == ("PUT", 200, "*")
    assert load(options, root) == 1.0


def test_a_later_save_looks_again_and_replaces_the_first(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    save(options, root, 1.0)
    old = set(data_keys(counting_server))
    counting_server.clear()
    save(options, root, 2.0)
    assert [method for method, _ in metadata_requests(counting_server)] == ["HEAD", "HEAD", "GET", "PUT"]
    assert not old & set(data_keys(counting_server))
    assert load(options, root) == 2.0


def test_a_checkpoint_that_comes_after_the_early_look_is_replaced_with_its_data(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    with held_save(options, root, counting_server, 1.0) as finish:
        save(options, root, 2.0)
        (other,) = data_keys(counting_server)
        finish()
    assert load(options, root) == 1.0
    assert len(data_keys(counting_server)) == 1
    assert other not in data_keys(counting_server)


@needs_torch("torch.distributed.checkpoint.save", "use_collectives")
def test_what_ranks_saved_on_their_own_is_replaced_with_their_data(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    save(options, root, 1.0, use_collectives=False)
    assert "run/__0.metadata" in counting_server.objects()
    save(options, root, 2.0)
    assert "run/__0.metadata" not in counting_server.objects()
    assert len(data_keys(counting_server)) == 1
    assert load(options, root) == 2.0


@pytest.mark.parametrize(
    ("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument"), (403, "AccessDenied")], ids=str
)
def test_a_store_that_refuses_the_condition_gets_the_checkpoint_without_it(
    options: Options, root: str, counting_server: CountingServer, status: int, code: str
) -> None:
    counting_server.fault(method="PUT", key=METADATA, times=1, status=status, code=code)
    save(options, root, 1.0)
    puts = [request for request in counting_server.requests if (request.method, request.key) == ("PUT", METADATA)]
    assert [(request.status, request.headers.get("if-none-match")) for request in puts] == [(status, "*"), (200, None)]
    assert load(options, root) == 1.0


def test_a_store_that_ignores_the_condition_keeps_the_last_commit_whole(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    counting_server.fault(method="PUT", key=METADATA, ignore_conditions=True)
    with held_save(options, root, counting_server, 1.0) as finish:
        save(options, root, 2.0)
        finish()
    assert load(options, root) == 1.0


def metadata_of_another(options: Options, root: str, server: CountingServer) -> bytes:
    """The metadata of a checkpoint of 2.0 whose data is there, and which is not committed yet."""
    there = server.objects().get(METADATA)
    save(options, f"{root}/other", 2.0)
    metadata = server.get("run/other/.metadata")
    server.delete("run/other/.metadata")
    (data,) = [key for key in data_keys(server) if key.startswith("run/other/")]
    server.put(data.replace("run/other/", "run/"), server.get(data))
    server.delete(data)
    assert server.objects().get(METADATA) == there
    return metadata


@pytest.mark.parametrize("is_first", [True, False], ids=["the first", "a later one"])
def test_a_commit_is_not_repeated_over_another_that_may_have_replaced_it(
    options: Options, root: str, counting_server: CountingServer, is_first: bool
) -> None:
    """The other save deletes the data of what it has replaced, and so maybe this one's."""
    if not is_first:
        save(options, root, 3.0)
    other = metadata_of_another(options, root, counting_server)
    counting_server.fault(method="PUT", key=METADATA, times=1, cut=0, replace_with=other)
    with pytest.raises(CheckpointException, match=r"run/\.metadata was written by somebody else .* an answer was lost"):
        save(options, root, 1.0)
    assert counting_server.get(METADATA) == other
    assert load(options, root) == 2.0


def test_a_commit_that_comes_between_look_and_put_is_replaced_with_its_data(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    save(options, root, 3.0)
    other = metadata_of_another(options, root, counting_server)
    # The answer to the last look is from before the other one's commit.
    counting_server.fault(method="GET", key=METADATA, times=1, replace_with=other)
    old = set(data_keys(counting_server))
    counting_server.clear()
    save(options, root, 1.0)
    puts = [status for method, status in metadata_requests(counting_server) if method == "PUT"]
    assert puts == [412, 200]
    assert load(options, root) == 1.0
    left = set(data_keys(counting_server))
    assert len(left & old) == 1  # the data of 3.0, which the other one would have deleted
    assert len(left) == 2


def test_ceph_keeps_the_last_checkpoint_alone(make_options: Callable[..., Options], ceph_server: S3Server) -> None:
    options, bucket = make_options(ceph_server), ceph_server.create_bucket()
    for value in (1.0, 2.0, 3.0):
        save(options, f"s3://{bucket}/run", value)
        assert load(options, f"s3://{bucket}/run") == value
    assert len(ceph_server.boto3_client().list_objects_v2(Bucket=bucket)["Contents"]) == 2


@pytest.mark.parametrize("is_first", [True, False], ids=["the first", "a later one"])
def test_a_store_that_always_denies_the_condition_gets_the_checkpoint_without_it(
    options: Options, root: str, counting_server: CountingServer, is_first: bool
) -> None:
    """Ceph 16.2 answers 412 to every `If-Match` of a PUT."""
    if not is_first:
        save(options, root, 2.0)
        counting_server.clear()
    counting_server.fault(method="PUT", key=METADATA, times=1, status=412, code="PreconditionFailed")
    save(options, root, 1.0)
    puts = [request for request in counting_server.requests if (request.method, request.key) == ("PUT", METADATA)]
    assert [request.status for request in puts] == [412, 200]
    assert not {"if-match", "if-none-match"} & set(puts[1].headers)
    assert len(data_keys(counting_server)) == 1
    assert load(options, root) == 1.0


def test_a_store_that_throttles_is_not_asked_twice_as_often(
    options: Options, root: str, counting_server: CountingServer
) -> None:
    counting_server.fault(method="PUT", key=METADATA, status=503, code="SlowDown")
    with pytest.raises(CheckpointException, match="SlowDown"):
        save(options | {"s3client_config": replace(options["s3client_config"], max_attempts=2)}, root, 1.0)
    assert metadata_requests(counting_server) == [("HEAD", 404), ("PUT", 503), ("PUT", 503)]


@pytest.mark.parametrize("effect", [{"cut": 0}, {"status": 500}], ids=["the answer is lost", "it fails"])
def test_a_commit_whose_answer_is_lost_is_the_save_s_own(
    options: Options, root: str, counting_server: CountingServer, effect: dict[str, Any]
) -> None:
    counting_server.fault(method="PUT", key=METADATA, times=1, **effect)
    save(options, root, 1.0)
    assert len(data_keys(counting_server)) == 1
    assert load(options, root) == 1.0


@needs_torch("torch.distributed.checkpoint.save", "use_collectives")
def test_an_early_listing_that_fails_is_no_sign_that_ranks_have_saved_nothing(
    options: Options, root: str, counting_server: CountingServer, caplog: pytest.LogCaptureFixture
) -> None:
    save(options, root, 1.0, use_collectives=False)
    counting_server.fault(operation="ListObjectsV2", times=1, status=400, code="InvalidRequest")
    save(options, root, 2.0)
    assert len(data_keys(counting_server)) == 1
    assert load(options, root) == 2.0
    assert "stays" not in caplog.text


@pytest.mark.parametrize("operation", ["HeadObject", "ListObjectsV2"])
def test_an_early_look_that_fails_leaves_the_decision_to_the_commit(
    options: Options, root: str, counting_server: CountingServer, operation: str
) -> None:
    save(options, root, 1.0)
    counting_server.fault(operation=operation, times=1, status=403, code="AccessDenied")
    save(options, root, 2.0)
    assert len(data_keys(counting_server)) == 1
    assert load(options, root) == 2.0


def test_a_writer_pickles_after_a_save(options: Options, root: str) -> None:
    writer = S3StorageWriter(path=root, **options)
    dcp.save({"a": torch.ones(1000)}, storage_writer=writer)
    dcp.save({"a": torch.full((1000,), 2.0)}, storage_writer=pickle.loads(pickle.dumps(writer)))
    assert load(options, root) == 2.0
