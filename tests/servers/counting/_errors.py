"""Errors in S3's words."""

from __future__ import annotations

from collections.abc import Mapping


class S3Error(Exception):
    """An error to answer with.

    See https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html for the codes.
    """

    def __init__(self, status: int, code: str, message: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message or code
        self.headers = dict(headers or {})
