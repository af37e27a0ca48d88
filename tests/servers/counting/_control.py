"""The way into a running server process: a line of JSON in, a line of JSON out, on a port of its own."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from servers.counting._faults import Fault
from servers.counting._site import Site

_MOST_LINE_BYTES = 2**30


async def serve_control(site: Site) -> asyncio.Server:
    """Listen for commands to this process."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            command = json.loads(line)
            answer = _COMMANDS[command.pop("command")](site, **command)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    return await asyncio.start_server(converse, "127.0.0.1", 0, limit=_MOST_LINE_BYTES)


def send_command(port: int, command: str, **arguments: Any) -> Any:
    """Send a command to a server process and return its answer.

    Each call has a connection of its own: a forked child can't get hold of its parent's.
    """
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rwb") as file:
        file.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
        file.flush()
        return json.loads(file.readline())


def _requests(site: Site) -> list[dict[str, Any]]:
    return [asdict(request) for request in site.records.requests]


def _counters(site: Site) -> dict[str, Any]:
    return site.records.counters()


def _clear(site: Site) -> None:
    site.records.clear()


def _fault(site: Site, fault: dict[str, Any]) -> None:
    site.faults.add(Fault.from_json(fault))


def _faults_clear(site: Site) -> None:
    site.faults.clear()


def _release(site: Site) -> int:
    held, site.held = site.held, []
    site.releases += 1
    for answer in held:
        answer()
    return len(held)


def _shape(site: Site, latency_seconds: float, pace_bytes_per_second: float | None) -> None:
    site.shape.latency_seconds = latency_seconds
    site.shape.pace_bytes_per_second = pace_bytes_per_second


def _reset(site: Site) -> None:
    site.faults.clear()
    _release(site)
    site.service.clear()
    site.records.clear()


_COMMANDS: dict[str, Callable[..., Any]] = {
    "requests": _requests,
    "counters": _counters,
    "clear": _clear,
    "fault": _fault,
    "faults_clear": _faults_clear,
    "release": _release,
    "shape": _shape,
    "reset": _reset,
}
