"""Writes that must replace nothing: the store itself refuses them where an object is there.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ._exceptions import ObjectExistsError, S3Exception
from ._info import ObjectInfo
from ._request import Refused

T = TypeVar("T")

_CONDITION = {"If-None-Match": "*"}


def send_as_first(
    send: Callable[[dict[str, str]], T], find: Callable[[], ObjectInfo | None], is_ours: Callable[[], bool | None]
) -> T | None:
    """Send the request that makes an object visible, unless there is one.

    A store that says that it does not know the condition is asked for the object first: of two writers at the same
    moment both may then succeed. One that ignores the condition replaces the object.

    Args:
        send: Sends the request with these headers beside its own.
        find: Finds the object in place.
        is_ours: Says whether it is the one of this request; None where that cannot be found out.

    Returns:
        The answer; None where it was lost, and the object is in place.

    Raises:
        ObjectExistsError: There is an object.
        Refused: The store refused for another reason.
        S3Exception: It is not known whether the object in place is this one.
    """
    try:
        return send(_CONDITION)
    except Refused as refused:
        status = refused.failure.status
        if status not in (409, 412, 501):
            raise
        what = f"{refused.request.operation} of {refused.request.uri} failed: there is an object of this key"
        exists = ObjectExistsError(f"{what}, and overwrite=False; choose another key, or delete it first")
        if status == 501:
            if find() is not None:
                raise exists from None
            return send({})
        found = is_ours() if refused.is_open else False
        if found:
            return None
        if found is None:
            raise S3Exception(
                f"{what}; it is this one, and the answer to that was lost, or one of somebody else: that could not be "
                "found out; look at it before you write it again"
            ) from None
        if status == 412 or find() is not None:
            raise exists from None
        raise
