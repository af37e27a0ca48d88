"""One connection: HTTP/1.1 as far as S3 clients speak it, with latency, pace and faults."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from typing import cast

from servers.counting._errors import S3Error
from servers.counting._exchange import Exchange
from servers.counting._messages import Bytes, Request, Response, parse_request
from servers.counting._operations import operation_of
from servers.counting._records import RecordedRequest
from servers.counting._site import Site
from servers.counting._xml import error_response

_MOST_HEAD_BYTES = 64 * 1024
_WRITE_BYTES = 1024 * 1024
_PACE_STEP_SECONDS = 0.004
_BUFFERED_BYTES = 256 * 1024

# Where all connections of a process read to: what has arrived is taken before the next read, so it stays in the cache.
_ARRIVED = memoryview(bytearray(256 * 1024))


class Connection(asyncio.BufferedProtocol):
    """Reads requests one after the other and answers each before it looks at the next."""

    def __init__(self, site: Site, loop: asyncio.AbstractEventLoop) -> None:
        self._site = site
        self._loop = loop
        self._input = bytearray()
        self._number = 0
        self._exchange: Exchange | None = None
        self._is_writing_paused = False
        self._timer: asyncio.TimerHandle | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_BUFFERED_BYTES)
        self._site.records.connections += 1
        self._number = self._site.records.connections

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._exchange is not None:
            if not self._exchange.is_received:
                self._exchange.body.discard()
            self._end_exchange()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _ARRIVED

    def buffer_updated(self, nbytes: int) -> None:
        data = _ARRIVED[:nbytes]
        exchange = self._exchange
        if exchange is None:
            self._input += data
            self._read_request()
        elif exchange.is_received:
            self._input += data  # the next request, sent early
        else:
            self._read_body(exchange, data)

    def eof_received(self) -> bool:
        return self._exchange is not None and self._exchange.is_received  # then keep the other direction open

    def pause_writing(self) -> None:
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        if self._exchange is not None and self._timer is None and self._exchange.response is not None:
            self._write_body(self._exchange)

    # Reading.

    def _read_request(self) -> None:
        end = self._input.find(b"\r\n\r\n")
        if end < 0:
            if len(self._input) > _MOST_HEAD_BYTES:
                self._transport.close()
            return
        head = bytes(self._input[:end])
        rest = bytes(self._input[end + 4 :])
        self._input.clear()
        try:
            request = parse_request(head)
        except S3Error as error:
            answer = error_response(error, "")
            self._transport.writelines([answer.head(is_last=True), *answer.body])
            self._transport.close()
            return
        exchange = self._exchange = self._begin_exchange(request)
        if request.headers.get("expect", "").lower() == "100-continue" and not exchange.is_received:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if exchange.is_received:
            self._input += rest
            self._answer(exchange)
        elif rest:
            self._read_body(exchange, rest)

    def _begin_exchange(self, request: Request) -> Exchange:
        site = self._site
        operation = operation_of(request)
        site.records.begin(operation)
        record = None
        if site.records.is_recording:
            record = RecordedRequest(
                request.method,
                request.path,
                request.raw_query,
                dict(request.query),
                dict(request.headers),
                operation,
                request.bucket,
                request.key,
                self._number,
            )
            site.records.requests.append(record)
        fault = site.faults.choose(operation, request)
        body = site.service.open_body(operation, request)
        return Exchange(request, operation, body, record, fault, self._loop.time(), site.releases)

    def _read_body(self, exchange: Exchange, data: Bytes) -> None:
        try:
            rest = bytes(exchange.receive(data))  # kept for a while, unlike `data`
        except S3Error as error:
            self._start(exchange, error_response(error, exchange.request.path))
            self._input.clear()
            return
        fault = exchange.fault
        if fault is not None and fault.cut_upload is not None and exchange.received >= fault.cut_upload:
            self._reset()
            return
        pace = self._site.shape.pace_bytes_per_second
        ahead = exchange.began + exchange.received / pace - self._loop.time() if pace else 0.0
        if ahead > _PACE_STEP_SECONDS / 2:
            self._transport.pause_reading()
            self._timer = self._loop.call_later(ahead, self._resume_reading, exchange, rest)
        else:
            self._end_body(exchange, rest)

    def _resume_reading(self, exchange: Exchange, rest: bytes) -> None:
        self._timer = None
        self._transport.resume_reading()
        self._end_body(exchange, rest)

    def _end_body(self, exchange: Exchange, rest: bytes) -> None:
        if exchange.is_received:
            self._input += rest
            self._answer(exchange)

    # Answering.

    def _answer(self, exchange: Exchange) -> None:
        site, request, fault = self._site, exchange.request, exchange.fault
        site.records.bytes_received += exchange.received
        if exchange.record is not None:
            exchange.record.bytes_received = exchange.received
        if fault is not None and fault.hold and exchange.releases == site.releases:
            site.held.append(lambda: self._respond(exchange))
            return
        delay = site.shape.latency_seconds + (fault.delay_seconds if fault is not None else 0.0)
        if delay and request.bucket:
            self._timer = self._loop.call_later(delay, self._respond, exchange)
        else:
            self._respond(exchange)

    def _respond(self, exchange: Exchange) -> None:
        self._timer = None
        if self._exchange is not exchange:  # the connection was lost meanwhile
            return
        service, request, fault = self._site.service, exchange.request, exchange.fault
        if fault is not None:
            fault.change_request(request)
        try:
            if fault is not None and fault.status is not None:
                raise S3Error(fault.status, fault.code, fault.message)
            exchange.check_body()
            response = service.respond(exchange.operation, request, exchange.body)
        except S3Error as error:
            exchange.body.discard()
            response = error_response(error, request.path)
        if fault is not None:
            fault.change_response(response)
            if fault.replace_with is not None:
                service.replace(request.bucket, request.key, fault.replace_with)
        self._start(exchange, response)

    def _start(self, exchange: Exchange, response: Response) -> None:
        fault = exchange.fault
        if fault is not None and fault.cut == 0:
            self._reset()
            return
        if fault is not None and fault.before is not None:
            self._transport.write(fault.before)
        if fault is not None and fault.instead is not None:
            self._transport.write(fault.instead)
            self._transport.close()
            return
        self._site.records.statuses[response.status] += 1
        if exchange.record is not None:
            exchange.record.status = response.status
        exchange.response = response
        head = response.head(is_last=exchange.is_last)
        if exchange.request.method == "HEAD" or response.status in (204, 304):
            response.body = ()
        exchange.limit_body()
        self._transport.write(head)
        self._write_body(exchange)

    def _write_body(self, exchange: Exchange) -> None:
        pace = self._site.shape.pace_bytes_per_second
        if exchange.fault is not None and exchange.fault.pace_bytes_per_second:
            pace = exchange.fault.pace_bytes_per_second
        step = int(max(pace * _PACE_STEP_SECONDS, 1)) if pace else _WRITE_BYTES
        while exchange.left and not self._is_writing_paused:
            if pace:
                # A step goes out when its last byte would have arrived at that pace.
                due = exchange.answering(self._loop.time()) + (exchange.sent + min(step, exchange.left)) / pace
                if due > self._loop.time() + 0.0005:
                    self._timer = self._loop.call_at(due, self._write_next_step, exchange, step)
                    return
            self._write(exchange, step)
        if not exchange.left:
            self._finish(exchange)

    def _write_next_step(self, exchange: Exchange, step: int) -> None:
        self._timer = None
        self._write(exchange, step)
        self._write_body(exchange)

    def _write(self, exchange: Exchange, most: int) -> None:
        for piece in exchange.take(most):
            self._transport.write(piece)
            self._site.records.bytes_sent += len(piece)
            if exchange.record is not None:
                exchange.record.bytes_sent += len(piece)

    def _finish(self, exchange: Exchange) -> None:
        fault = exchange.fault
        self._end_exchange()
        if fault is not None and fault.cut is not None:
            self._reset()
        elif exchange.is_last or (fault is not None and fault.truncate is not None):
            self._transport.close()
        elif self._input:
            self._loop.call_soon(self._read_next)

    def _reset(self) -> None:
        """End the connection with a reset rather than an end of file: a close without lingering, see `socket(7)`."""
        if sys.platform != "win32":
            descriptor = self._transport.get_extra_info("socket").fileno()
            with socket.socket(fileno=os.dup(descriptor)) as duplicate:
                duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _read_next(self) -> None:
        if self._exchange is None:
            self._read_request()

    def _end_exchange(self) -> None:
        self._exchange = None
        self._site.records.end()
