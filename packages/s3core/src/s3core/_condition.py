"""Writes that may replace nothing, or one version only: the store itself refuses them where something else is there.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ._exceptions import ObjectExistsError, PreconditionFailedError, S3Exception
from ._info import ObjectInfo
from ._request import Refused

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Condition:
    """What must be in place for a write to replace it.

    Args:
        etag: ETag of the object; None for no object at all.
    """

    etag: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What tells the store."""
        return {"If-None-Match": "*"} if self.etag is None else {"If-Match": self.etag}

    def holds(self, found: ObjectInfo | None) -> bool:
        """Whether it holds where this object is in place."""
        return (None if found is None else found.etag) == self.etag

    def is_denied_by(self, refused: Refused) -> bool:
        """Whether a refusal says that it does not hold."""
        failure = refused.failure
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html: 404 where no object has the ETag.
        is_gone = failure.status == 404 and failure.code not in ("NoSuchBucket", "NoSuchUpload")
        return failure.status in (409, 412) or (is_gone and self.etag is not None)

    def error(self, operation: str) -> S3Exception:
        """The error that says that it does not hold."""
        if self.etag is None:
            return ObjectExistsError(
                f"{operation} failed: there is an object of this key, and overwrite=False; choose another key, or "
                "delete it first"
            )
        return PreconditionFailedError(
            f"{operation} failed: the object to replace, of ETag {self.etag}, is no longer in place; look at what is "
            "there now"
        )


def send_on(
    condition: Condition | None,
    send: Callable[[dict[str, str]], T],
    find: Callable[[], ObjectInfo | None],
    is_ours: Callable[[], bool | None],
) -> T | None:
    """Send the request that makes an object visible, on a condition.

    A store that says that it does not know the condition is asked for the object first: of two writers at the same
    moment both may then succeed. One that ignores the condition replaces what is there.

    Args:
        condition: What must be in place; None for anything.
        send: Sends the request with these headers beside its own.
        find: Finds the object in place.
        is_ours: Says whether it is the one of this request; None where that cannot be found out.

    Returns:
        The answer; None where it was lost, and the object is in place.

    Raises:
        ObjectExistsError: There is an object, and none may be.
        PreconditionFailedError: There is another object than the one to replace, or none.
        Refused: The store refused for another reason.
        S3Exception: It is not known whether the object in place is this one.
    """
    if condition is None:
        return send({})
    try:
        return send(condition.headers)
    except Refused as refused:
        operation = f"{refused.request.operation} of {refused.request.uri}"
        if refused.failure.status == 501:
            if not condition.holds(find()):
                raise condition.error(operation) from None
            return send({})
        if not condition.is_denied_by(refused):
            raise
        found = is_ours() if refused.is_open else False
        if found:
            return None
        if found is None:
            error = S3Exception(
                f"{operation} failed: what is in place is this object, and the answer to that was lost, or one of "
                "somebody else: that could not be found out; look at it before you write it again"
            )
        elif refused.failure.status == 409 and condition.holds(find()):
            raise
        else:
            error = condition.error(operation)
        error.in_doubt = refused.is_open
        raise error from None
