"""`S3AsyncCheckpoint`: what it holds, in which order it works, and what becomes of its errors."""

from __future__ import annotations

import gc
import io
import linecache
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch

from s3core import AccessDeniedError
from s3torch_lightning import S3AsyncCheckpoint, S3FileSystem, S3LightningCheckpoint
from servers import CountingServer

# Elsewhere a forked child has no client of its own, or there is no fork.
forks = pytest.mark.skipif(sys.platform != "linux", reason="forks")


@pytest.fixture
def plugin(options: dict[str, Any], server: CountingServer) -> Iterator[S3AsyncCheckpoint]:
    plugin = S3AsyncCheckpoint(**options, max_in_flight=2)
    yield plugin
    server.faults_clear()
    server.release()
    try:
        plugin.teardown()
    except AccessDeniedError:
        pass


def content(value: float) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((3, 2), value)}, "seen": [value]}


def value_of(plugin: S3LightningCheckpoint, uri: str) -> float:
    return float(S3LightningCheckpoint.load_checkpoint(plugin, uri)["state_dict"]["weight"][0, 0])


def hold_uploads(server: CountingServer, **conditions: Any) -> None:
    server.fault(operation="PutObject", hold=True, **conditions)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_save_returns_before_its_upload_ends(plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str) -> None:
    hold_uploads(server)
    plugin.save_checkpoint(content(1), f"{run_uri}/a.ckpt")
    server.wait_for_requests(1, operation="PutObject")
    assert server.keys() == []
    server.release()
    plugin.teardown()
    assert server.keys() == ["run/a.ckpt"]


def test_what_is_saved_is_what_was_there_at_the_call(
    plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str
) -> None:
    hold_uploads(server, times=1)
    plugin.save_checkpoint(content(0), f"{run_uri}/first.ckpt")
    checkpoint = content(1)
    plugin.save_checkpoint(checkpoint, f"{run_uri}/a.ckpt")
    checkpoint["state_dict"]["weight"].fill_(2)
    checkpoint["seen"].append(2)
    checkpoint["state_dict"]["more"] = torch.ones(1)
    server.wait_for_requests(1, operation="PutObject")
    server.release()
    loaded = plugin.load_checkpoint(f"{run_uri}/a.ckpt")
    assert torch.equal(loaded["state_dict"]["weight"], torch.ones(3, 2))
    assert loaded["seen"] == [1]
    assert list(loaded["state_dict"]) == ["weight"]


def test_tensors_that_share_memory_share_it_in_the_checkpoint(
    plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str
) -> None:
    weight = torch.arange(2.0**18)
    base = torch.arange(12.0).reshape(3, 4)
    checkpoint = {"a": weight, "tied": weight, "view": base.t()[1:], "base": base, "bf16": base.bfloat16()}
    checkpoint |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(7), "bool": torch.tensor([True])}
    checkpoint["parameter"] = torch.nn.Parameter(torch.ones(2))
    plugin.save_checkpoint(checkpoint, f"{run_uri}/a.ckpt")
    loaded = plugin.load_checkpoint(f"{run_uri}/a.ckpt")
    assert loaded["a"].data_ptr() == loaded["tied"].data_ptr()
    assert len(server.get("run/a.ckpt")) < 1.5 * weight.nbytes
    for name, value in checkpoint.items():
        assert torch.equal(loaded[name], value)
        assert (loaded[name].dtype, loaded[name].stride()) == (value.dtype, value.stride())
    assert isinstance(loaded["parameter"], torch.nn.Parameter)


def is_saved_by_torch(dtype: torch.dtype) -> bool:
    try:
        torch.save(torch.zeros(64, dtype=torch.uint8).view(dtype), io.BytesIO())
    except Exception:
        return False
    return not str(dtype).startswith("torch.q")  # they are more than their memory


