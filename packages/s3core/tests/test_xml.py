from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core import S3Exception
from s3core._xml import (
    _parse_listing,
    _scan_listing,
    completion_document,
    deletion_document,
    fits_xml,
    parse_listing,
    peek_token,
)

SPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
keys = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1)


def listing(rows: list[str], *, encoded: bool = True, more: str = "") -> bytes:
    encoding = "<EncodingType>url</EncodingType>" if encoded else ""
    return (
        f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{encoding}{more}'
        f"<Prefix>ignored</Prefix>{''.join(rows)}</ListBucketResult>"
    ).encode()


def row(key: str, *, etag: str = "&quot;e&quot;", more: str = "") -> str:
    etag = etag and f"<ETag>{etag}</ETag>"
    return (
        f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>{etag}"
        f"<Size>7</Size><StorageClass>STANDARD</StorageClass>{more}</Contents>"
    )


@pytest.mark.parametrize("encode", [quote, quote_plus])
@given(names=st.lists(keys))
def test_every_key_comes_out_of_an_encoded_listing_as_it_is(encode: object, names: list[str]) -> None:
    page = parse_listing(listing([row(encode(name, safe="/")) for name in names]), "LIST")  # type: ignore[operator]
    assert page.keys == names
    assert page.sizes == [7] * len(names)
    assert page.etags == ['"e"'] * len(names)


@given(names=st.lists(keys.filter(fits_xml)))
def test_every_key_comes_out_of_a_deletion_as_it_went_in(names: list[str]) -> None:
    root = ElementTree.fromstring(deletion_document(names))
    assert [element.text or "" for element in root.iter(f"{SPACE}Key")] == names


@given(parts=st.lists(st.tuples(st.integers(1, 10_000), keys.filter(fits_xml), st.none() | st.just("AAAA"))))
def test_a_completion_names_each_part(parts: list[tuple[int, str, str | None]]) -> None:
    root = ElementTree.fromstring(completion_document(parts, "CRC64NVME"))
    found = [
        (
            int(part.findtext(f"{SPACE}PartNumber", "")),
            part.findtext(f"{SPACE}ETag"),
            part.findtext(f"{SPACE}ChecksumCRC64NVME"),
        )
        for part in root.iter(f"{SPACE}Part")
    ]
    assert found == parts


@given(names=st.lists(keys.filter(fits_xml)), is_encoded=st.booleans())
def test_a_page_that_is_scanned_is_what_a_parser_makes_of_it(names: list[str], is_encoded: bool) -> None:
    body = listing([row(quote(name) if is_encoded else escape(name)) for name in names], encoded=is_encoded)
    scanned = _scan_listing(body)
    assert (scanned is None) == ("\r" in body.decode())
    assert scanned in (None, _parse_listing(body, "LIST"))


FLAT = re.compile(r"<\w+>[^<]*</\w+>")
OTHERS = ["<ChecksumType>FULL_OBJECT</ChecksumType>", "<Size>8</Size>", "<Owner><ID>x</ID></Owner>"]


@given(st.data(), st.integers(1, 4), st.booleans())
def test_cells_in_any_order_are_what_a_parser_makes_of_them(data: st.DataObject, count: int, is_same: bool) -> None:
    rows, order = [], list[str]()
    for number in range(count):
        if not order or not is_same:
            order = data.draw(
                st.permutations([*FLAT.findall(row("KEY")), *data.draw(st.lists(st.sampled_from(OTHERS)))])
            )
        cells = order if data.draw(st.booleans()) else [cell for cell in order if cell not in OTHERS]
        rows.append(f"<Contents>{''.join(cells)}</Contents>".replace("KEY", f"key-{number}"))
    body = listing(rows)
    assert _scan_listing(body) in (None, _parse_listing(body, "LIST"))
    is_plain = "<Size>8" not in body.decode()
    assert _scan_listing(body) is not None or not is_plain


@pytest.mark.parametrize(
    "odd",
    [
        row("<![CDATA[a<b]]>"),
        row("<!-- <Key>c</Key> -->d"),
        row("a&#13;&#x41;"),
        row("a").replace("<Contents>", '<Contents id="1">'),
        row("a").replace("<Size>7</Size>", "<Size/>"),
        row("a").replace("<", "<s3:").replace("<s3:/", "</s3:"),
        "<Contents/>",
        "<CommonPrefixes id='1'><Prefix>f/</Prefix></CommonPrefixes>",
    ],
)
def test_a_page_in_other_words_is_left_to_the_parser(odd: str) -> None:
    body = listing([row("first"), odd, row("last")])
    assert _scan_listing(body) is None
    assert _scan_listing(listing([row("first"), row("last")])) is not None


def test_objects_that_lack_an_element_keep_their_columns_apart() -> None:
    page = parse_listing(listing([row("a"), row("b", etag=""), row("c")]), "LIST")
    assert page.keys == ["a", "b", "c"]
    assert page.etags == ['"e"', "", '"e"']


CELL = re.compile(r"<(\w+)>([^<]*)</\w+>")
garbage = st.sampled_from(["", " ", "-7", "7.0", "1_0", "x", "&quot;", "&#233;", "9" * 20, "9" * 5000, "<b>1</b>"])


