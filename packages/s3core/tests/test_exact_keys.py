"""Keys are kept byte for byte, and a prefix is a text."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3core import NoSuchKeyError, S3Client
from servers import CountingServer, S3Server

pytestmark = pytest.mark.usefixtures("each_way")

ODD_KEYS = [
    "a//b",
    "dir/",
    "/lead",
    "a/../b",
    "sp ace+%41ü漢",
    "./a",
    "a/./b",
    "..",
    "a&b<c>'\"",
    "~*!()#?=;:@$,",
    "back\\slash",
]
NEIGHBOURS = ["a/b", "dir", "lead", "b", "sp ace+Aü漢", "a"]
KEYS = sorted([*ODD_KEYS, *NEIGHBOURS], key=str.encode)


@pytest.fixture(params=["moto_server", "ceph_server", "counting_server"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


def content(key: str) -> bytes:
    return b"of " + key.encode()


def all_keys(client: S3Client, bucket: str, prefix: str = "", **more: int) -> list[str]:
    return [key for page in client.list_objects(bucket, prefix, **more) for key in page.keys]  # type: ignore[arg-type]


def test_odd_keys_are_put_listed_read_copied_and_deleted_exactly(
    server: S3Server, make_client: Callable[..., S3Client]
) -> None:
    client, bucket = make_client(server), server.create_bucket()
    for key in KEYS:
        with client.put_object(bucket, key) as stream:
            stream.write(content(key))
    assert all_keys(client, bucket) == KEYS
    assert all_keys(client, bucket, max_keys=2) == KEYS
    for key in KEYS:
        assert client.get_object(bucket, key).read_all() == content(key)
        assert client.get_object(bucket, key, start=3).read_all() == key.encode()
        assert client.head_object(bucket, key).size == len(content(key))
    for key in ODD_KEYS:
        client.copy_object(bucket, key, bucket, "copied")
        assert client.get_object(bucket, "copied").read_all() == content(key)
    client.delete_object(bucket, "copied")
    for number, key in enumerate(ODD_KEYS):
        client.delete_object(bucket, key)
        assert all_keys(client, bucket) == [k for k in KEYS if k not in ODD_KEYS[: number + 1]]
    for key in NEIGHBOURS:
        assert client.get_object(bucket, key).read_all() == content(key)


def test_odd_keys_are_deleted_in_bulk(server: S3Server, make_client: Callable[..., S3Client]) -> None:
    client, bucket = make_client(server), server.create_bucket()
    for key in KEYS:
        with client.put_object(bucket, key) as stream:
            stream.write(content(key))
    client.delete_objects(bucket, iter(ODD_KEYS))
    assert all_keys(client, bucket) == sorted(NEIGHBOURS, key=str.encode)


def test_odd_keys_are_written_in_parts(server: S3Server, make_client: Callable[..., S3Client]) -> None:
    client, bucket = make_client(server, part_size=5 * 2**20), server.create_bucket()
    for key in ODD_KEYS[:5]:
        with client.put_object(bucket, key) as stream:
            stream.write(bytes(6 * 2**20))
    assert sorted(all_keys(client, bucket)) == sorted(ODD_KEYS[:5])


def test_a_prefix_is_a_text_and_not_a_folder(s3_server: S3Server, make_client: Callable[..., S3Client]) -> None:
    client, bucket = make_client(s3_server), s3_server.create_bucket()
    keys = ["data/abc", "data/abd/x", "data/b", "dat", "data"]
    for key in keys:
        with client.put_object(bucket, key) as stream:
            stream.write(b"x")
    assert sorted(all_keys(client, bucket, "data/a")) == ["data/abc", "data/abd/x"]
    assert sorted(all_keys(client, bucket, "data")) == ["data", "data/abc", "data/abd/x", "data/b"]
    assert sorted(all_keys(client, bucket, "data/")) == ["data/abc", "data/abd/x", "data/b"]
    (page,) = client.list_objects(bucket, "data/", "/")
    assert (page.keys, page.common_prefixes) == (["data/abc", "data/b"], ["data/abd/"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_any_text_is_a_key(counting_server: CountingServer, make_client: Callable[..., S3Client], key: str) -> None:
    client, bucket = make_client(counting_server, max_attempts=1), counting_server.bucket
    with client.put_object(bucket, key) as stream:
        stream.write(content(key))
    assert counting_server.keys() == [key]
    assert all_keys(client, bucket) == [key]
    assert client.get_object(bucket, key).read_all() == content(key)
    assert client.head_object(bucket, key).size == len(content(key))
    client.delete_objects(bucket, [key])
    assert counting_server.keys() == []
    with pytest.raises(NoSuchKeyError):
        client.head_object(bucket, key)


@pytest.mark.parametrize("key", ["", None, b"key", "x" * 1025, "ü" * 513, "half a \ud800 pair"])
def test_what_is_no_key_is_refused(make_client: Callable[..., S3Client], moto_server: S3Server, key: str) -> None:
    client = make_client(moto_server)
    for use in (client.get_object, client.put_object, client.head_object, client.delete_object):
        with pytest.raises(ValueError, match="key"):
            use("a-bucket", key)
