"""Free TCP ports for servers that can't choose their own."""

from __future__ import annotations

import random
import socket

# Below 32768, where Linux starts to hand out ports by itself, so that nobody takes one between the check and its use.
_LOWEST, _HIGHEST = 11_000, 21_900


def free_ports(count: int, *offsets: int) -> list[int]:
    """Return `count` ports of 127.0.0.1 that are free, and free as well at each of `offsets` from them.

    Another process may still take one before it is used: start again with others when the server does not come up.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(_LOWEST, _HIGHEST), k=_HIGHEST - _LOWEST):
        if all(_is_free(port + offset) for offset in (0, *offsets)):
            ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"fewer than {count} free ports between {_LOWEST} and {_HIGHEST} on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
