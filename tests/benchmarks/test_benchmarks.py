"""The benchmarks run, find wrong bytes, and tell a regression from noise; how fast anything is, no test asserts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import s3core
from benchmarks._bucket import ForeignDataError, claim, remove_outputs
from benchmarks._compare import compare, regressions
from benchmarks._data import is_same_state, make_state, sample_digest, samples
from benchmarks._meter import Meter, peak_rss_bytes
from benchmarks._peers import NAMES, Peer, digest
from benchmarks._peers._loading import CONCURRENCY, read_ahead
from benchmarks._report import write_report
from benchmarks._summary import limit, summarize
from benchmarks._target import REMOTE, Target
from benchmarks._workloads import WORKLOADS, WrongBytesError
from benchmarks.cli import main
from s3core import S3ClientConfig
from servers import CountingServer, S3Server

TARGET = Target("loopback", "quick", "bench", "", "us-east-1", None, None, None, "")


def _results(**rates: dict[str, list[float]]) -> dict[str, Any]:
    """Results of a run from rates by workload (with underscores) and peer."""
    records = [
        {
            "setting": "shaped",
            "workload": workload.replace("_", "-"),
            "peer": peer,
            "round": number,
            "rate": rate,
            "seconds": 1.0,
            "units": 10,
            "needed_bytes": 2**30,
            "first_seconds": 0.25,
            "cpu_seconds": 2.0,
            "peak_rss_bytes": 2**29,
            "requests": 12,
            "most_in_flight": 8,
            "bytes_sent": 2**30,
            "bytes_received": 0,
        }
        for workload, peers in rates.items()
        for peer, found in peers.items()
        for number, rate in enumerate(found)
    ]
    machine = {"processor": "p", "cores": 2, "system": "s", "python": "3"}
    return {
        "made": "now",
        "scale": "full",
        "rounds": 3,
        "latency_seconds": 0.03,
        "pace_bytes_per_second": 90e6,
        "machine": machine,
        "versions": {},
        "records": records,
    }


def test_a_quick_run_measures_and_checks(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("run.json")
    arguments = ["--quick", "--peer", "ours", "--json", str(tmp_path / "link.json")]
    arguments += ["--workload", "small-map-2w", "--workload", "upload"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "run.json").read_text())
    assert results["versions"]["ours"].startswith(s3core.__version__)
    small, upload = results["records"]
    assert results["made"] <= small["made"] <= upload["made"]
    assert (small["workload"], small["peer"], small["units"]) == ("small-map-2w", "ours", 256)
    assert small["bytes_sent"] >= small["needed_bytes"] == 256 * 100_000
    assert upload["bytes_received"] >= upload["needed_bytes"] == 64 * 2**20
    assert all(record["rate"] > 0 and record["peak_rss_bytes"] > 0 for record in (small, upload))


def test_each_round_begins_with_another_peer(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    arguments = ["--quick", "--rounds", "2", "--peer", "ours", "--peer", "local_disk", "--workload", "first-kilobyte"]
    assert CliRunner().invoke(main, [*arguments, "--json", str(file)]).exit_code == 0
    peers = [record["peer"] for record in json.loads(file.read_text())["records"]]
    assert peers == ["ours", "local_disk", "local_disk", "ours"]


def test_a_knob_is_turned_for_ours_alone(tmp_path: Path) -> None:
    arguments = [
        "--quick",
        "--knob",
        "part_size=5MiB,16MiB",
        "--workload",
        "read",
        "--json",
        str(tmp_path / "run.json"),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    records = json.loads((tmp_path / "run.json").read_text())["records"]
    requests = {record["peer"]: record["requests"] for record in records}
    # 64 MiB: what is not a whole number of parts takes one more.
    assert requests == {"ours": 8, "ours part_size=5MiB": 13, "ours part_size=16MiB": 4}


@pytest.mark.parametrize("knob", ["part_size", "part_size=many", "part_size=5MiB,"])
def test_a_knob_without_values_is_refused(knob: str) -> None:
    result = CliRunner().invoke(main, ["--quick", "--knob", knob, "--workload", "read"])
    assert result.exit_code == 2
    assert "--knob is to be such as" in result.output


def test_a_bucket_that_there_is_serves_as_well(moto_server: S3Server, bucket: str, tmp_path: Path) -> None:
    runner = CliRunner(env=moto_server.environment())
    arguments = ["--quick", "--peer", "ours", "--workload", "read", "--json", str(tmp_path / "run.json")]
    arguments += ["--uri", f"s3://{bucket}/some/where", "--endpoint", moto_server.endpoint]
    result = runner.invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (record,) = json.loads((tmp_path / "run.json").read_text())["records"]
    assert (record["setting"], record["needed_bytes"]) == (REMOTE, 64 * 2**20)
    assert "requests" not in record
    assert f"Setting `remote`: s3://{bucket}/some/where/quick/ in us-east-1 at {moto_server.endpoint}." in result.output
    assert "a local server" not in result.output


def test_the_region_is_that_of_the_environment(counting_server: CountingServer) -> None:
    result = _run_in(counting_server, counting_server.bucket, "--workload", "first-kilobyte", AWS_REGION="eu-west-9")
    assert result.exit_code == 0, result.output
    assert f"/some/where/quick/ in eu-west-9 at {counting_server.endpoint}" in result.output
    scopes = {request.headers["authorization"].split("/")[2] for request in counting_server.requests}
    assert scopes == {"eu-west-9"}


def test_what_could_not_be_removed_is_told(counting_server: CountingServer) -> None:
    body = b"<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/xml\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    counting_server.fault(operation="DeleteObjects", instead=head + body)
    result = _run_in(counting_server, counting_server.bucket, "--workload", "upload")
    assert result.exit_code == 0, result.output
    assert (
        f"could not remove all that was written under s3://{counting_server.bucket}/some/where/quick/" in result.output
    )
    assert f"s3://{counting_server.bucket}/k stays: AccessDenied: no" in result.output


def _run_in(server: S3Server, bucket: str, *arguments: str, **environment: str) -> Result:
    runner = CliRunner(env=server.environment() | environment)
    where = ["--uri", f"s3://{bucket}/some/where", "--endpoint", server.endpoint]
    return runner.invoke(main, ["--quick", "--peer", "ours", *where, *arguments])


def test_what_others_have_in_a_bucket_stays_as_it_is(moto_server: S3Server, bucket: str) -> None:
    client = moto_server.boto3_client()
    for key in ("some/where/large/00000000", "some/where/saved/mine", "some/where/benchmarks.json"):
        client.put_object(Bucket=bucket, Key=key, Body=b"mine")
    assert _run_in(moto_server, bucket, "--workload", "upload").exit_code == 0
    client.put_object(Bucket=bucket, Key="some/where/quick/other", Body=b"mine")
    client.delete_object(Bucket=bucket, Key="some/where/quick/benchmarks.json")
    result = _run_in(moto_server, bucket, "--workload", "upload")
    assert result.exit_code == 1
    assert f"s3://{bucket}/some/where/quick/ holds objects of others, such as some/where/quick/other" in result.output
    found = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert found == [
        "some/where/benchmarks.json",
        "some/where/large/00000000",
        "some/where/quick/other",
        "some/where/saved/mine",
    ]
    assert client.get_object(Bucket=bucket, Key="some/where/large/00000000")["Body"].read() == b"mine"


def test_data_that_is_complete_is_not_uploaded_again(moto_server: S3Server, bucket: str) -> None:
    target = replace(TARGET, setting=REMOTE, bucket=bucket, prefix="some/where/quick/", endpoint=moto_server.endpoint)
    target = replace(target, access_key=moto_server.access_key, secret_key=moto_server.secret_key)
    client = moto_server.boto3_client()
    assert claim(target) == set()
    client.put_object(Bucket=bucket, Key=target.key("large/00000000"), Body=b"a part")  # it was interrupted here
    assert claim(target) == set()
    assert _run_in(moto_server, bucket, "--workload", "read").exit_code == 0
    assert claim(target) == {"large"}
    first = client.head_object(Bucket=bucket, Key=target.key("large/00000000"))["LastModified"]
    assert _run_in(moto_server, bucket, "--workload", "read").exit_code == 0
    assert client.head_object(Bucket=bucket, Key=target.key("large/00000000"))["LastModified"] == first
    with pytest.raises(ForeignDataError, match="of another version"):
        claim(replace(target, scale_name="full"))


def test_outputs_and_unfinished_uploads_are_removed(moto_server: S3Server, bucket: str) -> None:
    target = replace(TARGET, setting=REMOTE, bucket=bucket, prefix="some/where/quick/", endpoint=moto_server.endpoint)
    target = replace(target, access_key=moto_server.access_key, secret_key=moto_server.secret_key)
    client = moto_server.boto3_client()
    for key in ("saved/a", "saved/b/c", "sink/d", "small/e"):
        client.put_object(Bucket=bucket, Key=target.key(key), Body=b"")
    for key in ("theirs", target.key("saved/f")):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    remove_outputs(target)
    assert [found["Key"] for found in client.list_objects_v2(Bucket=bucket)["Contents"]] == [target.key("small/e")]
    assert [found["Key"] for found in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["theirs"]


def test_an_error_of_the_store_loses_nothing_that_was_measured(counting_server: CountingServer, tmp_path: Path) -> None:
    counting_server.fault(key="some/where/quick/model/model.pt", status=403, code="AccessDenied", message="not there")
    options = ["--workload", "upload", "--workload", "torch-load", "--report", str(tmp_path / "now.md")]
    result = _run_in(counting_server, counting_server.bucket, *options)
    assert result.exit_code == 1
    assert "Error: it ended early: An error occurred (AccessDenied)" in result.output
    assert "| ours |" in result.output
    assert (tmp_path / "now.md").read_text() in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_it_measured_and_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    temporary, file = tmp_path / "temporary", tmp_path / "run.json"
    temporary.mkdir()
    arguments = ["--quick", "--rounds", "1000", "--workload", "read", "--json", str(file)]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        measured = next(line for line in process.stderr if "read: ours" in line)
        assert "MB/s" in measured
        process.send_signal(number)
        assert "interrupted" in process.stderr.read()
        assert "| ours |" in process.stdout.read()
    assert process.returncode == 130
    assert json.loads(file.read_text())["records"][0]["rate"] > 0
    assert list(temporary.iterdir()) == []


def test_a_second_interruption_ends_at_once_what_does_not_end_by_itself(tmp_path: Path) -> None:
    python, said = tmp_path / "python", tmp_path / "said"
    python.write_text(f"#!/bin/sh\ntrap 'echo no > {said}' INT\necho $$ > {said}\nwhile :; do sleep 60; done\n")
    python.chmod(0o755)
    os.mkfifo(said)
    arguments = ["--quick", "--workload", "read", "--peer", "ours", "--python", f"ours={python}"]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        pid = int(said.read_text())
        time.sleep(2)  # `Popen` has returned then: an interruption within it leaves what was started to itself
        process.send_signal(signal.SIGINT)
        assert said.read_text() == "no\n"
        process.send_signal(signal.SIGINT)
    try:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--endpoint", "http://127.0.0.1:1"], "--endpoint goes with --uri"),
        (["--uri", "s3://bucket", "--setting", "shaped"], "--setting is of the local server"),
        (["--python", "nonsense"], "--python is to be such as"),
        (["--python", "boto3=/no/such/python"], "--python is to be such as"),
        (["--json", "/dev/null/run.json"], "can't write there"),
        (["--json", "/dev/null"], "is no file that can be replaced"),
        (["--report", "/no/such/folder/now.md"], "can't write there"),
        (["--plots", "/dev/null/plots"], "can't write there"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["--quick", "--workload", "read", *arguments])
    assert (result.exit_code, message in result.output) == (2, True), result.output


class _Liar(Peer):
    """Delivers other bytes than there are."""

    def read(self, name: str) -> bytes:
        made = self.target.folder("large")[0]
        data = bytearray().join(made.views(0, made.size))
        data[-1] ^= 1
        return bytes(data)

    def fetch(self, folder: Any, workers: int) -> Any:
        yield [digest(folder.key(3), b"something else")]


@pytest.mark.parametrize("name", ["read", "small-map-0w"])
def test_wrong_bytes_are_found(name: str) -> None:
    with pytest.raises(WrongBytesError, match="other bytes"):
        WORKLOADS[name].run(_Liar(TARGET), Meter())


class _Lazy(Peer):
    """Says the right number, or gives the right bytes, without the work."""

    def list_keys(self, name: str) -> Any:
        yield [("", 0)] * 5_000

    def index_objects(self, name: str) -> Any:
        return [replace(self.target.folder("listed")[0], key="")] * 5_000

    def iterate(self, folder: Any, workers: int, is_shuffled: bool) -> Any:
        yield [digest(made.key, b"".join(made.views(0, made.size))) for made in map(folder.__getitem__, range(256))]

    def fetch(self, folder: Any, workers: int) -> Any:
        return self.iterate(folder, workers, True)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("list", "other keys or sizes"),
        ("index", "other keys"),
        ("small-iterable-shuffled", "in the order of the keys"),
        ("small-map-0w", "in the order of the keys"),
    ],
)
def test_work_that_was_not_done_is_found_out(name: str, what: str) -> None:
    with pytest.raises(WrongBytesError, match=what):
        WORKLOADS[name].run(_Lazy(TARGET), Meter())


class _Forgetful(Peer):
    """Leaves things out."""

    def iterate(self, folder: Any, workers: int, is_shuffled: bool) -> Any:
        for index in range(folder.count - 1):
            made = folder[index]
            yield [digest(made.key, b"".join(made.views(0, made.size)))]

    def read_samples(self, workers: int) -> Any:
        yield [digest(name, data) for name, data in samples(self.target) if name != "000003.bin"]

    def upload(self, name: str, chunks: Any) -> None:
        data = bytearray(b"".join(chunks))
        data[:1000] = data[-1000:]
        self.target.boto3_client().put_object(Bucket=self.target.bucket, Key=self.target.key(name), Body=data)


@pytest.mark.parametrize(
    ("name", "what"), [("small-iterable-0w", "255 came instead of 256"), ("shards-0w", "127 came")]
)
def test_what_does_not_come_is_missed(name: str, what: str) -> None:
    with pytest.raises(WrongBytesError, match=what):
        WORKLOADS[name].run(_Forgetful(TARGET), Meter())


def test_what_was_written_is_read_back(moto_server: S3Server, bucket: str) -> None:
    target = replace(TARGET, bucket=bucket, endpoint=moto_server.endpoint)
    target = replace(target, access_key=moto_server.access_key, secret_key=moto_server.secret_key)
    with pytest.raises(WrongBytesError, match="other bytes"):
        WORKLOADS["upload"].run(_Forgetful(target), Meter())


def test_a_peer_says_what_it_cannot_do() -> None:
    assert _Liar(TARGET).reason_against("read") is None
    assert _Liar(TARGET).reason_against("upload") == "has nothing for this"


def test_every_workload_asks_for_something_that_peers_have() -> None:
    assert all(callable(getattr(Peer, workload.ability)) for workload in WORKLOADS.values())
    assert all((Path(__file__).parent / "_peers" / f"{name}.py").exists() for name in NAMES)


def test_peers_have_as_many_requests_in_flight_as_ours() -> None:
    assert S3ClientConfig().concurrency == CONCURRENCY


def test_another_object_is_asked_for_whenever_one_is_taken() -> None:
    asked: list[str] = []

    def submit(key: str) -> Future[bytes]:
        asked.append(key)
        future: Future[bytes] = Future()
        future.set_result(key.encode())
        return future

    taken = read_ahead(submit, 3, "abcde")
    assert [(next(taken), len(asked)) for _ in range(3)] == [(b"a", 3), (b"b", 4), (b"c", 5)]
    assert list(taken) == [b"d", b"e"]


def test_samples_are_known_by_name() -> None:
    made = list(samples(TARGET))
    assert len(made) == TARGET.scale.tar_shards * TARGET.scale.samples_per_shard
    assert all(sample_digest(TARGET, name) == digest(name, data) for name, data in made)
    assert sample_digest(TARGET, "0001.bin") is None


def test_a_state_has_the_size_that_was_asked_for() -> None:
    state = make_state(8 * 2**20)
    assert sum(tensor.nbytes for tensor in state.values()) == 8 * 2**20
    assert len({tensor.numel() for tensor in state.values()}) > 10
    other = {**state, "layers.7.weight": state["layers.7.weight"].neg()}
    assert is_same_state(state, make_state(8 * 2**20))
    assert not is_same_state(state, other)


def test_the_meter_counts_from_start_to_stop() -> None:
    meter = Meter()
    meter.start()
    meter.tick(3, 100)
    meter.tick(4, 200)
    meter.stop()
    assert (meter.units, meter.needed_bytes, len(meter.intervals)) == (7, 300, 2)
    assert meter.first_seconds is not None
    assert 0 <= meter.first_seconds <= meter.seconds
    assert peak_rss_bytes() > 2**20


def test_a_cell_is_the_median_of_its_rounds() -> None:
    (cell,) = summarize(_results(read={"ours": [3.0, 1.0, 2.0]}))
    assert (cell.rate, cell.cpu_seconds_per_gib, cell.bytes_sent_ratio, cell.requests) == (2.0, 2.0, 1.0, 12)


def test_the_limit_is_the_latency_divided_among_the_requests_in_flight() -> None:
    results = _results(small_iterable_0w={"ours": [1.0]}, read={"ours": [1.0]})
    small, read = summarize(results)
    assert limit(results, small) == pytest.approx(128 / 0.0311, rel=0.01)  # the default number
    assert limit(results, read) is None


def test_the_report_has_a_row_for_each_peer_and_the_reason_where_there_is_none() -> None:
    results = _results(read={"ours": [200.0], "s3torchconnector": [100.0]})
    results["records"] += [
        {"setting": "shaped", "workload": "read", "peer": "webdataset", "round": 0, "cannot": "reads tar only"},
        {"setting": "shaped", "workload": "read", "peer": "s3fs", "round": 0, "error": "OSError: no"},
    ]
    text = write_report(results)
    assert "| s3torchconnector | 100 MB/s | 100-100 | 1 | 2.00 x |" in text
    assert "| 200 MB/s | 100 MB/s | 1 | 2.00 x | 0.50 x | 1.00 x |" in text
    assert "- webdataset: reads tar only" in text
    assert "- s3fs: failed: OSError: no" in text


def test_one_peer_has_one_table() -> None:
    one = _results(read={"ours": [200.0], "s3torchconnector": [100.0]})
    assert "## shaped: how many times as fast ours is" not in write_report(one)
    two = _results(read={"ours": [200.0], "s3torchconnector": [100.0], "boto3": [50.0]})
    assert "| one large object, read() | 2.00 x | 4.00 x |" in write_report(two)


def test_a_peer_that_cannot_write_its_own_format_says_why(tmp_path: Path) -> None:
    python, file = tmp_path / "python", tmp_path / "run.json"
    python.write_text(f'#!/bin/sh\ncase "$*" in *prepare*) exit 7;; *) exec {sys.executable} "$@";; esac\n')
    python.chmod(0o755)
    arguments = ["--quick", "--workload", "shards-0w", "--peer", "litdata", "--python", f"litdata={python}"]
    assert CliRunner().invoke(main, [*arguments, "--json", str(file)]).exit_code == 0
    assert json.loads(file.read_text())["records"][0]["error"] == "ended with status 7"


def test_rows_say_how_many_rounds_they_have() -> None:
    text = write_report(_results(read={"ours": [200.0, 201.0, 202.0], "s3torchconnector": [100.0, 101.0]}))
    assert "| 100 MB/s | 3 and 2 | 2.00 x |" in text
    assert "| s3torchconnector | 100 MB/s | 100-101 | 2 | 2.00 x |" in text


def test_the_whole_time_is_no_time_to_the_first_byte() -> None:
    results = _results(read={"ours": [1.0]}, stream={"ours": [1.0]})
    results["records"][0]["first_seconds"] = results["records"][0]["seconds"]  # one progress, at the end
    read, stream = summarize(results)
    assert (read.first_seconds, stream.first_seconds) == (None, 0.25)


@pytest.mark.parametrize(
    ("after", "is_worse"),
    [
        ([80.0, 82.0, 81.0], True),
        ([96.0, 97.0, 95.0], False),  # clear, but less than the tolerance
        ([70.0, 101.0, 75.0], False),  # its rounds overlap with those before
        ([80.0, 82.0], False),  # too few of them to say how much they differ
        ([120.0, 125.0, 121.0], False),
    ],
)
def test_a_regression_is_clear_and_large(after: list[float], is_worse: bool) -> None:
    before = _results(read={"ours": [100.0, 101.0, 102.0], "boto3": [100.0, 101.0, 102.0]})
    changes = compare(before, _results(read={"ours": after, "boto3": [1.0, 1.0, 1.0]}))
    assert len(changes) == 2
    assert bool(regressions(changes, 0.1)) is is_worse


def test_the_comparison_fails_on_a_regression(tmp_path: Path) -> None:
    for name, rate in (("a.json", 100.0), ("b.json", 50.0)):
        (tmp_path / name).write_text(json.dumps(_results(read={"ours": [rate, rate + 1, rate + 2]})))
    assert _compare(tmp_path, "a.json", "b.json").exit_code == 1
    assert _compare(tmp_path, "b.json", "a.json").exit_code == 0


def test_the_comparison_says_that_two_machines_are_two(tmp_path: Path) -> None:
    results = _results(read={"ours": [1.0]})
    (tmp_path / "a.json").write_text(json.dumps(results))
    (tmp_path / "b.json").write_text(json.dumps(results | {"machine": {"cores": 16}}))
    assert "of two machines" in _compare(tmp_path, "a.json", "b.json").output
    result = _compare(tmp_path, "a.json", "a.json")
    assert "of two machines" not in result.output
    assert "| 1.00 | too few rounds to say |" in result.output


def test_the_comparison_fails_where_a_number_is_lost(tmp_path: Path) -> None:
    before = _results(read={"ours": [1.0], "boto3": [1.0]}, upload={"ours": [1.0]}, stream={"ours": [1.0]})
    after = _results(read={"ours": [1.0]}, upload={"ours": [1.0]})
    after["records"][1] = {
        "setting": "shaped",
        "workload": "upload",
        "peer": "ours",
        "round": 0,
        "error": "OSError: no",
    }
    for name, results in (("a.json", before), ("b.json", after)):
        (tmp_path / name).write_text(json.dumps(results))
    result = _compare(tmp_path, "a.json", "b.json")
    assert result.exit_code == 1
    assert "shaped: stream is lost: it was not measured" in result.output
    assert "shaped: upload is lost: OSError: no" in result.output
    assert "read is lost" not in result.output


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"records": [1]}', '{"records": []}'])
def test_the_comparison_refuses_what_is_no_result(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    result = _compare(tmp_path, "a.json", "a.json")
    assert result.exit_code == 2
    assert "a.json is not what --json writes" in result.output


def test_the_comparison_refuses_two_scales(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(_results(read={"ours": [1.0]})))
    (tmp_path / "b.json").write_text(json.dumps(_results(read={"ours": [1.0]}) | {"scale": "quick"}))
    result = _compare(tmp_path, "a.json", "b.json")
    assert result.exit_code == 2
    assert "scale full and scale quick don't compare" in result.output


def test_an_earlier_file_stays_where_nothing_was_measured(moto_server: S3Server, bucket: str, tmp_path: Path) -> None:
    moto_server.boto3_client().put_object(Bucket=bucket, Key="some/where/quick/other", Body=b"mine")
    files = [tmp_path / "run.json", tmp_path / "now.md"]
    for file in files:
        file.write_text("of an earlier run")
    options = ["--json", str(files[0]), "--report", str(files[1])]
    assert _run_in(moto_server, bucket, "--workload", "read", *options).exit_code == 1
    assert [file.read_text() for file in files] == ["of an earlier run"] * 2
    assert sorted(tmp_path.iterdir()) == sorted(files)


def _compare(folder: Path, before: str, after: str) -> Result:
    return CliRunner().invoke(main, ["compare", str(folder / before), str(folder / after)])
