"""One multipart upload: created, filled part by part, and then completed or aborted, never left behind.

The upload id stays in our hands, so that an abort hits this upload and no other of the same key, and is sent only when
none of its parts is on its way any more: S3 lets parts in flight survive an abort
(https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from ._bell import Bell
from ._condition import Condition, send_on
from ._exceptions import NoSuchKeyError, S3Exception
from ._head import Target, find, head_with_headers
from ._headers import checksum_headers, checksum_of, customer_key_headers
from ._library import Pieces
from ._outcome import Outcome
from ._pool import wait_for
from ._request import Refused, Request
from ._sent_part import SentPart, is_made_of
from ._stop import Stop
from ._xml import Document, completion_document

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

    from ._runtime import Runtime

logger = logging.getLogger("s3core")

_SLICE_SECONDS = 0.5
_ABORT_ROUNDS = 3


class _State(Enum):
    OPEN = "open"
    GIVEN_UP = "given up"
    DONE = "done"


class _Step:
    """One request of an upload: sent by the one who claims it, or skipped by an abort that claims it first.

    Ctrl-C can hit the caller's thread between any two instructions: a step that never reached the pool is then still
    among the upload's steps, and the abort that follows claims it, instead of waiting for it.

    Args:
        send: What to do.
        skip: What to do instead, when the upload was given up or has failed.
    """

    __slots__ = ("_claim", "send", "skip")

    def __init__(self, send: Callable[[], None], skip: Callable[[], None]) -> None:
        self.send = send
        self.skip = skip
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """Say whether the caller is the first, and so the one to end this step."""
        return self._claim.acquire(blocking=False)


class MultipartUpload:
    """A multipart upload of one object.

    Args:
        runtime: The client.
        target: Where the object goes.
        headers: What describes the object.
        checksum: Algorithm of the parts' checksums; None for none.
        condition: What must be in place when it is completed; None for anything.
    """

    def __init__(
        self,
        runtime: Runtime,
        target: Target,
        headers: dict[str, str],
        checksum: str | None,
        *,
        condition: Condition | None = None,
    ) -> None:
        self._runtime = runtime
        self._target = target
        self._headers = headers
        self._checksum = checksum
        self._condition = condition
        self._id = ""
        self._parts: dict[int, SentPart] = {}
        self._error: BaseException | None = None
        self._uncertain = False
        self._steps: set[_Step] = set()
        self._state = _State.OPEN
        # Reentrant, because the garbage collector may run `abandon` in the midst of a section.
        self._lock = threading.RLock()
        self._changed = Bell()
        self._stop = Stop()
        self._completed = False
        self._abort_claim = threading.Lock()

    @property
    def in_flight(self) -> int:
        """How many requests are on their way, or wait for a thread."""
        return len(self._steps)

    def create(self) -> None:
        """Begin the upload.

        Raises:
            S3Exception: The store refused.
        """
        headers = dict(self._headers)
        if self._checksum is not None:
            headers["x-amz-checksum-algorithm"] = self._checksum
            if self._checksum == "CRC64NVME":
                headers["x-amz-checksum-type"] = "FULL_OBJECT"
        request = self._request("POST", {"uploads": ""}, headers=headers, what="start of the upload")

        def send() -> None:
            answer = Document(self._runtime.rest.send(request).data, f"start of the upload of {self._target.uri}")
            upload_id = answer.text("UploadId")
            if not upload_id:
                raise S3Exception(f"start of the upload of {self._target.uri} failed: the store sent no upload id")
            self._id = upload_id

        # In the pool: when the caller is interrupted, the answer still comes in, and the upload is aborted then.
        self._runtime.process.watch(self)
        wait_for(self._submit(send))
        self.raise_error()

    def submit_part(self, number: int, body: Pieces, on_done: Callable[[], None]) -> None:
        """Send a part from the pool.

        Args:
            number: Its number, from 1.
            body: Its bytes in pieces, unchanged until `on_done` is called.
            on_done: Called when the body is no longer needed, whatever became of it.
        """

        def send() -> None:
            try:
                checksum = checksum_of(body, self._checksum)
                headers = {**checksum_headers(self._checksum, checksum), **customer_key_headers(self._runtime.config)}
                query = {"partNumber": str(number), "uploadId": self._id}
                request = self._request("PUT", query, headers=headers, body=body, what=f"upload of part {number}")
                etag = self._runtime.rest.send(request).headers.get("ETag")
                if not etag:
                    raise S3Exception(f"upload of part {number} of {self._target.uri} failed: the store sent no ETag")
                self._parts[number] = SentPart(etag, checksum, sum(map(len, body)))
            finally:
                on_done()

        self._submit(send, on_done)

    def submit_copy(self, number: int, size: int, headers: dict[str, str]) -> None:
        """Have the store copy a range of another object as a part.

        Args:
            number: Its number, from 1.
            size: Its length in bytes.
            headers: Name the source and its range.
        """

        def send() -> None:
            what = f"copy of part {number}"
            query = {"partNumber": str(number), "uploadId": self._id}
            headers.update(customer_key_headers(self._runtime.config))
            request = self._request("PUT", query, headers=headers, what=what, result="CopyPartResult")
            body = self._runtime.rest.send(request).data
            etag = Document(body, f"{what} of {self._target.uri}").text("ETag")
            if not etag:
                raise S3Exception(f"{what} of {self._target.uri} failed: the store sent no ETag")
            self._parts[number] = SentPart(etag, None, size)

        self._submit(send)

    def raise_error(self) -> None:
        """Raise what went wrong with a part so far.

        Raises:
            BaseException: The first part's error.
        """
        error = self._error
        if error is not None:
            raise error
        if self._state is not _State.OPEN:
            raise S3Exception(f"the upload of {self._target.uri} was aborted")

    def wait_below(self, count: int) -> None:
        """Wait until fewer than `count` requests are on their way.

        Raises:
            BaseException: A part failed meanwhile.
        """

        def is_over() -> bool:
            return self.in_flight < count or self._error is not None or self._state is not _State.OPEN

        while not is_over():
            self._changed.wait(is_over, _SLICE_SECONDS)
        self.raise_error()

    def complete(self) -> None:
        """Make the object visible, when all parts have arrived.

        Raises:
            ObjectExistsError: There is an object that must not be replaced; abort the upload then.
            PreconditionFailedError: There is another object than the one to replace; abort the upload then.
            S3Exception: A part failed or the store refused; abort the upload then.
        """
        self.wait_below(1)

        def send() -> None:
            self._send_completion()
            self._completed = True

        wait_for(self._submit(send))
        if not self._completed:
            raise S3Exception(f"the upload of {self._target.uri} was aborted")

    def abort(self, timeout: float = 30.0) -> None:
        """Give the upload up, and wait until the store has forgotten it.

        Args:
            timeout: Seconds to wait; after that the abort goes on in the background, until the process ends at most.
        """
        if self._give_up():
            # Not in this thread, which may be on its way out after Ctrl-C.
            self._runtime.pool.submit(self._send_abort)
        self.finish(timeout)

    def abandon(self) -> None:
        """Give the upload up without waiting; safe in a destructor."""
        if self._give_up():
            self._runtime.pool.run_soon(self._send_abort)

    def finish(self, timeout: float) -> None:
        """Wait until the upload is completed or aborted.

        Args:
            timeout: Seconds to wait at most.
        """

        def is_over() -> bool:
            return self._state is _State.DONE

        deadline = time.monotonic() + timeout
        while not is_over() and (left := deadline - time.monotonic()) > 0:
            self._changed.wait(is_over, min(left, _SLICE_SECONDS))

    def _give_up(self) -> bool:
        """Mark the upload as given up; say whether its abort can be sent now.

        With a request on its way it cannot: whoever sees the last one end sends it then. That may be the completion,
        and what the store makes of it decides: the object is whole, or the upload is aborted.
        """
        with self._lock:
            self._error = None  # It was raised, and refers to all that was going on then.
            if self._state is _State.DONE:
                return False
            self._state = _State.GIVEN_UP
            self._stop.set()
            # A copy: `_submit` adds without the lock.
            for step in [step for step in list(self._steps) if step.claim()]:
                self._steps.discard(step)
                step.skip()
            if not self._steps and not self._id:
                self._end()  # The store never heard of it.
            self._changed.ring()
            return not self._steps and self._state is not _State.DONE

    def _submit(self, send: Callable[[], None], skip: Callable[[], None] = lambda: None) -> Outcome[None]:
        step = _Step(send, skip)
        self._steps.add(step)
        return self._runtime.pool.submit(self._run, step)

    def _run(self, step: _Step) -> None:
        if not step.claim():
            return
        try:
            if self._state is _State.OPEN and self._error is None:
                step.send()
            else:
                step.skip()
        except BaseException as error:
            self._uncertain = True
            if self._error is None:
                self._error = error
            raise
        finally:
            self._leave(step)

    def _leave(self, step: _Step) -> None:
        """A request is over; the last one of an upload that was given up sends the abort."""
        with self._lock:
            self._steps.discard(step)
            if self._completed or (self._state is _State.GIVEN_UP and not self._steps and not self._id):
                self._end()
            must_abort = self._state is _State.GIVEN_UP and not self._steps
            self._changed.ring()
        if must_abort:
            self._send_abort()

    def _end(self) -> None:
        """Nothing of the upload is left in the store; called with the lock."""
        self._state = _State.DONE
        self._changed.ring()
        self._runtime.process.forget(self)

    def _request(
        self,
        method: str,
        query: dict[str, str],
        *,
        headers: dict[str, str] | None = None,
        body: bytes | Pieces | None = None,
        what: str = "",
        result: str = "",
    ) -> Request:
        return Request(
            method,
            self._target.bucket,
            self._target.key,
            query=query,
            headers=headers or {},
            body=body,
            what=what,
            stop=self._stop,
            result=result,
        )

    def _send_completion(self) -> None:
        numbers, parts = sorted(self._parts), [self._parts[number] for number in sorted(self._parts)]
        if numbers != list(range(1, len(parts) + 1)):
            raise S3Exception(f"the upload of {self._target.uri} lacks a part and cannot be completed; write it again")
        headers = {"Content-Type": "application/xml", **customer_key_headers(self._runtime.config)}
        rows = [(number, part.etag, part.checksum) for number, part in zip(numbers, parts, strict=True)]
        body, what = completion_document(rows, self._checksum), "completion of the upload"

        def send(conditions: dict[str, str]) -> BaseHTTPResponse:
            return self._runtime.rest.try_change(
                self._request(
                    "POST",
                    {"uploadId": self._id},
                    headers={**headers, **conditions},
                    body=body,
                    what=what,
                    result="CompleteMultipartUploadResult",
                )
            )

        try:
            find_any = partial(find, self._runtime, self._target)
            answer = send_on(self._condition, send, find_any, lambda: self._is_in_place(parts))
            if answer is None:  # The object may be somebody else's of the same bytes, and this upload still there.
                self._forget()
        except Refused as refused:
            # An answer that was lost makes the second attempt find no upload: look whether the object is ours.
            if refused.failure.code == "NoSuchUpload":
                is_ours = self._is_in_place(parts)
                if is_ours:
                    return
                if is_ours is None:
                    error = S3Exception(
                        f"{what} of {self._target.uri} failed: the multipart upload no longer exists; somebody aborted "
                        "it, or it became the object and the answer to that was lost: what the store says about the "
                        "object in place does not tell; look at it before you write it again"
                    )
                    error.in_doubt = True
                    raise error from None
            raise refused.translated_change() from None

    def _is_in_place(self, parts: list[SentPart]) -> bool | None:
        """Whether the object in place is the one of these parts; None where the store does not tell."""
        try:
            found = head_with_headers(self._runtime, self._target, asks_checksum=True)
        except NoSuchKeyError:
            return False
        except S3Exception:
            return None
        return is_made_of(parts, self._checksum, *found)

    def _send_abort(self) -> None:
        if not self._abort_claim.acquire(blocking=False):
            return
        try:
            self._forget()
        finally:
            with self._lock:
                self._end()

    def _forget(self) -> None:
        """Have the store drop the parts; what keeps it from that is logged."""
        try:
            self._abort_for_good()
        except Exception as error:
            logger.warning(
                "the multipart upload %s of %s could not be aborted (%s): its parts are kept and billed until a "
                "lifecycle rule (AbortIncompleteMultipartUpload) removes them",
                self._id,
                self._target.uri,
                error,
            )

    def _abort_for_good(self) -> None:
        target, query = self._target, {"uploadId": self._id}
        for _ in range(_ABORT_ROUNDS):
            try:
                self._runtime.rest.try_send(
                    Request("DELETE", target.bucket, target.key, query=query, what="abort of the upload")
                )
            except Refused as refused:
                if refused.failure.status != 404:
                    raise refused.translated() from None
                return
            if not self._uncertain or not self._has_parts():
                return
        raise S3Exception("parts of it arrived after it was aborted, again and again")

    def _has_parts(self) -> bool:
        """Whether a part whose answer never came has arrived after the abort."""
        query = {"uploadId": self._id, "max-parts": "1"}
        try:
            self._runtime.rest.try_send(Request("GET", self._target.bucket, self._target.key, query=query))
        except Refused:
            return False
        return True
