"""A server that answers as it is told to, byte by byte: what a store or a proxy may say at its worst."""

from __future__ import annotations

import random
import socket
import time
from contextlib import suppress

from servers._listener import Listener

BODY = random.Random(1000).randbytes(1000)
HEAD = b'HTTP/1.1 206 Partial Content\r\nContent-Length: 1000\r\nContent-Range: bytes 0-999/1000\r\nETag: "e"\r\n'
GOOD = HEAD + b"\r\n" + BODY


class Script:
    """A server that answers its first requests as it is told to, and then well.

    Args:
        *answers: What to send, in pieces, with a pause in between, for each of the first requests.
        keeps: Leave the connection open after such an answer.
    """

    def __init__(self, *answers: list[bytes], keeps: bool = False) -> None:
        self.answers = list(answers)
        self.connections = self.requests = self.answered = 0
        self._keeps = keeps
        self._listener = Listener(self._serve)
        self.endpoint, self.close = self._listener.url, self._listener.close

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            received = b""
            while data := connection.recv(65536):
                received += data
                if received.endswith(b"\r\n\r\n"):
                    received = b""
                    self.requests += 1
                    is_well = not self.answers
                    for piece in [GOOD] if is_well else self.answers.pop(0):
                        connection.sendall(piece)
                        time.sleep(0 if is_well else 0.02)
                    self.answered += 1
                    if not (is_well or self._keeps):
                        return


WELL = {
    "in pieces": [GOOD[:5], GOOD[5:60], GOOD[60:300], GOOD[300:]],
    "head by itself": [HEAD + b"\r\n", BODY[:1], BODY[1:]],
    "byte by byte": [GOOD[index : index + 1] for index in range(len(HEAD) + 4)] + [GOOD[len(HEAD) + 4 :]],
    "the end of the head in two": [HEAD + b"\r", b"\n" + BODY],
    "closing": [HEAD + b"Connection: close\r\n\r\n" + BODY],
    "some headers twice": [HEAD + b"Vary: a\r\nVary: b\r\nVary: c\r\n\r\n" + BODY],
    "many headers": [HEAD + b"".join(b"x-amz-meta-%d: v\r\n" % n for n in range(100)) + b"\r\n" + BODY],
}
ODD = {
    "an older HTTP": [GOOD.replace(b"HTTP/1.1", b"HTTP/1.0")],
    "an interim answer": [b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD],
    "chunks": [HEAD.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked") + b"\r\n3e8\r\n" + BODY],
    "no length": [HEAD.replace(b"Content-Length: 1000\r\n", b"") + b"\r\n" + BODY],
    "a negative length": [GOOD.replace(b"Length: 1000", b"Length: -1000")],
    "another range": [GOOD.replace(b"bytes 0-999/1000", b"bytes 1-1000/2000")],
    "a shorter range": [HEAD.replace(b"0-999/", b"0-998/").replace(b"h: 1000", b"h: 999") + b"\r\n" + BODY[:999]],
    "no range": [GOOD.replace(b"Content-Range: bytes 0-999/1000\r\n", b"").replace(b"206", b"200")],
    "more than it announced": [GOOD + b"more"],
    "much more than was asked for": [GOOD.replace(b"Length: 1000", b"Length: 9999999999") + bytes(10_000)],
    "another version": [GOOD.replace(b'"e"', b'"f"')],
    "a header twice": [HEAD + b"Content-Length: 1000\r\n\r\n" + BODY],
    "a header over two lines": [HEAD + b"x-amz-meta-a: b\r\n c\r\n\r\n" + BODY],
    "no range in an answer of a part": [GOOD.replace(b"Content-Range", b"X-Range")],
    "a range of an unknown size": [GOOD.replace(b"0-999/1000", b"0-999/*")],
    "a length of many digits": [GOOD.replace(b"Length: 1000", b"Length: " + b"1" * 5000)],
    "an error with an odd length": [b"HTTP/1.1 500 Oh\r\nContent-Length: 12, 12\r\n\r\n"],
    "an empty body": [GOOD.replace(b"Length: 1000", b"Length: 0")[: -len(BODY)]],
    "no HTTP at all": [b"220 mail.example ESMTP\r\n\r\n"],
    "a head without end": [b"HTTP/1.1 206 Partial Content\r\n" + b"x: y\r\n" * 5000],
    "nothing": [],
}
