"""The little XML that S3 speaks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from servers.counting._errors import S3Error
from servers.counting._messages import Response

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


def element(name: str, *children: str) -> str:
    """An element of children that are XML already."""
    return f"<{name}>{''.join(children)}</{name}>"


def text(name: str, value: object) -> str:
    """An element that holds a text."""
    return f"<{name}>{escape_text(str(value))}</{name}>"


def escape_text(value: str) -> str:
    """Escape a text as S3 does: control characters become references, which XML 1.0 parsers may refuse."""
    return _CONTROL.sub(lambda match: f"&#x{ord(match[0]):X};", escape(value))


def document(name: str, children: Iterable[str], status: int = 200) -> Response:
    """A response whose body is one element."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    data = f"{body}{''.join(children)}</{name}>".encode()
    return Response(status, {"Content-Type": "application/xml"}, [data])


def error_response(error: S3Error, resource: str) -> Response:
    """The document that tells of an error."""
    body = element("Error", text("Code", error.code), text("Message", error.message), text("Resource", resource))
    data = f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'.encode()
    return Response(error.status, {"Content-Type": "application/xml", **error.headers}, [data])


def parse(data: bytes) -> ElementTree.Element:
    """Parse a request's body, with the namespaces taken off.

    Raises:
        S3Error: When it is not XML.
    """
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise S3Error(400, "MalformedXML", str(error)) from None
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
    return root


def iso_time(seconds: float) -> str:
    """A time as S3 writes it in XML."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
