"""TLS with a certificate of one's own, and proxies."""

from __future__ import annotations

import base64
import gc
import importlib.util
import logging
import os
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from s3core import (
    AccessDeniedError,
    ConfigError,
    ObjectInfo,
    S3Client,
    S3ClientConfig,
    S3ConnectionError,
    S3Exception,
    S3TimeoutError,
)
from servers import CountingServer, Listener, S3Server, is_seaweedfs_installed, start_seaweedfs
from servers._tls import write_certificate

pytestmark = pytest.mark.usefixtures("each_way")


def use_everything(client: S3Client, bucket: str) -> None:
    with client.put_object(bucket, "key") as stream:
        stream.write(b"abc")
    assert client.get_object(bucket, "key").read_all() == b"abc"
    assert len(next(client.list_objects(bucket))) == 1


@pytest.fixture(scope="module")
def tls_server() -> Iterator[S3Server]:
    if not is_seaweedfs_installed():
        pytest.skip("SeaweedFS is not installed")
    with start_seaweedfs(tls=True) as server:
        yield server


def test_a_certificate_of_ones_own_is_trusted_when_it_is_named(
    tls_server: S3Server, make_client: Callable[..., S3Client]
) -> None:
    use_everything(make_client(tls_server), tls_server.create_bucket())


def test_a_certificate_that_is_its_own_authority_is_trusted_when_it_is_named(
    make_client: Callable[..., S3Client],
) -> None:
    """`openssl req -x509` makes such a one by default; obstore refuses it, OpenSSL does not."""
    with start_seaweedfs(tls=True, vouches_for_itself=True) as server:
        use_everything(make_client(server), server.create_bucket())
        with pytest.raises(S3Exception, match=r"the store's certificate is refused.*set ca_bundle"):
            make_client(server, ca_bundle=None).get_object("bucket", "key").read_all()


def test_a_bundle_may_hold_many_certificates(
    tls_server: S3Server, make_client: Callable[..., S3Client], tmp_path: Path
) -> None:
    assert tls_server.ca_bundle is not None
    found = importlib.util.find_spec("botocore")
    assert found is not None
    assert found.submodule_search_locations is not None
    others = (Path(found.submodule_search_locations[0]) / "cacert.pem").read_text()
    for position, text in enumerate(
        (others + Path(tls_server.ca_bundle).read_text(), Path(tls_server.ca_bundle).read_text() + others)
    ):
        bundle = tmp_path / f"bundle{position}.pem"
        bundle.write_text(text)
        use_everything(make_client(tls_server, ca_bundle=str(bundle)), tls_server.create_bucket())


