"""S3's XML documents, in and out."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from urllib.parse import unquote_plus

from ._exceptions import S3Exception
from ._info import ListObjectResult

_TOKEN = re.compile(rb"<NextContinuationToken>([^<]*)</NextContinuationToken>")
_TRUNCATED = re.compile(rb"<(?:\w+:)?IsTruncated>\s*true\s*<", re.IGNORECASE)  # the whole tag: a key may hold its name
_COLUMNS = ("Size", "ETag", "LastModified", "StorageClass")
_CELLS = {tag: re.compile(f"<{tag}>([^<]*)</{tag}>") for tag in ("Key", *_COLUMNS)}
_TAG = re.compile(r"<(\w+)>")
_ROW = re.compile(r"<Contents>((?:<\w+>[^<]*</\w+>)+)</Contents>")
_FOLDERS = re.compile("<CommonPrefixes>\\s*<Prefix>([^<]*)</Prefix>\\s*</CommonPrefixes>")
_MOST_DIGITS = 19
_PAGE = re.compile(r"\s*(<\?xml[^>]*\?>)?\s*<ListBucketResult[\s>].*</ListBucketResult>\s*", re.DOTALL)
# Not `html.unescape`, which knows more names than XML has; the ampersand last, so that nothing is taken twice.
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&apos;": "'", "&amp;": "&"}


class Document:
    """A parsed answer whose tags are found whatever the namespace."""

    def __init__(self, body: bytes, what: str) -> None:
        try:
            self.root = ElementTree.fromstring(body)
        except (ElementTree.ParseError, ValueError, LookupError) as error:  # The others are for odd encodings.
            raise S3Exception(f"{what} failed: the store's answer is not XML ({error}); check the endpoint") from error
        self.space = self.root.tag.partition("}")[0] + "}" if self.root.tag.startswith("{") else ""

    @cached_property
    def name(self) -> str:
        """The root's tag."""
        return self.root.tag.removeprefix(self.space)

    def text(self, tag: str) -> str | None:
        """The text of a child of the root."""
        return self.root.findtext(self.space + tag)

    def children(self, tag: str) -> Iterable[dict[str, str]]:
        """The elements of a tag, each as a mapping of its children's texts."""
        for element in self.root.iter(self.space + tag):
            yield {child.tag.removeprefix(self.space): child.text or "" for child in element}


def parse_listing(body: bytes, what: str) -> ListObjectResult:
    """Read the answer to ListObjectsV2 with `encoding-type=url`.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html

    Args:
        body: The document.
        what: The operation, for messages.

    Raises:
        S3Exception: It is not such a document.
    """
    if _TRUNCATED.search(body) and not peek_token(body, what):
        raise S3Exception(
            f"{what} failed: the store says that there are more keys, but not where they go on; it does not speak "
            "ListObjectsV2"
        )
    keys, columns, prefixes, encoding = _scan_listing(body) or _parse_listing(body, what)
    sizes, etags, modified, classes = columns
    are_sizes = not sizes or (all(sizes) and "".join(sizes).isdecimal() and len(max(sizes, key=len)) <= _MOST_DIGITS)
    if not (are_sizes and all(keys) and all(prefixes)):
        raise _flaw(what, keys, sizes)
    if encoding == "url":
        keys = [unquote_plus(key) if "%" in key or "+" in key else key for key in keys]
        prefixes = [unquote_plus(prefix) for prefix in prefixes]
    return ListObjectResult(keys, [int(size) for size in sizes], etags, modified, classes, prefixes)


_Listing = tuple[list[str], Sequence[list[str]], list[str], str | None]


