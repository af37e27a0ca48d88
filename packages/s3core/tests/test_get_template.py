"""Requests from a template are, to the byte, those that are spelled in full."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3core import S3Client, S3ClientConfig
from s3core._answer import ranged_get
from s3core._get_template import ranged_get_on_the_wire
from s3core._head import Target
from s3core._request import prepare
from s3core._runtime import Runtime
from s3core._wire import get_request

KEYS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "secret"}
CONFIGS: dict[str, dict[str, Any]] = {
    "keys": KEYS,
    "unsigned": {"unsigned": True},
    "token": {**KEYS, "session_token": "a/token+of=temporary%keys"},
    "all headers": {
        **KEYS,
        "user_agent_suffix": "100%(path)s/1.0",
        "requester_pays": True,
        "expected_bucket_owner": "123456789012",
        "sse": "SSE-C",
        "sse_customer_key": bytes(range(32)),
    },
}


def runtime_of(name: str) -> Runtime:
    client = S3Client("eu-west-1", endpoint="http://localhost:9000", s3client_config=S3ClientConfig(**CONFIGS[name]))
    return client._runtime


def spelled_in_full(runtime: Runtime, target: Target, start: int, end: int, etag: str | None) -> bytes:
    address = runtime.address(target.bucket)
    path, headers = prepare(ranged_get(runtime, target, start, end, etag), runtime.settings, address, runtime.keys())
    return get_request(path, address.host, headers)


def on_the_wire(runtime: Runtime, target: Target, start: int, end: int, etag: str | None) -> bytes:
    keys = runtime.keys()
    return ranged_get_on_the_wire(runtime, target, start, end, etag, runtime.address(target.bucket), keys)


@pytest.mark.parametrize("name", CONFIGS)
@given(
    bucket=st.sampled_from(["bucket", "another.bucket"]),
    key=st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=20),
    version=st.none() | st.text(min_size=1, max_size=5, alphabet="aZ/+="),
    start=st.integers(0, 10**13),
    size=st.integers(1, 10**6),
    etag=st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
)
@example("bucket", "%(path)s/%\1\2\3\4", None, 0, 1, '"%(etag)s"')
@example("bucket", "key", None, 0, 1, '"two  spaces"')
@example("bucket", "key", None, 0, 1, "")
def test_a_request_is_the_one_that_is_spelled_in_full(
    name: str, bucket: str, key: str, version: str | None, start: int, size: int, etag: str | None
) -> None:
    runtime, target = runtime_of(name), Target(bucket, key, version)
    while True:
        second = int(time.time())
        found = on_the_wire(runtime, target, start, start + size, etag)
        expected = spelled_in_full(runtime, target, start, start + size, etag)
        if int(time.time()) == second:  # else they may be of different times
            break
    assert found == expected


@pytest.mark.parametrize("etag", ['"a\r\nx-amz-b: c"', '"a\n"', '"a\r"', '"\r\n\r\nGET / HTTP/1.1"'])
def test_an_etag_with_a_line_end_is_refused(etag: str) -> None:
    with pytest.raises(ValueError, match="line end"):
        on_the_wire(runtime_of("keys"), Target("bucket", "key"), 0, 1, etag)


def test_a_template_is_made_anew_for_other_keys_another_region_and_another_second() -> None:
    runtime, target = runtime_of("keys"), Target("bucket", "key")
    there = runtime.address("bucket")
    sent = [on_the_wire(runtime, target, 0, 1, '"etag"')]
    other_keys = runtime_of("token").keys()
    sent.append(ranged_get_on_the_wire(runtime, target, 0, 1, '"etag"', there, other_keys))
    assert b"a/token+of=temporary%keys" in sent[-1]
    assert runtime.correct_region("bucket", "us-west-2", used="eu-west-1")
    sent.append(on_the_wire(runtime, target, 0, 1, '"etag"'))
    assert b"/us-west-2/s3/" in sent[-1]
    time.sleep(1.01)
    sent.append(on_the_wire(runtime, target, 0, 1, '"etag"'))
    assert len(set(sent)) == len(sent)
