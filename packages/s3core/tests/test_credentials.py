"""Where credentials come from, and when they are asked for again."""

from __future__ import annotations

import gc
import logging
import re
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from s3core import CredentialsError, S3Client, S3ClientConfig
from s3core._credentials import Credentials, CredentialSource
from s3core._settings import Settings, resolve_settings
from servers import CountingServer, Listener, wait_until

pytestmark = pytest.mark.usefixtures("each_way")

PAST, LATER = (datetime.now(UTC) + timedelta(minutes=minutes) for minutes in (-1, 60))


def settings(**config: Any) -> Settings:
    return resolve_settings("us-east-1", "http://127.0.0.1:9", S3ClientConfig(**config), "test")


def keys(name: str, **more: Any) -> dict[str, Any]:
    return {"access_key_id": name, "secret_access_key": "secret", **more}


def signers(server: CountingServer) -> list[str]:
    """The access key of each request."""
    found = [re.search("Credential=([^/]+)", request.headers["authorization"]) for request in server.requests]
    return [match.group(1) for match in found if match is not None]


class Source:
    """A callable that gives other keys each time."""

    def __init__(self, *answers: Any) -> None:
        self.answers: Iterator[Any] = iter(answers)
        self.count = 0

    def __call__(self) -> dict[str, Any]:
        self.count += 1
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


def test_explicit_keys_are_used_as_they_are() -> None:
    source = CredentialSource(settings(access_key_id="id", secret_access_key="secret", session_token="token"))
    assert source.get() == Credentials("id", "secret", "token")
    assert not source.renew(source.get() or Credentials("", ""))


def test_unsigned_means_no_credentials() -> None:
    assert CredentialSource(settings(unsigned=True)).get() is None


def test_a_callable_is_asked_once_until_its_credentials_are_due() -> None:
    ask = Source(keys("a", expires_at=LATER), keys("b", expires_at=LATER))
    source = CredentialSource(settings(credentials=ask))
    assert [source.get().access_key_id for _ in range(5)] == ["a"] * 5  # type: ignore[union-attr]
    assert ask.count == 1
    due = source.get().refresh_at  # type: ignore[union-attr]
    assert due is not None
    assert timedelta(minutes=4) < LATER - due < timedelta(minutes=6)


def test_credentials_that_never_expire_are_asked_for_once() -> None:
    source = CredentialSource(settings(credentials=Source(keys("a"))))
    assert source.get() is source.get()


def test_many_threads_ask_the_callable_once() -> None:
    ask = Source(keys("a", expires_at=LATER))
    source = CredentialSource(settings(credentials=ask))
    threads = [threading.Thread(target=source.get) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ask.count == 1


def test_credentials_that_are_about_to_expire_are_used_for_half_a_minute_at_least() -> None:
    source = CredentialSource(settings(credentials=Source(keys("a", expires_at=PAST))))
    assert source.get() is source.get()


def test_due_credentials_are_replaced() -> None:
    old = Credentials("old", "secret", refresh_at=PAST)
    source = CredentialSource(settings(credentials=Source(keys("new", expires_at=LATER))), inherited=old)
    assert source.get().access_key_id == "new"  # type: ignore[union-attr]


def test_inherited_credentials_are_used_until_they_are_due() -> None:
    ask = Source()
    source = CredentialSource(settings(credentials=ask), inherited=Credentials("old", "secret", refresh_at=LATER))
    assert source.get().access_key_id == "old"  # type: ignore[union-attr]
    assert ask.count == 0


def test_a_source_that_fails_for_a_moment_does_not_end_a_job_whose_credentials_are_still_good(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "s3core")
    soon = datetime.now(UTC) + timedelta(minutes=4)
    old = Credentials("old", "hidden-secret", refresh_at=PAST, expires_at=soon)
    ask = Source(ConnectionError("no network"), keys("new"))
    source = CredentialSource(settings(credentials=ask), inherited=old)
    assert source.get().access_key_id == "old"  # type: ignore[union-attr]
    assert source.get().access_key_id == "old"  # type: ignore[union-attr]
    assert ask.count == 1  # and again in half a minute
    assert "no network" in caplog.text
    assert "hidden" not in caplog.text


def test_a_source_that_fails_raises_when_the_credentials_have_expired() -> None:
    old = Credentials("old", "secret", refresh_at=PAST, expires_at=PAST)
    source = CredentialSource(settings(credentials=Source(ConnectionError("no network"))), inherited=old)
    with pytest.raises(CredentialsError, match="no network"):
        source.get()


def test_refused_credentials_are_fetched_anew_once_for_all_threads() -> None:
    ask = Source(keys("a"), keys("b"))
    source = CredentialSource(settings(credentials=ask))
    refused = source.get()
    assert refused is not None
    assert source.renew(refused)
    assert source.renew(refused)  # another thread, with the same refused ones
    assert source.get().access_key_id == "b"  # type: ignore[union-attr]
    assert ask.count == 2


def test_a_source_that_gives_the_refused_ones_again_does_not_make_requests_repeat() -> None:
    source = CredentialSource(settings(credentials=Source(keys("a"), keys("a"))))
    refused = source.get()
    assert refused is not None
    assert not source.renew(refused)


def test_secrets_never_show_in_a_repr() -> None:
    assert "hidden" not in repr(Credentials("id", "hidden-secret", "hidden-token"))


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., None]:
    def write(config: str = "", credentials: str = "") -> None:
        for name, text in (("CONFIG_FILE", config), ("SHARED_CREDENTIALS_FILE", credentials)):
            (tmp_path / name).write_text(text)
            monkeypatch.setenv(f"AWS_{name}", str(tmp_path / name))

    return write


