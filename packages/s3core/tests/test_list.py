"""Listings: page by page, resumable, with all that S3 says about each object."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from s3core import AccessDeniedError, NoSuchBucketError, S3Client, S3Exception
from servers import CountingServer, S3Server

KEYS = [f"folder/{n:03}" for n in range(25)]


@pytest.fixture
def client(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> S3Client:
    for key in KEYS:
        counting_server.put(key, key.encode())
    return make_client(counting_server, max_attempts=3)


@pytest.fixture
def bucket(counting_server: CountingServer) -> str:
    return counting_server.bucket


def test_pages_come_in_order_and_end(client: S3Client, bucket: str) -> None:
    pages = list(client.list_objects(bucket, max_keys=10))
    assert [len(page) for page in pages] == [10, 10, 5]
    assert list(itertools.chain(*(page.keys for page in pages))) == KEYS


def test_a_page_has_its_objects_as_columns_and_as_rows(
    s3_server: S3Server, make_client: Callable[..., S3Client]
) -> None:
    client, bucket = make_client(s3_server), s3_server.create_bucket()
    with client.put_object(bucket, "a b") as stream:
        stream.write(b"abc")
    (page,) = client.list_objects(bucket)
    (info,) = page.object_info
    assert (page.keys, page.sizes) == (["a b"], [3])
    assert (info.key, info.size, info.etag) == ("a b", 3, client.head_object(bucket, "a b").etag)
    assert info.last_modified is not None
    assert abs(datetime.now(UTC) - info.last_modified) < timedelta(minutes=10)
    assert info.storage_class == "STANDARD"


def test_an_empty_listing_is_one_empty_page(s3_server: S3Server, make_client: Callable[..., S3Client]) -> None:
    (page,) = make_client(s3_server).list_objects(s3_server.create_bucket())
    assert len(page) == 0
    assert page.object_info == []


@pytest.mark.parametrize("pages_before", [0, 1, 2, 3])
def test_a_pickled_listing_goes_on_where_it_was(client: S3Client, bucket: str, pages_before: int) -> None:
    listing = client.list_objects(bucket, max_keys=10)
    came = [key for page in itertools.islice(listing, pages_before) for key in page.keys]
    copy = pickle.loads(pickle.dumps(listing))
    assert came + [key for page in copy for key in page.keys] == KEYS
    assert came + [key for page in listing for key in page.keys] == KEYS


def test_a_listing_that_failed_once_goes_on_where_it_was(
    counting_server: CountingServer, client: S3Client, bucket: str
) -> None:
    counting_server.fault(operation="ListObjectsV2", skip=1, times=1, status=403, code="AccessDenied")
    listing = client.list_objects(bucket, max_keys=10)
    came = list(next(listing).keys)
    with pytest.raises(AccessDeniedError, match=f"LIST of s3://{bucket}"):
        next(listing)
    assert came + [key for page in listing for key in page.keys] == KEYS


def test_a_listing_begins_after_a_key(client: S3Client, bucket: str) -> None:
    (page,) = client.list_objects(bucket, "folder/", start_after="folder/019")
    assert page.keys == KEYS[20:]


def test_the_next_page_is_on_its_way_while_one_is_worked_on(
    counting_server: CountingServer, client: S3Client, bucket: str
) -> None:
    listing = client.list_objects(bucket, max_keys=10)
    next(listing)
    counting_server.wait_for_requests(2)


def test_nothing_is_sent_before_the_first_page_is_asked_for(
    counting_server: CountingServer, client: S3Client, bucket: str
) -> None:
    client.list_objects(bucket)
    assert counting_server.requests == []


def test_an_unknown_bucket_is_named(s3_server: S3Server, make_client: Callable[..., S3Client]) -> None:
    with pytest.raises(NoSuchBucketError, match="LIST of s3://no-such-bucket"):
        next(make_client(s3_server).list_objects("no-such-bucket", "data"))


def test_an_answer_of_another_kind_of_server_points_to_the_endpoint(
    counting_server: CountingServer, client: S3Client, bucket: str
) -> None:
    counting_server.fault(operation="ListObjectsV2", status=200, code="Sorry")
    with pytest.raises(S3Exception, match="check the endpoint"):
        next(client.list_objects(bucket))


@pytest.mark.parametrize("max_keys", [0, -1, True, 1.5, None])
def test_a_page_size_that_cannot_work_is_refused(client: S3Client, bucket: str, max_keys: object) -> None:
    with pytest.raises(ValueError, match="max_keys is"):
        client.list_objects(bucket, max_keys=max_keys)  # type: ignore[arg-type]