DTYPES = sorted({each for each in vars(torch).values() if isinstance(each, torch.dtype)}, key=str)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental", "ignore:TypedStorage is deprecated")
def test_tensors_of_every_type_are_saved_as_by_torch(
    plugin: S3AsyncCheckpoint, run_uri: str, server: CountingServer
) -> None:
    memory = torch.arange(64, dtype=torch.uint8) % 2
    checkpoint = {str(dtype): memory.clone().view(dtype) for dtype in DTYPES if is_saved_by_torch(dtype)}
    assert {"torch.bool", "torch.float8_e4m3fn", "torch.uint16", "torch.uint64"} <= checkpoint.keys()
    plugin.save_checkpoint(checkpoint | {"storage": memory.untyped_storage()}, f"{run_uri}/a.ckpt")
    plugin.teardown()
    loaded = torch.load(io.BytesIO(server.get("run/a.ckpt")), weights_only=False)
    assert bytes(loaded.pop("storage").untyped()) == bytes(memory.tolist())
    for name, value in checkpoint.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name].view(torch.uint8), value.view(torch.uint8)), name


def test_tensors_that_begin_at_one_address_and_end_apart_are_saved_whole(
    plugin: S3AsyncCheckpoint, run_uri: str
) -> None:
    array = numpy.arange(64.0)
    checkpoint = {f"to {end}": torch.from_numpy(array[:end]) for end in (2, 64, 8)}
    plugin.save_checkpoint(checkpoint, f"{run_uri}/a.ckpt")
    loaded = plugin.load_checkpoint(f"{run_uri}/a.ckpt")
    for name, value in checkpoint.items():
        assert torch.equal(loaded[name], value), name


def test_a_save_beyond_the_bound_waits_for_room(
    plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str
) -> None:
    hold_uploads(server)
    for name in ("a", "b"):
        plugin.save_checkpoint(content(1), f"{run_uri}/{name}.ckpt")
    taken = threading.Event()

    class Marked(dict[str, Any]):
        def __reduce__(self) -> Any:
            taken.set()
            return dict, (list(self.items()),)

    third = in_thread(lambda: plugin.save_checkpoint(Marked(content(3)), f"{run_uri}/c.ckpt"))
    server.wait_for_requests(1, operation="PutObject")
    assert third.is_alive()
    assert not taken.is_set(), "a third copy was made while two were in flight"
    server.faults_clear()
    server.release()
    third.join(120)
    plugin.teardown()
    assert server.keys() == ["run/a.ckpt", "run/b.ckpt", "run/c.ckpt"]


def test_saves_to_one_path_arrive_in_their_order(
    plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str
) -> None:
    for value in range(8):
        plugin.save_checkpoint(content(value), f"{run_uri}/last.ckpt")
    plugin.teardown()
    assert value_of(plugin, f"{run_uri}/last.ckpt") == 7
    assert [request.operation for request in server.requests].count("PutObject") == 8


def test_a_removal_waits_for_the_save_before_it(
    plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str
) -> None:
    plugin.save_checkpoint(content(1), f"{run_uri}/old.ckpt")
    plugin.teardown()
    hold_uploads(server)
    plugin.save_checkpoint(content(2), f"{run_uri}/new.ckpt")
    plugin.remove_checkpoint(f"{run_uri}/old.ckpt")
    server.wait_for_requests(2, operation="PutObject")
    assert server.keys() == ["run/old.ckpt"]
    server.release()
    plugin.teardown()
    assert server.keys() == ["run/new.ckpt"]


