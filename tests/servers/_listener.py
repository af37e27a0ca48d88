"""A server of one's own, connection by connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable


class Listener:
    """Listens on a free port and serves each connection in a thread.

    Args:
        serve: Serves one connection, which is its own to close.
        address: Where to listen, of IP's version 4 or 6.
        receive_buffer_bytes: About how much the system takes for a connection that is not read from; None for its own.

    Raises:
        OSError: There is no such address here.
    """

    def __init__(
        self,
        serve: Callable[[socket.socket], None],
        address: str = "127.0.0.1",
        receive_buffer_bytes: int | None = None,
    ) -> None:
        self._serve = serve
        is_v6 = ":" in address
        self._socket = socket.create_server((address, 0), family=socket.AF_INET6 if is_v6 else socket.AF_INET)
        if receive_buffer_bytes is not None:  # Before there is a connection, which would be told of more room.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        host = f"[{address}]" if is_v6 else address
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more; what is being served goes on."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._socket.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