def test_a_certificate_of_the_environment_is_trusted(
    tls_server: S3Server, make_client: Callable[..., S3Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tls_server.ca_bundle is not None
    monkeypatch.setenv("AWS_CA_BUNDLE", tls_server.ca_bundle)
    use_everything(make_client(tls_server, ca_bundle=None), tls_server.create_bucket())


@pytest.mark.parametrize("is_gone", [False, True], ids=["damaged", "gone"])
def test_certificates_that_can_no_longer_be_read_are_named(
    tls_server: S3Server, make_client: Callable[..., S3Client], tmp_path: Path, is_gone: bool
) -> None:
    assert tls_server.ca_bundle is not None
    text, bundle = Path(tls_server.ca_bundle).read_text(), tmp_path / "bundle.pem"
    bundle.write_text(text if is_gone else f"{text[:100]}?{text[101:]}")
    client = make_client(tls_server, ca_bundle=str(bundle))
    if is_gone:
        bundle.unlink()
    for use in (
        lambda: client.get_object("bucket", "key").read_all(),
        lambda: client.get_object("bucket", "key", object_info=ObjectInfo("key", 10)).read_all(),
        lambda: client.find_object("bucket", "key"),
        lambda: next(client.list_objects("bucket")),
        lambda: client.put_object("bucket", "key").close(),
    ):
        with pytest.raises(ConfigError, match=r"certificates to trust of .*bundle\.pem"):
            use()


def test_a_file_without_certificates_is_refused_when_a_client_is_made(tmp_path: Path) -> None:
    key = write_certificate(tmp_path)[1]
    with pytest.raises(ConfigError, match=r"key\.pem.*holds no certificate in PEM form"):
        S3Client("us-east-1", s3client_config=S3ClientConfig(unsigned=True, ca_bundle=str(key)))


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(
    tls_server: S3Server, make_client: Callable[..., S3Client], caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(tls_server, ca_bundle=None)
    bucket = tls_server.create_bucket()
    caplog.set_level(logging.DEBUG, "s3core")
    with pytest.raises(S3Exception, match=f"s3://{bucket}.*certificate"):
        next(client.list_objects(bucket))
    assert len(caplog.records) == 1  # one attempt
    client = make_client(tls_server, ca_bundle=None, max_attempts=2)
    with pytest.raises(S3Exception, match=f"s3://{bucket}.*certificate"):
        client.get_object(bucket, "key").read_all()


def test_the_certificates_are_read_once_and_not_for_each_connection(
    tls_server: S3Server, make_client: Callable[..., S3Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a system are 145, and take 17 ms: 128 connections would begin with two seconds of CPU time."""
    reads: list[str] = []
    read = ssl.SSLContext.load_verify_locations

    def count(context: ssl.SSLContext, *args: object, **more: object) -> None:
        reads.append("again")
        read(context, *args, **more)  # type: ignore[arg-type]

    gc.collect()  # Else what the client of another test has read may be there.
    bucket, body = tls_server.create_bucket(), random.Random(0).randbytes(40 * 2**20)
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", count)
    client = make_client(tls_server, part_size=5 * 2**20)
    with client.put_object(bucket, "key") as stream:
        stream.write(body)
    assert client.get_object(bucket, "key").read_all() == body
    assert 0 < len(reads) <= 2  # one for writes and one for reads


@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "https"])
def test_a_proxy_makes_a_tunnel_to_a_store_with_tls(
    tls_server: S3Server, make_client: Callable[..., S3Client], tmp_path: Path, is_tls: bool
) -> None:
    certificate, key, authority = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    bundle = tmp_path / "both.pem"
    bundle.write_text(authority.read_text() + Path(tls_server.ca_bundle or "").read_text())
    asked: list[bytes] = []

    def serve(client: socket.socket) -> None:
        try:
            near = context.wrap_socket(client, server_side=True) if is_tls else client
        except OSError:
            return
        with near, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += near.recv(1)
            asked.append(head.split()[1])
            host, _, port = asked[-1].decode().rpartition(":")
            near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            with socket.create_connection((host, int(port))) as far:
                threading.Thread(target=relay, args=(far, near), daemon=True).start()
                relay(near, far)

    def relay(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    listener = Listener(serve)
    url = listener.url.replace("http:", "https:") if is_tls else listener.url
    client = make_client(tls_server, ca_bundle=str(bundle), proxy=url)
    use_everything(client, tls_server.create_bucket())
    assert set(asked) == {urlsplit(tls_server.endpoint).netloc.encode()}
    distrustful = make_client(tls_server, ca_bundle=str(authority), proxy=url)
    with pytest.raises(S3Exception, match="certificate is refused"), distrustful.put_object("bucket", "key") as stream:
        stream.write(b"abc")
    listener.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_does_not_accept_its_user_is_told(scheme: str) -> None:
    asked: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            asked.append(connection.recv(65536).split()[0])
            connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    listener = Listener(serve)
    config = S3ClientConfig(access_key_id="id", secret_access_key="secret", max_attempts=2, proxy=listener.url)
    client = S3Client("us-east-1", endpoint=f"{scheme}://store.example", s3client_config=config)
    uses: list[Callable[[], object]] = [
        lambda: client.put_object("bucket", "key").close(),
        lambda: client.delete_object("bucket", "key"),
        lambda: client.head_object("bucket", "key"),
        lambda: next(client.list_objects("bucket")),
        lambda: client.get_object("bucket", "key", object_info=ObjectInfo("key", 2**20)).read_all(),
        lambda: client.get_object("bucket", "key").read_all(),
    ]
    for use in uses:
        with pytest.raises(S3Exception, match="the proxy does not accept the user and password; check those") as caught:
            use()
        assert not caught.value.in_doubt
    assert len(asked) <= len(uses) + 1  # obstore asks twice; the others have asked once
    listener.close()


def test_an_endpoint_of_http_for_a_port_that_speaks_https_is_told(
    tls_server: S3Server, make_client: Callable[..., S3Client]
) -> None:
    client = make_client(replace(tls_server, endpoint=tls_server.endpoint.replace("https:", "http:")), ca_bundle=None)
    for read in (
        lambda: next(client.list_objects("my-bucket")),
        lambda: client.get_object("my-bucket", "key").read_all(),
        lambda: client.head_object("my-bucket", "key"),
    ):
        with pytest.raises(S3Exception, match=r"s3://my-bucket.*endpoint may say http:// where the port speaks https"):
            read()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_an_endpoint_of_http_that_sends_on_to_https_is_told(status: int) -> None:
    def serve(connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            request = b""
            while not request.endswith(b"\r\n\r\n") and (data := connection.recv(65536)):
                request += data
            location = b"Location: https://store.example/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            connection.sendall(b"HTTP/1.1 %d Moved\r\n%s" % (status, location))

    listener = Listener(serve)
    config = S3ClientConfig(access_key_id="id", secret_access_key="secret", max_attempts=1)
    client = S3Client("us-east-1", endpoint=listener.url, s3client_config=config)
    for use in (
        lambda: client.put_object("bucket", "key").close(),
        lambda: client.head_object("bucket", "key"),
        lambda: next(client.list_objects("bucket")),
        lambda: client.get_object("bucket", "key", object_info=ObjectInfo("key", 2**20)).read_all(),
    ):
        with pytest.raises(ConfigError, match=rf"another endpoint \(maybe https://.*HTTP {status}"):
            use()
    listener.close()


class Proxy:
    """A proxy for plain HTTP that notes what it is asked for, and sends everything to one server."""

    def __init__(self, server: S3Server, address: str = "127.0.0.1") -> None:
        self.asked: list[str] = []
        self._target = urlsplit(server.endpoint).netloc.split(":")
        self._listener = Listener(self._serve, address)
        self.url, self.close = self._listener.url, self._listener.close

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection((self._target[0], int(self._target[1]))) as server:
            ends = {client: server, server: client}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    try:
                        data = end.recv(65536)
                    except OSError:
                        return
                    if not data:
                        return
                    if end is client and b"HTTP/1.1\r\n" in data:
                        self.asked.append(data.decode("latin-1"))
                        head, _, rest = data.partition(b"\r\n")
                        method, url, version = head.split(b" ")
                        parts = urlsplit(url.decode())
                        path = parts.path + (f"?{parts.query}" if parts.query else "")
                        data = b" ".join([method, path.encode(), version]) + b"\r\n" + rest
                    ends[end].sendall(data)


@pytest.fixture
def proxy(counting_server: CountingServer) -> Iterator[Proxy]:
    found = Proxy(counting_server)
    yield found
    found.close()


def client_of_a_far_host(server: S3Server, **more: object) -> S3Client:
    config = S3ClientConfig(access_key_id="id", secret_access_key="secret", max_attempts=1, **more)  # type: ignore[arg-type]
    return S3Client("us-east-1", endpoint="http://s3.far.invalid", s3client_config=config)


def test_a_proxy_of_the_config_carries_every_request(counting_server: CountingServer, proxy: Proxy) -> None:
    url = proxy.url.replace("://", "://user:p%40ss@")
    use_everything(client_of_a_far_host(counting_server, proxy=url), counting_server.bucket)
    assert len(proxy.asked) == len(counting_server.requests) == 3
    expected = "basic " + base64.b64encode(b"user:p@ss").decode()
    lines = [asked.split("\r\n")[0] for asked in proxy.asked]
    assert [line for line in lines if "http://s3.far.invalid/" not in line] == []
    assert [asked for asked in proxy.asked if expected.lower() not in asked.lower()] == []


def test_a_proxy_does_not_change_an_odd_key(counting_server: CountingServer, proxy: Proxy) -> None:
    client, bucket = client_of_a_far_host(counting_server, proxy=proxy.url), counting_server.bucket
    for key in ("a/../b", "./a", "..", "a//b", "dir/", "/lead", "sp ace+%41ü漢"):
        with client.put_object(bucket, key) as stream:
            stream.write(key.encode())
        assert counting_server.keys() == [key]
        assert client.get_object(bucket, key).read_all() == key.encode()
        client.delete_object(bucket, key)


def test_a_proxy_of_the_environment_carries_every_request(
    counting_server: CountingServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY" if os.name == "nt" else "http_proxy", proxy.url)
    use_everything(client_of_a_far_host(counting_server), counting_server.bucket)
    assert len(proxy.asked) == 3


def test_a_proxy_that_is_named_later_counts_for_new_clients(
    counting_server: CountingServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = client_of_a_far_host(counting_server)
    with pytest.raises(S3Exception, match="cannot be reached"):
        before.get_object(counting_server.bucket, "key").read_all()
    monkeypatch.setenv("http_proxy", proxy.url)
    use_everything(client_of_a_far_host(counting_server), counting_server.bucket)
    assert len(proxy.asked) == 3


def test_a_host_that_is_excepted_goes_around_the_proxy(
    counting_server: CountingServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, make_client: Callable[..., S3Client]
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    use_everything(make_client(counting_server), counting_server.bucket)  # a loopback address
    assert proxy.asked == []
    monkeypatch.setenv("no_proxy", "far.invalid")
    with pytest.raises(S3Exception, match="cannot be reached"):
        client_of_a_far_host(counting_server).get_object(counting_server.bucket, "key").read_all()
    assert proxy.asked == []


def test_an_address_of_the_sixth_version_is_reached(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        forward = Proxy(counting_server, "::1")
    except OSError:
        pytest.skip("no IPv6 loopback here")
    server = replace(counting_server, endpoint=forward.url)
    use_everything(make_client(server), counting_server.bucket)
    forward.close()


def test_a_body_may_take_longer_than_any_time_limit() -> None:
    """Of 2 s each here; 8 MB/s are taken, and the system holds some megabytes of what was sent."""
    received = []

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            head, length, body = b"", 0, bytearray()
            while data := connection.recv(64 * 1024):
                body += data
                if not head and b"\r\n\r\n" in body:
                    head, _, rest = bytes(body).partition(b"\r\n\r\n")
                    body = bytearray(rest)
                    length = int(head.partition(b"Content-Length: ")[2].split()[0])
                time.sleep(len(data) / 8e6)
                if head and len(body) == length:
                    received.append(bytes(body))
                    connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')

    listener = Listener(serve)
    config = S3ClientConfig(
        access_key_id="id",
        secret_access_key="hidden",
        connect_timeout=2,
        read_timeout=2,
        max_attempts=1,
        part_size=24 * 2**20,
    )
    data = random.Random(1).randbytes(24 * 2**20)
    try:
        with S3Client("us-east-1", endpoint=listener.url, s3client_config=config).put_object("bucket", "key") as stream:
            stream.write(data)
    finally:
        listener.close()
    assert received == [data]


def test_a_connection_that_is_used_again_has_as_long_for_sending() -> None:
    connections: list[int] = []

    def serve(connection: socket.socket) -> None:
        connections.append(1)
        with connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            data, length = bytearray(), 0
            while piece := connection.recv(64 * 1024):
                data += piece
                if not length and b"\r\n\r\n" in data:
                    head, _, rest = bytes(data).partition(b"\r\n\r\n")
                    data, length = bytearray(rest), int(head.partition(b"Content-Length: ")[2].split()[0])
                time.sleep(len(piece) / 2e6)
                if length and len(data) == length:
                    connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')
                    data, length = bytearray(), 0

    listener = Listener(serve)
    config = S3ClientConfig(
        access_key_id="id", secret_access_key="hidden", connect_timeout=0.3, read_timeout=30, max_attempts=1
    )
    client = S3Client("us-east-1", endpoint=listener.url, s3client_config=config)
    try:
        for _ in range(2):  # The first takes its time by being new.
            with client.put_object("bucket", "key") as stream:
                stream.write(bytes(6 * 2**20))
    finally:
        listener.close()
    assert connections == [1]


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize("status", [200, 403])
def test_an_answer_before_the_body_is_sent_is_believed_if_it_refuses(tmp_path: Path, status: int, is_tls: bool) -> None:
    certificate, key, bundle = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    body = b"" if status == 200 else b"<Error><Code>AccessDenied</Code></Error>"
    answer = b'HTTP/1.1 %d X\r\nETag: "e"\r\nContent-Length: %d\r\n\r\n' % (status, len(body)) + body

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            plain = connection
            if is_tls:
                connection = context.wrap_socket(connection, server_side=True)
            connection.recv(64 * 1024)
            connection.sendall(answer)
            time.sleep(0.05)
            connection.shutdown(socket.SHUT_WR)
            plain.close()
            connection.close()

    listener = Listener(serve)
    config = S3ClientConfig(
        access_key_id="id",
        secret_access_key="hidden",
        max_attempts=2,
        part_size=32 * 2**20,
        ca_bundle=str(bundle) if is_tls else None,
    )
    endpoint = listener.url.replace("http:", "https:") if is_tls else listener.url
    client = S3Client("us-east-1", endpoint=endpoint, s3client_config=config)
    refusal = S3ConnectionError if status == 200 else AccessDeniedError
    try:
        with pytest.raises(refusal, match="s3://bucket/key"), client.put_object("bucket", "key") as stream:
            stream.write(bytes(24 * 2**20))
    finally:
        listener.close()


class ForgetfulNetwork:
    """A store behind a firewall, which lets no more through of connections that it has forgotten, and says nothing."""

    def __init__(self) -> None:
        self.has_forgotten = threading.Event()
        self._listener = Listener(self._serve)
        self.endpoint, self.close = self._listener.url, self._listener.close

    def _serve(self, connection: socket.socket) -> None:
        is_old = not self.has_forgotten.is_set()
        with connection, suppress(ConnectionError):
            while connection.recv(64 * 1024):
                if not (is_old and self.has_forgotten.is_set()):
                    connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')


def test_a_connection_that_was_idle_for_long_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """As between two checkpoints: the first attempt of each part would wait for an answer until it is given up."""
    network = ForgetfulNetwork()
    config = S3ClientConfig(access_key_id="id", secret_access_key="hidden", read_timeout=1.0, max_attempts=1)
    client = S3Client("us-east-1", endpoint=network.endpoint, s3client_config=config)
    client.put_object("bucket", "key").close()
    network.has_forgotten.set()
    monkeypatch.setattr("s3core._library.LONGEST_IDLE_SECONDS", 0.0)
    client.put_object("bucket", "key").close()
    network.close()


def test_a_store_that_takes_nothing_is_given_up_in_time() -> None:
    taken = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            taken.wait(60)

    listener = Listener(serve)
    config = S3ClientConfig(
        access_key_id="id", secret_access_key="hidden", connect_timeout=30, read_timeout=0.5, max_attempts=1
    )
    client = S3Client("us-east-1", endpoint=listener.url, s3client_config=config)
    try:
        with pytest.raises(S3TimeoutError, match="bucket/key"), client.put_object("bucket", "key") as stream:
            stream.write(bytes(8 * 2**20))
    finally:
        taken.set()
        listener.close()
