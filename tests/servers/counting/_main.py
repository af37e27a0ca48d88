"""One server process: `python -m servers.counting._main SETTINGS`, where SETTINGS is JSON of `Settings`."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from pathlib import Path

from servers.counting._connection import Connection
from servers.counting._control import serve_control
from servers.counting._operations import S3Service
from servers.counting._records import Records
from servers.counting._settings import Settings
from servers.counting._site import Site
from servers.counting._store import Store


async def serve(settings: Settings) -> None:
    """Serve until killed; print the ports first."""
    loop = asyncio.get_running_loop()
    store = Store(Path(settings.root), settings.is_md5, settings.kept_pieces)
    service = S3Service(store, settings.generated, settings.dropped, settings.checks_bodies)
    site = Site(service, settings.shape, Records(settings.is_recording))
    server = await loop.create_server(
        lambda: Connection(site, loop),
        "127.0.0.1",
        settings.port,
        backlog=4096,
        reuse_port=True if settings.is_shared else None,
    )
    control = await serve_control(site)
    ports = [listening.sockets[0].getsockname()[1] for listening in (server, control)]
    gc.freeze()
    print(json.dumps(ports), flush=True)
    await asyncio.gather(server.serve_forever(), control.serve_forever())


def main() -> None:
    """Serve as the command line says."""
    settings = Settings.from_json(sys.argv[1])
    try:
        import uvloop
    except ImportError:  # not on Windows; half as fast without
        asyncio.run(serve(settings))
    else:
        uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