def test_the_chain_takes_the_environment_before_a_profile(
    monkeypatch: pytest.MonkeyPatch, home: Callable[..., None]
) -> None:
    home(credentials="[default]\naws_access_key_id = of-file\naws_secret_access_key = s\n")
    assert CredentialSource(settings()).get() == Credentials("of-file", "s")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t")
    assert CredentialSource(settings()).get() == Credentials("of-env", "s", "t")


def test_the_environment_comes_before_the_profile_that_it_names(
    monkeypatch: pytest.MonkeyPatch, home: Callable[..., None]
) -> None:
    home(credentials="[mine]\naws_access_key_id = of-mine\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    resolved = resolve_settings("eu-west-1", "http://127.0.0.1:9", S3ClientConfig(), "test")
    assert CredentialSource(resolved).get() == Credentials("of-env", "s")


def test_the_environment_comes_before_the_profile_that_it_names_when_its_keys_expire_too(
    monkeypatch: pytest.MonkeyPatch, home: Callable[..., None]
) -> None:
    """What `aws configure export-credentials --format env` prints."""
    home(credentials="[mine]\naws_access_key_id = of-mine\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", LATER.isoformat())
    found = CredentialSource(settings()).get()
    assert found is not None
    assert (found.access_key_id, found.expires_at) == ("of-env", LATER)


def test_a_named_profile_is_taken_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, home: Callable[..., None]
) -> None:
    home(credentials="[mine]\naws_access_key_id = of-mine\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    assert CredentialSource(settings(profile="mine")).get() == Credentials("of-mine", "s")


def test_a_named_profile_without_keys_is_blamed_and_not_the_environment(
    home: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    home(config="[profile mine]\nregion = eu-west-1\n")
    with pytest.raises(CredentialsError, match="'mine' of S3ClientConfig has no AWS credentials"):
        CredentialSource(settings(profile="mine")).get()


def test_a_new_client_uses_the_keys_that_the_environment_has_by_then(
    counting_server: CountingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(name: str) -> S3Client:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", name)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        client = S3Client("us-east-1", endpoint=counting_server.endpoint)
        next(client.list_objects(counting_server.bucket))
        return client

    clients = [ask("first"), ask("second")]
    next(clients[0].list_objects(counting_server.bucket))
    assert signers(counting_server) == ["first", "second", "first"]


def test_a_new_client_uses_the_keys_that_a_file_has_by_then(
    counting_server: CountingServer, home: Callable[..., None]
) -> None:
    for name in ("first", "second"):
        home(credentials=f"[default]\naws_access_key_id = {name}\naws_secret_access_key = s\n")
        next(S3Client("us-east-1", endpoint=counting_server.endpoint).list_objects(counting_server.bucket))
    assert signers(counting_server) == ["first", "second"]


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"])
def test_keys_that_were_replaced_in_a_file_are_read_again_when_the_store_refuses_the_old_ones(
    counting_server: CountingServer, home: Callable[..., None], code: str
) -> None:
    counting_server.put("key", b"abc")
    file = "[default]\naws_access_key_id = {}\naws_secret_access_key = s\n"
    home(credentials=file.format("first"))
    client = S3Client("us-east-1", endpoint=counting_server.endpoint)
    next(client.list_objects(counting_server.bucket))
    for use, name in (
        (lambda: client.get_object(counting_server.bucket, "key").read_all(), "second"),
        (lambda: next(client.list_objects(counting_server.bucket)), "third"),
    ):
        home(credentials=file.format(name))
        counting_server.fault(times=1, status=403, code=code)
        use()
    assert signers(counting_server) == ["first", "first", "second", "second", "third"]


def test_every_way_of_reading_signs_with_the_keys_that_were_renewed_in_another(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    """Keys whose end nobody tells are renewed when the store refuses them, for all buckets."""
    current = "old"
    client = make_client(counting_server, credentials=lambda: keys(current))
    buckets = [counting_server.bucket, counting_server.create_bucket()]
    for bucket in buckets:
        counting_server.put("key", b"abc", bucket=bucket)
        assert client.get_object(bucket, "key").read_all() == b"abc"
    for renew in (
        lambda: client.head_object(buckets[0], "key"),
        lambda: client.get_object(buckets[0], "key").read_all(),
    ):
        counting_server.fault(access_key=current, status=400, code="ExpiredToken")
        current = "newer" if current == "old" else "newest"
        renew()
        for bucket in buckets:
            assert client.get_object(bucket, "key").read_all() == b"abc"


def test_what_a_token_service_refuses_is_an_error_of_ours(
    home: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a node of Kubernetes whose role is throttled."""

    def refuse(connection: socket.socket) -> None:
        with connection:
            connection.recv(64 * 1024)
            body = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>not you</Message></Error></ErrorResponse>"
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    home()
    listener = Listener(refuse)
    (tmp_path / "token").write_text("token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/training")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", listener.url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(CredentialsError, match=r"AccessDenied.*not you"):
        CredentialSource(settings()).get()
    listener.close()


def test_a_process_of_a_profile_gives_keys_that_expire(home: Callable[..., None]) -> None:
    document = (
        '{"Version": 1, "AccessKeyId": "of-process", "SecretAccessKey": "s", "SessionToken": "t", '
        f'"Expiration": "{LATER.isoformat()}"}}'
    )
    home(config=f"[profile mine]\ncredential_process = echo '{document}'\n")
    found = CredentialSource(settings(profile="mine")).get()
    assert found is not None
    assert (found.access_key_id, found.session_token) == ("of-process", "t")
    assert found.refresh_at is not None
    assert timedelta(minutes=4) < LATER - found.refresh_at < timedelta(minutes=6)


def test_a_process_that_fails_is_an_error_of_ours(home: Callable[..., None]) -> None:
    home(config="[profile mine]\ncredential_process = false\n")
    with pytest.raises(CredentialsError, match="credential"):
        CredentialSource(settings(profile="mine")).get()


def test_a_source_of_credentials_is_let_go_with_its_client(counting_server: CountingServer) -> None:
    class Vault:
        def keys(self) -> dict[str, str]:
            return {"access_key_id": counting_server.access_key, "secret_access_key": counting_server.secret_key}

    vault = Vault()
    client = S3Client(
        counting_server.region,
        endpoint=counting_server.endpoint,
        s3client_config=S3ClientConfig(credentials=vault.keys),
    )
    next(client.list_objects(counting_server.bucket))
    is_alive = weakref.ref(vault)
    del client, vault
    gc.collect()
    wait_until(lambda: is_alive() is None)
