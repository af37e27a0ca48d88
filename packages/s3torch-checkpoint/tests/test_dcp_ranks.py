"""Distributed checkpoints by several ranks, under torchrun with gloo.

A job takes seconds to start, so that the jobs here do all their steps at once, each on a checkpoint of its own, and
each test looks at the outcome of its steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed.checkpoint.utils import _DistWrapper

from servers import S3Server
from servers.counting import CountingServer, start_counting_server
from torch_features import needs_torch

RANKS = Path(__file__).parent / "workers" / "ranks.py"
# One rank's part of a save is one object, and rank 0 writes the metadata.
REQUESTS_OF_A_SAVE_BY_TWO = 3
NOT_DONE = "was not done"
OF_ONE_MEMORY = ("load_replicated_into_the_same_memory", "load_replicated_through_one_buffer")
IN_A_PROCESS = pytest.param(
    "process", marks=needs_torch("torch.distributed.checkpoint.state_dict_saver.AsyncCheckpointerType")
)


class Job:
    """One run of torchrun: its exit code, and the outcome of each of its steps."""

    def __init__(
        self, server: S3Server, ranks: int, steps: list[tuple[str, ...]], timeout_seconds: float = 240
    ) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        environment = {**os.environ, **server.environment(), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self.steps = steps
        self.done = subprocess.run(
            [*command, str(RANKS), json.dumps(steps)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        reported = dict(json.loads(line) for line in self.done.stdout.splitlines() if line.startswith("["))
        # A step that is there twice has to be right both times.
        self.outcomes: dict[tuple[str, ...], str] = {}
        for number, step in enumerate(steps):
            if self.outcomes.get(step, "ok") == "ok":
                self.outcomes[step] = reported.get(number, NOT_DONE)

    def check(self, *wanted: tuple[str, ...]) -> None:
        """These steps were done, without an error."""
        for step in wanted:
            if self.outcomes.get(step) != "ok":
                pytest.fail(
                    f"{step}: {self.outcomes.get(step)}\n{self.done.stdout[-2000:]}\n{self.done.stderr[-6000:]}"
                )


@pytest.fixture(scope="module")
def server() -> Iterator[CountingServer]:
    with start_counting_server() as started:
        yield started


@pytest.fixture(scope="module")
def root(server: CountingServer) -> str:
    return f"s3://{server.bucket}"


@pytest.fixture(scope="module")
def refusing(server: CountingServer) -> str:
    """A bucket that takes one checkpoint, the data of one rank more, and then nothing."""
    bucket = server.create_bucket()
    server.fault(bucket=bucket, method="PUT", skip=REQUESTS_OF_A_SAVE_BY_TWO + 1, status=403, code="AccessDenied")
    return f"s3://{bucket}"


@pytest.fixture(scope="module")
def two_ranks(server: CountingServer, root: str, refusing: str) -> Job:
    steps: list[tuple[str, ...]] = [("save", f"{root}/{name}", "1") for name in "abcdegh"]
    steps += [("save", f"{root}/k0", "1"), ("save", f"{root}/k1", "1")]
    steps += [("load", f"{root}/a", "1"), ("load_part", f"{root}/a", "1")]
    steps += [("save_async", f"{root}/thread", "2", "thread"), ("save_async", f"{root}/process", "2", "process")]
    steps += [("fsdp", f"{root}/fsdp"), ("save_separately", f"{root}/separate", "1")]
    steps += [("fail_to_save", f"{root}/h", "2"), ("load", f"{root}/h", "1"), ("fail_to_save", f"{root}/i", "1")]
    steps += [("save", f"{refusing}/r", "1"), ("be_refused", f"{refusing}/r", "2"), ("load", f"{refusing}/r", "1")]
    steps += [("be_refused_async", f"{refusing}/r", "2", kind) for kind in ("thread", "process")]
    steps += [("load", f"{refusing}/r", "1"), ("fail_oddly", f"{root}/h", "3"), ("load", f"{root}/h", "1")]
    return Job(server, 2, steps)


@pytest.fixture(scope="module")
def four_ranks(server: CountingServer, root: str, two_ranks: Job) -> Job:
    server.clear()
    steps: list[tuple[str, ...]] = [("load", f"{root}/b", "1"), ("load_part", f"{root}/c", "1")]
    steps += [("load_replicated", f"{root}/d", "1", "job"), ("load_replicated", f"{root}/e", "1", "node")]
    steps += [(step, f"{root}/a", "1") for step in OF_ONE_MEMORY]
    steps += [("fail_to_load_replicated", f"{root}/a", where) for where in ("finish", "resolve", "commit")]
    steps += [("save", f"{root}/m", "4"), ("load_replicated_in_groups", f"{root}/g", "1")]
    return Job(server, 4, steps)


@pytest.fixture(scope="module")
def killed(server: CountingServer, root: str, two_ranks: Job) -> list[Job]:
    return [Job(server, 2, [("save_and_die", f"{root}/k{victim}", "2", str(victim))]) for victim in (0, 1)]


@pytest.fixture(scope="module")
def afterwards(server: CountingServer, root: str, four_ranks: Job, killed: list[Job]) -> Job:
    steps: list[tuple[str, ...]] = [("load", f"{root}/m", "4"), ("load_part", f"{root}/m", "4")]
    for name in ("k0", "k1"):
        steps += [("load", f"{root}/{name}", "1"), ("save", f"{root}/{name}", "3"), ("load", f"{root}/{name}", "3")]
    return Job(server, 2, steps)


def fetched_bytes(server: CountingServer, name: str) -> int:
    return sum(r.bytes_sent for r in server.requests if r.key.startswith(f"{name}/") and r.key.endswith(".distcp"))


def stored_bytes(server: CountingServer, name: str) -> int:
    return sum(len(data) for key, data in server.objects().items() if key.startswith(f"{name}/__"))


def test_two_ranks_save_and_load(two_ranks: Job, root: str) -> None:
    two_ranks.check(("save", f"{root}/a", "1"), ("load", f"{root}/a", "1"))


def test_two_ranks_load_a_part(two_ranks: Job, root: str) -> None:
    two_ranks.check(("load_part", f"{root}/a", "1"))


@pytest.mark.parametrize("kind", ["thread", IN_A_PROCESS])
def test_async_save_keeps_the_state_of_the_call(two_ranks: Job, root: str, kind: str) -> None:
    two_ranks.check(("save_async", f"{root}/{kind}", "2", kind))


# Under its older name, before torch 2.6, it works on a GPU alone.
@needs_torch("torch.distributed.fsdp.fully_shard")
def test_a_model_and_optimizer_under_fsdp_are_restored(two_ranks: Job, root: str) -> None:
    two_ranks.check(("fsdp", f"{root}/fsdp"))


@needs_torch("torch.distributed.checkpoint.save", "use_collectives")
def test_ranks_save_and_load_each_on_its_own(two_ranks: Job, server: CountingServer, root: str) -> None:
    two_ranks.check(("save_separately", f"{root}/separate", "1"))
    metadata = [key for key in server.objects() if key.startswith("separate/") and key.endswith(".metadata")]
    assert metadata == ["separate/__0.metadata", "separate/__1.metadata"]


def test_what_two_ranks_saved_four_load(four_ranks: Job, root: str) -> None:
    four_ranks.check(("load", f"{root}/b", "1"))


def test_what_four_ranks_saved_two_load_in_whole_and_in_part(afterwards: Job, root: str) -> None:
    afterwards.check(("load", f"{root}/m", "4"), ("load_part", f"{root}/m", "4"))


def test_a_resharded_load_fetches_only_the_rows_needed(four_ranks: Job, server: CountingServer, root: str) -> None:
    four_ranks.check(("load_part", f"{root}/c", "1"))
    assert fetched_bytes(server, "c") <= 1.05 * 101 * 60 * 4


def test_a_replicated_load_fetches_once_per_job(four_ranks: Job, server: CountingServer, root: str) -> None:
    four_ranks.check(("load_replicated", f"{root}/d", "1", "job"))
    assert fetched_bytes(server, "d") <= 1.05 * stored_bytes(server, "d")


def test_a_replicated_load_fetches_once_per_node(four_ranks: Job, server: CountingServer, root: str) -> None:
    four_ranks.check(("load_replicated", f"{root}/e", "1", "node"))
    stored = stored_bytes(server, "e")
    assert 1.9 * stored <= fetched_bytes(server, "e") <= 2.1 * stored


@pytest.mark.skipif(
    not hasattr(_DistWrapper(None, False, 0), "global_coordinator_rank"),
    reason="this version of torch can load only with all ranks together",
)
def test_groups_of_ranks_load_replicated_each_within_itself(four_ranks: Job, server: CountingServer, root: str) -> None:
    four_ranks.check(("load_replicated_in_groups", f"{root}/g", "1"))
    assert fetched_bytes(server, "g") <= 2 * 1.05 * stored_bytes(server, "g")


@pytest.mark.parametrize("step", OF_ONE_MEMORY)
def test_a_replicated_load_tears_no_tensors_of_one_memory(four_ranks: Job, root: str, step: str) -> None:
    four_ranks.check((step, f"{root}/a", "1"))


@pytest.mark.parametrize("where", ["finish", "resolve", "commit"])
def test_an_error_of_one_rank_ends_a_replicated_load_of_all(four_ranks: Job, root: str, where: str) -> None:
    four_ranks.check(("fail_to_load_replicated", f"{root}/a", where))


def test_a_failing_rank_leaves_the_previous_checkpoint(two_ranks: Job, root: str) -> None:
    two_ranks.check(("fail_to_save", f"{root}/h", "2"), ("load", f"{root}/h", "1"))


def test_a_failing_rank_leaves_no_metadata_where_there_was_none(
    two_ranks: Job, server: CountingServer, root: str
) -> None:
    two_ranks.check(("fail_to_save", f"{root}/i", "1"))
    assert "i/.metadata" not in server.objects()


def test_an_upload_that_one_rank_cannot_finish_leaves_the_previous_checkpoint(two_ranks: Job, refusing: str) -> None:
    two_ranks.check(("be_refused", f"{refusing}/r", "2"), ("load", f"{refusing}/r", "1"))


@pytest.mark.parametrize("kind", ["thread", IN_A_PROCESS])
def test_an_async_save_that_is_refused_leaves_the_previous_checkpoint(two_ranks: Job, refusing: str, kind: str) -> None:
    two_ranks.check(("be_refused_async", f"{refusing}/r", "2", kind), ("load", f"{refusing}/r", "1"))


def test_an_error_that_does_not_pickle_leaves_no_rank_waiting(two_ranks: Job, root: str) -> None:
    two_ranks.check(("fail_oddly", f"{root}/h", "3"), ("load", f"{root}/h", "1"))


def test_no_handled_error_leaves_a_multipart_upload(two_ranks: Job, four_ranks: Job, server: CountingServer) -> None:
    assert server.uploads() == []


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_leaves_the_previous_checkpoint(
    killed: list[Job], afterwards: Job, root: str, victim: int
) -> None:
    assert killed[victim].done.returncode != 0
    assert set(killed[victim].outcomes.values()) == {NOT_DONE}
    uri = f"{root}/k{victim}"
    afterwards.check(("load", uri, "1"), ("save", uri, "3"), ("load", uri, "3"))


def test_ranks_save_and_load_on_seaweedfs(seaweedfs_server: S3Server) -> None:
    uri = f"s3://{seaweedfs_server.create_bucket()}/run"
    steps: list[tuple[str, ...]] = [("save", uri, "1"), ("save", uri, "2"), ("load", uri, "2")]
    Job(seaweedfs_server, 2, steps).check(*steps)
