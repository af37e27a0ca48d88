"""The process behind `start_ceph`: sets a cluster up, step by step, prints `started`, and waits for its end.

See https://docs.ceph.com/en/pacific/install/manual-deployment/ for the steps.
"""

import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

_CONFIGURATION = """
[global]
fsid = {fsid}
mon initial members = a
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
run dir = {directory}
log file = {directory}/$name.log
admin socket =
crash dir = {directory}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000

[mon.a]
mon data = {directory}/mon

[osd.0]
osd data = {directory}/osd
osd objectstore = memstore
memstore device bytes = 8589934592
osd class load list = *
osd class default list = *

[client.rgw]
# Without crc the gateway waits for ever for a monitor that has no keys.
ms mon client mode = crc
# Without tcp_nodelay every GET takes 45 ms.
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw enable usage log = false
rgw run sync thread = false
"""

_POOLS = (
    ".rgw.root",
    "default.rgw.log",
    "default.rgw.control",
    "default.rgw.meta",
    "default.rgw.buckets.index",
    "default.rgw.buckets.data",
    "default.rgw.buckets.non-ec",
)


def main(directory: Path, port: int, v2: int, v1: int, access_key: str, secret_key: str) -> int:
    """Start the cluster and wait until one of its daemons ends."""
    fsid, configuration = str(uuid.uuid4()), directory / "ceph.conf"
    configuration.write_text(_CONFIGURATION.format(fsid=fsid, directory=directory, port=port, v2=v2, v1=v1))

    def run(program: str, *arguments: str, lines: Sequence[str] = ()) -> None:
        command = [program, "-c", str(configuration), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, input="\n".join(lines), text=True)

    def start(program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([program, "-c", str(configuration), "-f", *arguments], stdout=subprocess.DEVNULL)

    monitors = str(directory / "monmap")
    addresses = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
    run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, monitors)
    for folder in ("mon", "osd"):
        (directory / folder).mkdir()
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitors)
    daemons = [start("ceph-mon", "-i", "a")]
    osd_id = str(uuid.uuid4())
    run("ceph", "osd", "new", osd_id, "0")
    run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_id)
    daemons.append(start("ceph-osd", "-i", "0"))
    # Commands on standard input: starting the program takes longer than what it does.
    placement = "osd crush add osd.0 1.0 root=default host=local"
    run("ceph", lines=[placement, *(f"osd pool create {pool} 8" for pool in _POOLS)])
    keys = ["--access-key", access_key, "--secret-key", secret_key]
    run("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=tester", "--display-name=tester", *keys)
    daemons.append(start("radosgw", "-n", "client.rgw"))
    print("started", flush=True)
    return daemons[-1].wait()


if __name__ == "__main__":
    path, rgw, monitor_v2, monitor_v1, *user = sys.argv[1:]
    sys.exit(main(Path(path), int(rgw), int(monitor_v2), int(monitor_v1), *user))
