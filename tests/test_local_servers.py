"""The local servers start, serve, and end with whoever started them."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from servers import S3Server, ServerStartError, is_seaweedfs_installed, start_local_server, start_moto, start_seaweedfs

needs_seaweedfs = pytest.mark.skipif(not is_seaweedfs_installed(), reason="SeaweedFS is not installed")


def test_a_server_keeps_what_is_put(s3_server: S3Server) -> None:
    bucket = s3_server.create_bucket()
    client = s3_server.boto3_client()
    client.put_object(Bucket=bucket, Key="a/b c", Body=b"hello")
    assert client.get_object(Bucket=bucket, Key="a/b c")["Body"].read() == b"hello"
    client.close()


def test_ceph_keeps_odd_keys_exactly(ceph_server: S3Server) -> None:
    bucket = ceph_server.create_bucket()
    client = ceph_server.boto3_client()
    keys = sorted(["a//b", "dir/", "/lead", "a/../b", "sp ace+%41ü漢"])
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert [c["Key"] for c in client.list_objects_v2(Bucket=bucket)["Contents"]] == keys
    assert [client.get_object(Bucket=bucket, Key=key)["Body"].read().decode() for key in keys] == keys
    client.close()


def test_two_moto_servers_share_nothing(moto_server: S3Server) -> None:
    bucket = moto_server.create_bucket()
    with start_moto() as other:
        client = other.boto3_client()
        assert bucket not in [b["Name"] for b in client.list_buckets()["Buckets"]]
        client.close()


@needs_seaweedfs
def test_seaweedfs_serves_https_with_a_certificate_of_its_own() -> None:
    with start_seaweedfs(tls=True) as server:
        assert server.endpoint.startswith("https://")
        assert server.environment()["AWS_CA_BUNDLE"] == server.ca_bundle
        client = server.boto3_client()
        assert client.list_buckets()["Buckets"] == []
        client.close()


def test_the_environment_points_boto3_at_the_server(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    assert client.meta.endpoint_url == moto_server.endpoint
    client.close()


def test_a_pickled_server_is_reached_but_not_owned(moto_server: S3Server) -> None:
    copy = pickle.loads(pickle.dumps(moto_server))
    copy.stop()
    assert copy.create_bucket()


def test_stop_ends_the_server_and_removes_its_files() -> None:
    server = start_moto()
    assert server.process is not None
    directory = server.process.directory
    server.stop()
    assert not directory.exists()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.endpoint)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_server_ends_when_its_owner_is_killed() -> None:
    code = (
        "import sys, time; from servers import start_local_server; s = start_local_server();"
        "print(s.endpoint, s.process.directory, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parent
    )
    assert owner.stdout is not None
    endpoint, directory = owner.stdout.readline().split()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert _happens_within(120, lambda: not Path(directory).exists())
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(endpoint)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_does_not_stop_its_parents_server() -> None:
    code = (
        "import os, sys; from servers import start_moto; s = start_moto(); child = os.fork();"
        "child or sys.exit(0); os.waitpid(child, 0); print(bool(s.create_bucket()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).resolve().parent
    )
    assert done.stdout == "True\n"


def test_a_program_that_fails_says_what_it_logged(tmp_path: Path) -> None:
    from servers import SupervisedProcess

    process = SupervisedProcess([sys.executable, "-c", "raise SystemExit('no such disk')"], tmp_path / "new")
    with pytest.raises(ServerStartError, match="no such disk"):
        process.wait_until(lambda: False, timeout_seconds=120)


def test_the_local_server_is_the_best_there_is() -> None:
    with start_local_server() as server:
        assert server.name == ("seaweedfs" if is_seaweedfs_installed() else "moto")


def _happens_within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
