"""Faults to inject: which requests they meet, and what they do to them."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from servers.counting._messages import Request, Response

_BYTES = ("before", "instead", "replace_with")


@dataclass(slots=True)
class Fault:
    """One rule. Every condition that is given must hold; every effect that is given happens.

    Conditions:
        method: The HTTP method.
        operation: S3's name of the operation, such as `UploadPart`.
        bucket: The bucket.
        key: The exact key.
        query: Parameters that the query must have, with these values.
        range: The exact `Range` header.
        access_key: The access key id that the request is signed with.
        skip: How many requests that meet the other conditions are let through first.
        times: How many are hit after that; None for all.

    Effects:
        status, code, message: Answer with this error, after the body of the request was read.
        headers: Headers of the answer to set, or, where the value is None, to leave out.
        delay_seconds: Wait before the first byte of the answer.
        pace_bytes_per_second: Send the body no faster.
        hold: Do not answer before `release`.
        truncate: Announce the whole body, send only so many bytes, and close the connection.
        cut: As `truncate`, but end the connection with a reset; 0 is before any byte of the answer.
        cut_upload: Reset the connection when so many bytes of the request's body have arrived.
        corrupt: Flip the bits of the body's byte at this position.
        short_range: Answer a range with its first half, and say so.
        ignore_range: Answer a range with the whole object.
        ignore_conditions: Do what `If-Match` or `If-None-Match` forbid.
        replace_with: Replace the object by these bytes as soon as this request is answered (from the old one).
        before: Send these bytes before the answer.
        instead: Send these bytes and no answer, and close the connection.
    """

    method: str | None = None
    operation: str | None = None
    bucket: str | None = None
    key: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    range: str | None = None
    access_key: str | None = None
    skip: int = 0
    times: int | None = None

    status: int | None = None
    code: str = "InternalError"
    message: str = ""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    delay_seconds: float = 0.0
    pace_bytes_per_second: float | None = None
    hold: bool = False
    truncate: int | None = None
    cut: int | None = None
    cut_upload: int | None = None
    corrupt: int | None = None
    short_range: bool = False
    ignore_range: bool = False
    ignore_conditions: bool = False
    replace_with: bytes | None = None
    before: bytes | None = None
    instead: bytes | None = None

    def to_json(self) -> dict[str, Any]:
        """Its fields, for `from_json`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in _BYTES:
            if values[name] is not None:
                values[name] = base64.b64encode(values[name]).decode()
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Fault:
        """The fault that `to_json` wrote."""
        return cls(**values | {name: base64.b64decode(values[name]) for name in _BYTES if values[name] is not None})

    def change_request(self, request: Request) -> None:
        """Make the request one whose answer is wrong."""
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        if self.short_range and span is not None:
            start, last = map(int, span.groups())
            request.headers["range"] = f"bytes={start}-{start + (last - start) // 2}"
        if self.ignore_range:
            request.headers.pop("range", None)
        if self.ignore_conditions:
            request.headers.pop("if-match", None)
            request.headers.pop("if-none-match", None)

    def change_response(self, response: Response) -> None:
        """Make the answer wrong."""
        for name, value in self.headers.items():
            for there in [h for h in response.headers if h.lower() == name.lower()]:
                del response.headers[there]
            if value is not None:
                response.headers[name] = value
        if self.corrupt is not None:
            body = bytearray(b"".join(response.body))
            if self.corrupt < len(body):
                body[self.corrupt] ^= 0xFF
            response.body = [bytes(body)]

    def _meets(self, operation: str, request: Request) -> bool:
        return (
            self.method in (None, request.method)
            and self.operation in (None, operation)
            and self.bucket in (None, request.bucket)
            and self.key in (None, request.key)
            and self.range in (None, request.headers.get("range"))
            and all(request.query.get(name) == value for name, value in self.query.items())
            and (
                self.access_key is None
                or f"Credential={self.access_key}/" in request.headers.get("authorization", "")
                or request.query.get("X-Amz-Credential", "").startswith(f"{self.access_key}/")
            )
        )


class FaultRules:
    """The rules in force; the first that a request meets applies."""

    def __init__(self) -> None:
        self._rules: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Put a rule after the others."""
        self._rules.append(fault)

    def clear(self) -> None:
        """Drop all rules."""
        self._rules.clear()

    def choose(self, operation: str, request: Request) -> Fault | None:
        """The rule for this request, counted as used."""
        for fault in self._rules:
            if fault.times == 0 or not fault._meets(operation, request):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            if fault.times is not None:
                fault.times -= 1
            return fault
        return None
