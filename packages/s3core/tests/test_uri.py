from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core import parse_s3_uri
from s3core._uri import check_bucket, uri_of


@given(key=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_key_is_kept_character_for_character(key: str) -> None:
    assert parse_s3_uri(f"s3://a-bucket/{key}") == ("a-bucket", key)


@given(key=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_an_uri_is_spelled_as_it_is_parsed(key: str) -> None:
    assert parse_s3_uri(uri_of("a-bucket", key)) == ("a-bucket", key)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://bucket//lead", ("bucket", "/lead")),
        ("s3://bucket/a/../b?c#d", ("bucket", "a/../b?c#d")),
        ("s3://My_Old.Bucket/k", ("My_Old.Bucket", "k")),
    ],
)
def test_nothing_of_a_key_is_decoded_collapsed_or_stripped(uri: str, expected: tuple[str, str]) -> None:
    assert parse_s3_uri(uri) == expected


@pytest.mark.parametrize("separator", ["/", ":"])
def test_the_arn_of_an_access_point_stands_for_a_bucket(separator: str) -> None:
    arn = f"arn:aws:s3:eu-west-1:123456789012:accesspoint{separator}training"
    assert parse_s3_uri(f"s3://{arn}/images/1.jpg") == (arn, "images/1.jpg")
    assert parse_s3_uri(f"s3://{arn}") == (arn, "")


@pytest.mark.parametrize("uri", ["", "bucket/key", "http://bucket/key", "S3://bucket/key", "s3:/bucket/key", "s3://"])
def test_another_form_is_refused_with_the_uri_and_the_form_to_write(uri: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(uri))) as caught:
        parse_s3_uri(uri)
    assert "s3://" in str(caught.value) or "bucket name" in str(caught.value)


@pytest.mark.parametrize("uri", [None, b"s3://bucket/key", 3])
def test_what_is_no_text_is_refused(uri: object) -> None:
    with pytest.raises(ValueError, match="a str like"):
        parse_s3_uri(uri)  # type: ignore[arg-type]


@pytest.mark.parametrize("bucket", ["", "ab", "-abc", "abc-", "a b c", "a/b", "x" * 256, "büro", "a\nb", "abc\n"])
def test_what_cannot_be_a_bucket_is_refused(bucket: str) -> None:
    with pytest.raises(ValueError, match="not a bucket name"):
        check_bucket(bucket)
