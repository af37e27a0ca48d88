"""Listings in pages: ListObjectsV2 and its elder, in the order of the keys' UTF-8 bytes."""

from __future__ import annotations

import base64
import bisect
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from servers.counting._errors import S3Error
from servers.counting._messages import Request, Response
from servers.counting._objects import GeneratedObjects, S3Object
from servers.counting._xml import document, element, escape_text, iso_time, text

_MOST_KEYS = 1000


@dataclass(slots=True)
class _Page:
    objects: list[S3Object] = field(default_factory=list)
    common_prefixes: list[str] = field(default_factory=list)
    last: str = ""
    is_truncated: bool = False


def list_objects(request: Request, stored: Sequence[S3Object], generated: Sequence[GeneratedObjects]) -> Response:
    """Answer a listing.

    Args:
        request: Either version of ListObjects.
        stored: The bucket's uploaded objects, in any order.
        generated: The bucket's folders of generated objects.
    """
    query = request.query
    is_second_version = query.get("list-type") == "2"
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    if is_second_version:
        token = query.get("continuation-token")
        after = _read_token(token) if token else query.get("start-after", "")
    else:
        after = query.get("marker", "")
    try:
        most = min(int(query.get("max-keys", _MOST_KEYS)), _MOST_KEYS)
    except ValueError:
        raise S3Error(400, "InvalidArgument", "max-keys is not a number") from None
    if most < 0:
        raise S3Error(400, "InvalidArgument", "Argument maxKeys must be an integer between 0 and 2147483647")
    is_quoted = query.get("encoding-type") == "url"

    stored = [found for found in stored if found.key.startswith(prefix)]
    generated = [folder for folder in generated if _can_hold(folder, prefix)]
    rows = (
        _generated_rows(generated[0], prefix, after, most)
        if len(generated) == 1 and not (stored or delimiter)
        else None
    )
    if rows is None:
        page = _page(stored, generated, prefix, delimiter, after, most)
        xml = "".join(_row(found, is_quoted) for found in page.objects)
    else:
        xml, page = rows
    count = xml.count("<Contents>") + len(page.common_prefixes)
    children = [text("Name", request.bucket), text("Prefix", _quoted(prefix, is_quoted)), text("MaxKeys", most)]
    children += [text("IsTruncated", str(page.is_truncated).lower()), xml]
    children += [element("CommonPrefixes", text("Prefix", _quoted(p, is_quoted))) for p in page.common_prefixes]
    if delimiter:
        children += [text("Delimiter", _quoted(delimiter, is_quoted))]
    if is_quoted:
        children += [text("EncodingType", "url")]
    if is_second_version:
        children += [text("KeyCount", count)]
        if page.is_truncated:
            children += [text("NextContinuationToken", _write_token(page.last))]
    elif page.is_truncated:
        children += [text("NextMarker", _quoted(page.last, is_quoted))]
    return document("ListBucketResult", children)


def _page(
    stored: Sequence[S3Object],
    generated: Sequence[GeneratedObjects],
    prefix: str,
    delimiter: str,
    after: str,
    most: int,
) -> _Page:
    page = _Page(last=after)
    matching = sorted(stored, key=_key)
    while True:
        for found in _after(matching, generated, prefix, page.last):
            end = found.key.find(delimiter, len(prefix)) if delimiter else -1
            common = found.key[: end + len(delimiter)] if end >= 0 else ""
            if common and common <= page.last and page.last.startswith(common):
                # The page before ended with this common prefix: go on behind all of its keys.
                page.last = common + "\U0010ffff"
                break
            if len(page.objects) + len(page.common_prefixes) >= most:
                page.is_truncated = most > 0
                return page
            if common:
                page.common_prefixes.append(common)
                page.last = common
                break
            page.objects.append(found)
            page.last = found.key
        else:
            return page


def _after(
    matching: Sequence[S3Object], generated: Sequence[GeneratedObjects], prefix: str, after: str
) -> Iterator[S3Object]:
    sources: list[Iterator[S3Object]] = [iter(matching[bisect.bisect_right(matching, after, key=_key) :])]
    for folder in generated:
        first, end = _indices(folder, prefix, after)
        sources.append(map(folder.__getitem__, range(first, end)))
    return heapq.merge(*sources, key=_key)


def _indices(folder: GeneratedObjects, prefix: str, after: str) -> tuple[int, int]:
    """The range of indices whose keys begin with `prefix` and come after `after`."""
    indices = range(folder.count)
    first = max(
        bisect.bisect_left(indices, prefix, key=folder.key), bisect.bisect_right(indices, after, key=folder.key)
    )
    return first, bisect.bisect_left(indices, prefix + "\U0010ffff", key=folder.key)


def _can_hold(folder: GeneratedObjects, prefix: str) -> bool:
    return folder.prefix.startswith(prefix) or prefix.startswith(folder.prefix)


def _generated_rows(folder: GeneratedObjects, prefix: str, after: str, most: int) -> tuple[str, _Page]:
    """A page of one generated folder: a million keys are listed this way, so it builds nothing but the text."""
    first, end = _indices(folder, prefix, after)
    stop = min(end, first + most)
    head, tail = escape_text(folder.prefix), escape_text(folder.suffix)
    modified = iso_time(folder[0].modified)
    rows = [
        f"<Contents><Key>{head}{i:08d}{tail}</Key><LastModified>{modified}</LastModified>"
        f"<ETag>&quot;{i:032x}&quot;</ETag><Size>{folder.size(i)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for i in range(first, stop)
    ]
    return "".join(rows), _Page(last=folder.key(stop - 1) if stop > first else after, is_truncated=0 < stop < end)


def _row(found: S3Object, is_quoted: bool) -> str:
    return element(
        "Contents",
        text("Key", _quoted(found.key, is_quoted)),
        text("LastModified", iso_time(found.modified)),
        text("ETag", found.etag),
        text("Size", found.size),
        text("StorageClass", found.headers.get("x-amz-storage-class", "STANDARD")),
    )


def _key(found: S3Object) -> str:
    return found.key  # the order of code points is that of UTF-8 bytes


def _quoted(value: str, is_quoted: bool) -> str:
    return quote(value) if is_quoted else value


def _write_token(last: str) -> str:
    return base64.urlsafe_b64encode(last.encode()).decode()


def _read_token(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token).decode()
    except ValueError:
        raise S3Error(400, "InvalidArgument", "The continuation token provided is incorrect") from None