@given(st.data(), st.booleans())
def test_a_garbled_object_is_an_error_or_says_what_it_says(data: st.DataObject, is_scannable: bool) -> None:
    rows = [row("a"), row("b", more="" if is_scannable else "<!-- -->"), row("c")]
    for index in data.draw(st.sets(st.integers(0, 2))):
        cell = data.draw(st.sampled_from(list(CELL.finditer(rows[index]))))
        said = data.draw(garbage)
        said = data.draw(st.sampled_from(["", f"<{cell[1]}/>", f"<{cell[1]}>{said}</{cell[1]}>"]))
        rows[index] = rows[index].replace(cell[0], said)
    body = listing(rows, more="<IsTruncated>false</IsTruncated>")
    objects = list(ElementTree.fromstring(body).iter(f"{SPACE}Contents"))
    told = [[found.findtext(f"{SPACE}{tag}") or "" for found in objects] for tag in ("Key", "Size", "ETag")]
    is_well = all(told[0]) and all(re.fullmatch("[0-9]{1,19}", size) for size in told[1])
    if is_well:
        page = parse_listing(body, "LIST of s3://b/p")
        assert [page.keys, [str(size) for size in page.sizes], page.etags] == told
        assert all(info.last_modified is None or info.last_modified.tzinfo for info in page.object_info)
    else:
        with pytest.raises(S3Exception, match=r"LIST of s3://b/p failed: .* ListObjectsV2"):
            parse_listing(body, "LIST of s3://b/p")


WHOLE = listing(
    [row("a%2Bb"), row("b"), "<CommonPrefixes><Prefix>f/</Prefix></CommonPrefixes>"],
    more="<IsTruncated>true</IsTruncated><NextContinuationToken>t&amp;1</NextContinuationToken>",
)


@given(st.integers(0, len(WHOLE)), st.integers(0, 40), st.binary(max_size=3))
def test_a_broken_page_is_an_error_that_names_the_prefix(start: int, count: int, new: bytes) -> None:
    body = WHOLE[:start] + new + WHOLE[start + count :]
    failed = said = "LIST of s3://b/p failed: "
    try:
        page = parse_listing(body, "LIST of s3://b/p")
        assert len(page.object_info) == len(page.keys) <= 2
    except S3Exception as error:
        said = str(error)
    assert said.startswith(failed)


@pytest.mark.parametrize("encoding", ["no-such-thing", "utf-7", "gbk", "undefined", "hex"])
def test_a_page_in_an_odd_encoding_is_an_error(encoding: str) -> None:
    body = f'<?xml version="1.0" encoding="{encoding}"?>'.encode() + listing([row("<!-- -->a")]).partition(b"?>")[2]
    with pytest.raises(S3Exception, match=r"LIST of s3://b failed.*check the endpoint"):
        parse_listing(body, "LIST of s3://b")


@pytest.mark.parametrize("prefix", ["<Prefix/>", ""])
def test_a_common_prefix_that_is_empty_is_an_error(prefix: str) -> None:
    with pytest.raises(S3Exception, match=r"LIST of s3://b failed: .*empty common prefix"):
        parse_listing(listing([f"<CommonPrefixes>{prefix}</CommonPrefixes>"]), "LIST of s3://b")


def test_a_time_without_a_zone_is_in_that_of_s3() -> None:
    (info,) = parse_listing(listing([row("a").replace("000Z", "000")]), "LIST").object_info
    assert info.last_modified == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_owners_and_checksums_in_between_do_not_disturb_the_columns() -> None:
    more = "<Owner><ID>x</ID></Owner><ChecksumAlgorithm>CRC32</ChecksumAlgorithm>"
    page = parse_listing(listing([row("a", more=more), row("b")]), "LIST")
    assert (page.keys, page.sizes, page.storage_classes) == (["a", "b"], [7, 7], ["STANDARD"] * 2)


def test_a_page_that_is_not_the_last_names_the_next() -> None:
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>t+1==</NextContinuationToken>"
    assert peek_token(listing([], more=more), "LIST") == "t+1=="
    assert peek_token(listing([], more=more.replace("true", "false")), "LIST") is None


@pytest.mark.parametrize("token", ["", "<NextContinuationToken></NextContinuationToken>", "<NextMarker>b</NextMarker>"])
@pytest.mark.parametrize("truth", ["true", " true ", "True"])
def test_a_listing_that_goes_on_nobody_knows_where_is_not_taken_for_the_end(token: str, truth: str) -> None:
    with pytest.raises(S3Exception, match=r"LIST of s3://b failed: .*more keys"):
        parse_listing(listing([row("a")], more=f"<IsTruncated>{truth}</IsTruncated>{token}"), "LIST of s3://b")


def test_rolled_up_prefixes_are_decoded() -> None:
    rows = ["<CommonPrefixes><Prefix>a%2Bb+c/</Prefix></CommonPrefixes>"]
    assert parse_listing(listing(rows), "LIST").common_prefixes == ["a+b c/"]


def test_a_listing_that_was_not_encoded_is_taken_as_it_is() -> None:
    assert parse_listing(listing([row("a+b%41")], encoded=False), "LIST").keys == ["a+b%41"]


@pytest.mark.parametrize("body", [b"", b"<html>", b"not xml", b"<Other/>"])
def test_an_answer_that_is_no_listing_is_an_error_that_points_to_the_endpoint(body: bytes) -> None:
    with pytest.raises(S3Exception, match=r"LIST of s3://b failed.*check the endpoint"):
        parse_listing(body, "LIST of s3://b")