def test_a_removal_is_dropped_when_its_replacement_failed(
    plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    plugin.save_checkpoint(content(1), f"{run_uri}/old.ckpt")
    plugin.teardown()
    server.fault(operation="PutObject", status=403, code="AccessDenied")
    plugin.save_checkpoint(content(2), f"{run_uri}/new.ckpt")
    plugin.remove_checkpoint(f"{run_uri}/old.ckpt")
    with caplog.at_level(logging.WARNING), pytest.raises(AccessDeniedError, match=r"new\.ckpt"):
        plugin.teardown()
    assert server.keys() == ["run/old.ckpt"]
    assert "old.ckpt is kept" in caplog.text
    # The error was raised; what comes after is not held against it.
    server.faults_clear()
    plugin.save_checkpoint(content(3), f"{run_uri}/new.ckpt")
    plugin.remove_checkpoint(f"{run_uri}/old.ckpt")
    plugin.teardown()
    assert server.keys() == ["run/new.ckpt"]


def test_an_error_surfaces_at_the_next_save_which_is_queued_all_the_same(
    plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str
) -> None:
    server.fault(operation="PutObject", times=1, status=403, code="AccessDenied")
    plugin.save_checkpoint(content(1), f"{run_uri}/a.ckpt")
    asked_for = []

    def go_on() -> None:
        # The first call may come before the answer; with two in flight the second waits for it.
        for name in ("b", "c"):
            asked_for.append(f"run/{name}.ckpt")
            plugin.save_checkpoint(content(2), f"{run_uri}/{name}.ckpt")

    with pytest.raises(AccessDeniedError, match=r"a\.ckpt"):
        go_on()
    plugin.teardown()
    assert server.keys() == asked_for


def test_an_error_surfaces_at_teardown_once(plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str) -> None:
    server.fault(operation="PutObject", status=403, code="AccessDenied")
    plugin.save_checkpoint(content(1), f"{run_uri}/a.ckpt")
    with pytest.raises(AccessDeniedError, match=r"a\.ckpt"):
        plugin.teardown()
    plugin.teardown()


def test_a_removal_that_fails_is_reported(plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str) -> None:
    server.fault(operation="DeleteObject", status=403, code="AccessDenied")
    plugin.remove_checkpoint(f"{run_uri}/a.ckpt")
    with pytest.raises(AccessDeniedError, match=r"a\.ckpt"):
        plugin.teardown()


def test_a_checkpoint_that_cannot_be_pickled_fails_at_once_and_takes_no_room(
    plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str
) -> None:
    for _ in range(3):
        with pytest.raises(Exception, match=r"pickle|lambda"):
            plugin.save_checkpoint({"function": lambda: 0}, f"{run_uri}/a.ckpt")
    plugin.save_checkpoint(content(1), f"{run_uri}/a.ckpt")
    plugin.teardown()
    assert server.keys() == ["run/a.ckpt"]


def interrupt_at(line: int, call: Callable[[], None]) -> bool:
    """Make a call, and raise Ctrl-C at its n-th line within the queue; whether it came that far."""
    passed = 0

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal passed
        if not frame.f_code.co_filename.endswith("_uploads.py"):
            return None
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        # Python itself lets no signal in between the end of a block and the release of its lock.
        if event == "line" and not source.startswith(("with ", "try:")):
            passed += 1
            if passed == line:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return passed >= line


def test_an_interrupt_anywhere_takes_no_room_for_good(options: dict[str, Any], run_uri: str) -> None:
    plugin = S3AsyncCheckpoint(**options, max_in_flight=1)

    def use() -> None:
        plugin.save_checkpoint(content(1), f"{run_uri}/a.ckpt")
        plugin.remove_checkpoint(f"{run_uri}/b.ckpt")

    line = 1
    while interrupt_at(line, use):
        line += 1
        others = in_thread(lambda: [use(), use(), plugin.teardown()])
        others.join(120)
        assert not others.is_alive(), f"the queue hangs after Ctrl-C at line {line - 1}"
    assert line > 20


class SignalInPickling:
    """Sends this process a signal when it is copied; the copy is an empty dict."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        signal.raise_signal(signal.SIGTERM)
        return dict, ()


def test_the_handler_of_a_signal_may_save_in_the_midst_of_a_save(
    options: dict[str, Any], server: CountingServer, run_uri: str
) -> None:
    plugin = S3AsyncCheckpoint(**options, max_in_flight=1)
    # As the Trainer does when SLURM announces the end of the job.
    before = signal.signal(signal.SIGTERM, lambda *_: plugin.save_checkpoint(content(1), f"{run_uri}/signal.ckpt"))
    try:
        plugin.save_checkpoint({"state": SignalInPickling()}, f"{run_uri}/a.ckpt")
    finally:
        signal.signal(signal.SIGTERM, before)
    plugin.teardown()
    assert server.keys() == ["run/a.ckpt", "run/signal.ckpt"]


def test_the_checkpoint_of_a_job_that_slurm_requeues_has_arrived_when_it_is_saved(
    plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str
) -> None:
    server.fault(operation="PutObject", times=1, delay_seconds=0.3)
    plugin.save_checkpoint(content(1), f"{run_uri}/hpc_ckpt_1.ckpt")
    assert server.keys() == ["run/hpc_ckpt_1.ckpt"]
    server.fault(operation="PutObject", status=403, code="AccessDenied")
    with pytest.raises(AccessDeniedError, match=r"hpc_ckpt_2\.ckpt"):
        plugin.save_checkpoint(content(2), f"{run_uri}/hpc_ckpt_2.ckpt")


def test_a_checkpoint_in_upload_counts_as_existing(
    plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str
) -> None:
    filesystem = S3FileSystem()
    assert not filesystem.exists(f"{run_uri}/a.ckpt")
    hold_uploads(server)
    plugin.save_checkpoint(content(1), f"{run_uri}/a.ckpt")
    server.wait_for_requests(1, operation="PutObject")
    assert filesystem.exists(f"{run_uri}/a.ckpt")
    plugin.remove_checkpoint(f"{run_uri}/a.ckpt")
    assert not filesystem.exists(f"{run_uri}/a.ckpt")
    server.faults_clear()
    server.release()
    plugin.teardown()
    assert not filesystem.exists(f"{run_uri}/a.ckpt")


WAYS_TO_LOOK: dict[str, Callable[[S3FileSystem, str], Any]] = {
    "info": lambda fs, folder: fs.info(f"{folder}/a.ckpt")["size"] > 3,
    "isfile": lambda fs, folder: fs.isfile(f"{folder}/a.ckpt"),
    "ls": lambda fs, folder: [entry["size"] > 3 for entry in fs.ls(folder)] == [True],
    "find": lambda fs, folder: [entry["size"] > 3 for entry in fs.find(folder, detail=True).values()] == [True],
    "open": lambda fs, folder: len(fs.cat_file(f"{folder}/a.ckpt")) > 3,
    "copy": lambda fs, folder: fs.cp_file(f"{folder}/a.ckpt", f"{folder}/b") or fs.info(f"{folder}/b")["size"] > 3,
    "rm": lambda fs, folder: fs.rm_file(f"{folder}/a.ckpt") or not fs.exists(f"{folder}/a.ckpt"),
}


@pytest.mark.parametrize("there_is_an_old_one", [True, False])
@pytest.mark.parametrize("look", WAYS_TO_LOOK.values(), ids=WAYS_TO_LOOK)
def test_the_filesystem_sees_what_was_saved_before(
    plugin: S3AsyncCheckpoint,
    server: CountingServer,
    run_uri: str,
    look: Callable[[S3FileSystem, str], Any],
    there_is_an_old_one: bool,
) -> None:
    if there_is_an_old_one:
        server.put("run/a.ckpt", b"old")
    server.fault(operation="PutObject", times=1, delay_seconds=0.3)
    plugin.save_checkpoint(content(1), f"{run_uri}/a.ckpt")
    assert look(S3FileSystem(), run_uri)


def test_a_file_whose_save_failed_is_not_read_as_it_was_before(
    plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str
) -> None:
    server.put("run/a.ckpt", b"old")
    server.put("run/b.ckpt", b"other")
    server.fault(operation="PutObject", times=1, delay_seconds=0.3, status=403, code="AccessDenied")
    plugin.save_checkpoint(content(1), f"{run_uri}/a.ckpt")
    filesystem = S3FileSystem()
    assert filesystem.cat_file(f"{run_uri}/b.ckpt") == b"other"
    with pytest.raises(AccessDeniedError, match=r"a\.ckpt"):
        filesystem.cat_file(f"{run_uri}/a.ckpt")
    plugin.teardown()
    assert filesystem.cat_file(f"{run_uri}/a.ckpt") == b"old"


def test_a_load_sees_what_was_saved_before_it(plugin: S3AsyncCheckpoint, run_uri: str) -> None:
    plugin.save_checkpoint(content(5), f"{run_uri}/a.ckpt")
    assert plugin.load_checkpoint(f"{run_uri}/a.ckpt")["seen"] == [5]


def test_a_dropped_plugin_still_uploads_what_it_was_given(
    options: dict[str, Any], server: CountingServer, run_uri: str
) -> None:
    before = set(threading.enumerate())  # one that has done its work may end later
    plugin = S3AsyncCheckpoint(**options)
    hold_uploads(server)
    plugin.save_checkpoint(content(1), f"{run_uri}/a.ckpt")
    server.wait_for_requests(1, operation="PutObject")
    (worker,) = (each for each in set(threading.enumerate()) - before if each.name == "s3torch-lightning-uploads")
    del plugin
    gc.collect()
    server.release()
    worker.join(120)
    assert server.keys() == ["run/a.ckpt"]


def test_nothing_of_a_snapshot_stays_in_memory_once_it_arrived(
    plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str
) -> None:
    plugin.save_checkpoint({"weight": torch.ones(2**20)}, f"{run_uri}/a.ckpt")
    plugin.teardown()
    gc.collect()
    held = [each for each in gc.get_objects() if type(each).__name__ == "Snapshot"]
    assert held == []


def test_nothing_of_a_snapshot_stays_in_memory_once_its_upload_failed(
    plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str
) -> None:
    server.fault(operation="PutObject", status=403, code="AccessDenied")
    plugin.save_checkpoint({"weight": torch.ones(2**20)}, f"{run_uri}/a.ckpt")
    with pytest.raises(AccessDeniedError) as raised:
        plugin.teardown()
    gc.collect()
    held = [each for each in gc.get_objects() if type(each).__name__ == "Snapshot"]
    assert held == []
    assert raised.tb is not None


def in_child(plugin: S3AsyncCheckpoint, uri: str) -> None:
    plugin.save_checkpoint(content(2), f"{uri}/child.ckpt")
    plugin.teardown()


@forks
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_has_a_queue_of_its_own(plugin: S3AsyncCheckpoint, server: CountingServer, run_uri: str) -> None:
    server.fault(operation="PutObject", key="run/parent.ckpt", hold=True)
    plugin.save_checkpoint(content(1), f"{run_uri}/parent.ckpt")
    server.wait_for_requests(1, operation="PutObject")
    child = multiprocessing.get_context("fork").Process(target=in_child, args=(plugin, run_uri))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert server.keys() == ["run/child.ckpt"]
    server.release()
    plugin.teardown()
    assert server.keys() == ["run/child.ckpt", "run/parent.ckpt"]


PROGRAM = """
import sys, torch
from s3torch_lightning import S3AsyncCheckpoint
plugin = S3AsyncCheckpoint()
plugin.save_checkpoint({"epoch": 2, "weight": torch.zeros(2**20, dtype=torch.uint8)}, sys.argv[1])
"""


def test_a_program_that_ends_without_teardown_waits_for_its_uploads(server: CountingServer, run_uri: str) -> None:
    command = [sys.executable, "-c", PROGRAM, f"{run_uri}/a.ckpt"]
    subprocess.run(command, env=os.environ | server.environment(), check=True, timeout=280)
    assert server.keys() == ["run/a.ckpt"]


def save_much(plugin: S3AsyncCheckpoint, uri: str) -> None:
    torch.set_num_threads(1)  # As in a DataLoader's worker: the parent's OpenMP threads are not there after a fork.
    plugin.save_checkpoint({"epoch": 2, "weight": torch.zeros(24 * 2**20, dtype=torch.uint8)}, uri)
    plugin.teardown()


@forks
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_kill_in_mid_upload_leaves_the_previous_checkpoint(
    options: dict[str, Any], server: CountingServer, run_uri: str
) -> None:
    plain = S3LightningCheckpoint(**options)
    plain.save_checkpoint({"epoch": 1}, f"{run_uri}/a.ckpt")
    server.fault(operation="CompleteMultipartUpload", hold=True)
    target = S3AsyncCheckpoint(**options)
    child = multiprocessing.get_context("fork").Process(target=save_much, args=(target, f"{run_uri}/a.ckpt"))
    child.start()
    server.wait_for_requests(1, operation="UploadPart")
    child.kill()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert plain.load_checkpoint(f"{run_uri}/a.ckpt") == {"epoch": 1}