def _scan_listing(body: bytes) -> _Listing | None:
    """Read a page as S3 writes it: ten times as fast as a parser, which makes an object of every element.

    Returns:
        Keys, columns, common prefixes and their encoding; None where anything is not as expected.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    # Where text may stand for anything else than itself, or tags have prefixes or attributes, it takes a parser. One
    # character is looked for first, which is a hundred times as fast as two.
    is_odd = "\r" in text or ("!" in text and "<!" in text) or ("#" in text and "&#" in text)
    if is_odd or _PAGE.fullmatch(text) is None:
        return None
    count = text.count("<Contents")
    keys, *columns = _scan_rows(text, count) or [_CELLS[tag].findall(text) for tag in _CELLS]
    if text.count("Contents>") != 2 * count or any(len(column) != count for column in (keys, *columns)):
        return None
    prefixes: list[str] = []
    if "CommonPrefixes" in text:
        prefixes = _FOLDERS.findall(text)
        if (text.count("<CommonPrefixes"), text.count("CommonPrefixes>")) != (len(prefixes), 2 * len(prefixes)):
            return None
    keys, prefixes, *columns = map(_unescape, (keys, prefixes, *columns))
    return keys, columns, prefixes, "url" if "<EncodingType>url</EncodingType>" in text else None


def _scan_rows(text: str, count: int) -> list[list[str]] | None:
    """The columns of a page of so many rows that have the cells in the same order; None where they are others."""
    first = _ROW.search(text)
    pattern = first and _row_pattern(tuple(_TAG.findall(first[1])))
    if not pattern:
        return None
    rows = pattern[0].findall(text)
    if len(rows) != count:
        return None
    by_place = list(zip(*rows, strict=True))
    return [list(by_place[place]) for place in pattern[1]]


@lru_cache(maxsize=16)
def _row_pattern(tags: tuple[str, ...]) -> tuple[re.Pattern[str], list[int]] | None:
    """What finds a row whose cells come in this order, others in between or not, and where the columns are in it."""
    wanted = [tag for tag in tags if tag in _CELLS]
    if sorted(wanted) != sorted(_CELLS):
        return None
    other = rf"(?:<(?!(?:{'|'.join(wanted)})>)\w+>[^<]*</\w+>)*?"
    cells = other.join(_CELLS[tag].pattern for tag in wanted)
    return re.compile(f"<Contents>{other}{cells}{other}</Contents>"), [wanted.index(tag) for tag in _CELLS]


def _unescape(cells: list[str]) -> list[str]:
    if "&" not in "".join(cells):
        return cells
    cells = [cell.replace("&quot;", '"') for cell in cells]  # All that there is, around each ETag, as a rule.
    return [_plain(cell) if "&" in cell else cell for cell in cells]


def _plain(cell: str) -> str:
    for entity, sign in _ENTITIES.items():
        cell = cell.replace(entity, sign)
    return cell


def _parse_listing(body: bytes, what: str) -> _Listing:
    document = Document(body, what)
    if document.name != "ListBucketResult":
        raise S3Exception(f"{what} failed: the store answered a <{document.name}>; check the endpoint")
    rows = list(document.children("Contents"))
    keys, *columns = ([row.get(tag, "") for row in rows] for tag in ("Key", *_COLUMNS))
    prefixes = [row.get("Prefix", "") for row in document.children("CommonPrefixes")]
    return keys, columns, prefixes, document.text("EncodingType")


def _flaw(what: str, keys: list[str], sizes: list[str]) -> S3Exception:
    """The error for a page on which an object has no key or no size, or a common prefix is empty."""
    for key, size in zip(keys, sizes, strict=True):
        if not (key and size.isdecimal() and len(size) <= _MOST_DIGITS):
            said = f"an object with the key {key[:100]!r} and the size {size[:100]!r}"
            break
    else:
        said = "an empty common prefix"
    return S3Exception(f"{what} failed: the store sent {said}; it does not speak ListObjectsV2")


def peek_token(body: bytes, what: str) -> str | None:
    """Find a listing's continuation token without parsing the page.

    Keys cannot be taken for it: in a key, `<` is written `&lt;`.

    Args:
        body: The document.
        what: The operation, for messages.

    Returns:
        The token; None on the last page.

    Raises:
        S3Exception: It is no text.
    """
    if _TRUNCATED.search(body) is None:
        return None
    token = _TOKEN.search(body)
    return Document(b"<Token>" + token.group(1) + b"</Token>", what).root.text if token is not None else None


def completion_document(parts: Iterable[tuple[int, str, str | None]], checksum: str | None) -> bytes:
    """The body of CompleteMultipartUpload.

    Args:
        parts: Number, ETag and checksum of each part, in order.
        checksum: The checksum's algorithm; None for none.
    """
    rows = []
    for number, etag, value in parts:
        extra = f"<Checksum{checksum}>{value}</Checksum{checksum}>" if checksum and value else ""
        rows.append(f"<Part><PartNumber>{number}</PartNumber><ETag>{etag.translate(_ESCAPES)}</ETag>{extra}</Part>")
    space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
    return f"<CompleteMultipartUpload {space}>{''.join(rows)}</CompleteMultipartUpload>".encode()


def deletion_document(keys: Iterable[str]) -> bytes:
    """The body of DeleteObjects.

    Raises:
        ValueError: A key holds a control character that XML 1.0 cannot carry.
    """
    rows = "".join(f"<Object><Key>{key.translate(_ESCAPES)}</Key></Object>" for key in keys)
    return f'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet>{rows}</Delete>'.encode()


def fits_xml(key: str) -> bool:
    """Say whether XML 1.0 can carry a key (https://www.w3.org/TR/xml/#charsets)."""
    return all(c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff") for c in key)


# A parser turns a bare carriage return into a line feed.
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;", "\n": "&#10;", "\t": "&#9;"})
