"""Signatures are botocore's, to the byte."""

from __future__ import annotations

from datetime import UTC, datetime
from http.client import HTTPMessage
from types import SimpleNamespace
from urllib.parse import quote

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from hypothesis import example, given
from hypothesis import strategies as st

from s3core._address import host_of
from s3core._credentials import Credentials
from s3core._signature import sign

NOW = datetime(2024, 2, 29, 23, 59, 58, tzinfo=UTC)

text = st.text(st.characters(blacklist_categories=("Cs",)), max_size=20)
printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)
header_names = st.from_regex(
    r"\A(?:x-amz-(?:meta-)?[A-Za-z0-9_-]{1,9}|Range|If-Match|Content-(?:Length|Type)|User-Agent)\Z"
)
origins = st.sampled_from(
    [
        "https://bucket.s3.eu-central-1.amazonaws.com",
        "https://localhost:443",
        "http://localhost:80",
        "http://LOCALHOST:9000/a.bucket",
        "http://[::1]:9000/bucket",
    ]
)


def target_of(url: str) -> str:
    """Path and query of a URL."""
    return "/" + url.split("/", 3)[3]


def _botocore(method: str, url: str, headers: dict[str, str], keys: Credentials, region: str) -> HTTPMessage:
    request = AWSRequest(method=method, url=url, headers=headers)
    request.context["client_config"] = SimpleNamespace(s3={"payload_signing_enabled": False})
    theirs = BotocoreCredentials(keys.access_key_id, keys.secret_access_key, keys.session_token)
    botocore.auth.S3SigV4Auth(theirs, "s3", region).add_auth(request)
    return request.headers


@given(
    method=st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE"]),
    origin=origins,
    key=text,
    query=st.dictionaries(text.filter(bool), text, max_size=4),
    headers=st.dictionaries(header_names, printable, max_size=4),
    secret=printable,
    token=st.none() | printable,
    region=st.sampled_from(["us-east-1", "eu-central-1", "auto"]),
)
@example("PUT", "http://[::1]:9000", "a//b/../ü漢+%41", {"partNumber": "2", "uploadId": "a/b=="}, {}, "s", None, "auto")
@example("PUT", "https://localhost", "k", {}, {"x-amz-meta-A": "1", "x-amz-meta-a": "2"}, "s", None, "x")
@example("GET", "https://localhost:443", "", {"a": "", "a-b": "", "a!": ""}, {"Range": "  bytes=0-1   "}, "s", "t", "x")
def test_a_signature_is_the_one_that_botocore_makes(
    method: str,
    origin: str,
    key: str,
    query: dict[str, str],
    headers: dict[str, str],
    secret: str,
    token: str | None,
    region: str,
) -> None:
    url = f"{origin}/{quote(key, safe='/-_.~')}"
    if query:
        url += "?" + "&".join(
            f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query.items()
        )
    keys = Credentials("AKIDEXAMPLE", secret, token)
    theirs = _botocore(method, url, headers, keys, region)
    now = datetime.strptime(theirs["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    ours = sign(method, host_of(url), target_of(url), headers, keys, region, now=now)
    assert sorted(ours.items()) == sorted(theirs.items())


def test_the_example_in_the_documentation_of_s3() -> None:
    # https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    # It signs the hash of the empty body, so its signature is another; scope and list of headers are the same.
    keys = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    now = datetime(2013, 5, 24, tzinfo=UTC)
    url = "https://examplebucket.s3.amazonaws.com/test.txt"
    found = sign("GET", host_of(url), target_of(url), {"Range": "bytes=0-9"}, keys, "us-east-1", now=now)[
        "Authorization"
    ]
    assert found.startswith(
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, Signature="
    )


@pytest.mark.parametrize("name", ["User-Agent", "Expect", "Transfer-Encoding", "Connection"])
def test_what_a_proxy_may_change_is_not_signed(name: str) -> None:
    keys = Credentials("id", "secret")
    with_header = sign("GET", "localhost", "/b", {name: "x"}, keys, "us-east-1", now=NOW)
    without = sign("GET", "localhost", "/b", {}, keys, "us-east-1", now=NOW)
    assert with_header == {**without, name: "x"}
