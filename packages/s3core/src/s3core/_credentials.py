"""Credentials: explicit keys, a callable, or the whole AWS chain; fresh when they are asked for."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ._config import S3ClientConfig, fits_signature
from ._exceptions import CredentialsError, S3Exception
from ._loading import loading
from ._process import remember_credentials
from ._settings import Settings, open_session

if TYPE_CHECKING:
    import botocore.session

logger = logging.getLogger("s3core")

_EARLY = timedelta(minutes=5)
# Where the source does not tell the expiry: ask again this often; the chain answers from memory while it is valid.
_RECHECK = timedelta(minutes=5)
_SHORTEST = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Credentials:
    """One set of keys.

    Args:
        access_key_id: The public half.
        secret_access_key: The secret half.
        session_token: The token of temporary keys.
        refresh_at: When to ask for new ones, five minutes before they expire; None for keys that do not expire.
        expires_at: When they expire, where that is known.
    """

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    refresh_at: datetime | None = None
    expires_at: datetime | None = None

    @property
    def signer(self) -> tuple[str, str, str | None]:
        """What requests are signed with: the same for all that differ in their times alone."""
        return self.access_key_id, self.secret_access_key, self.session_token

    @property
    def is_due(self) -> bool:
        """Whether it is time for new ones."""
        return self.refresh_at is not None and datetime.now(UTC) >= self.refresh_at

    @property
    def is_valid(self) -> bool:
        """Whether they are known to be good for a while still."""
        return self.expires_at is not None and datetime.now(UTC) < self.expires_at - _SHORTEST


class CredentialSource:
    """The credentials of one runtime; safe to ask from many threads.

    Args:
        settings: Whose config and profile decide where they come from.
        inherited: Keys that the parent process had resolved: used until they are due, so that a forked worker neither
            reads files nor asks the network at its start.
    """

    def __init__(self, settings: Settings, inherited: Credentials | None = None) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._current = inherited
        self._fetch: Callable[[], Credentials] | None = None

    @property
    def current(self) -> Credentials | None:
        """What was resolved last, for children to start from."""
        return self._current

    @property
    def is_fresh(self) -> bool:
        """Whether `get` has them at hand."""
        return self._current is not None and not self._current.is_due

    def get(self) -> Credentials | None:
        """The credentials to sign with, or None for unsigned requests.

        Raises:
            CredentialsError: There are none, or they cannot be refreshed.
        """
        if self._settings.config.unsigned:
            return None
        current = self._current
        if current is not None and not current.is_due:
            return current
        with self._lock:
            current = self._current
            if current is None or current.is_due:
                current = self._current = self._refresh(current)
                remember_credentials(self._settings, current)
            return current

    def _refresh(self, current: Credentials | None) -> Credentials:
        try:
            if self._fetch is None:
                self._fetch = _choose(self._settings)
            return self._fetch()
        except S3Exception as error:
            if current is None or not current.is_valid:
                raise
            # They are renewed early so that one failure of the source does not end a long job.
            logger.warning("the credentials could not be renewed (%s); using the old ones until they expire", error)
            return replace(current, refresh_at=datetime.now(UTC) + _SHORTEST)

    def renew(self, refused: Credentials) -> bool:
        """Fetch anew after the store refused credentials as expired or unknown, and say whether others came."""
        config = self._settings.config
        if config.unsigned or config.access_key_id is not None:
            return False
        with self._lock:
            if self._current is refused or self._current is None:
                self._fetch = _choose(self._settings)
                self._current = self._fetch()
                remember_credentials(self._settings, self._current)
            return self._current != refused


def _choose(settings: Settings) -> Callable[[], Credentials]:
    config = settings.config
    if config.access_key_id is not None and config.secret_access_key is not None:
        explicit = Credentials(config.access_key_id, config.secret_access_key, config.session_token)
        return lambda: explicit
    if config.credentials is not None:
        return lambda: _call(config)
    return _chain(settings)


def _call(config: S3ClientConfig) -> Credentials:
    assert config.credentials is not None
    try:
        answer = config.credentials()
    except S3Exception:
        raise
    except Exception as error:
        raise CredentialsError(f"S3ClientConfig.credentials raised {type(error).__name__}: {error}") from error
    if not isinstance(answer, Mapping):
        raise CredentialsError(
            f"S3ClientConfig.credentials returned a {type(answer).__name__}; it must return a mapping"
        )
    keys: dict[str, Any] = {name: answer.get(name) for name in ("access_key_id", "secret_access_key")}
    for name, value in keys.items():
        if not isinstance(value, str) or not value:
            raise CredentialsError(
                f"S3ClientConfig.credentials returned no {name!r}; it must be a text that is not empty"
            )
    expires_at = answer.get("expires_at")
    if expires_at is not None and (not isinstance(expires_at, datetime) or expires_at.tzinfo is None):
        raise CredentialsError(
            "S3ClientConfig.credentials returned an 'expires_at' that is no datetime with a time zone"
        )
    keys["session_token"] = answer.get("session_token") or answer.get("token") or None
    _check_keys("S3ClientConfig.credentials returned", keys)
    return Credentials(**keys, refresh_at=_refresh_time(expires_at), expires_at=expires_at)


def _chain(settings: Settings) -> Callable[[], Credentials]:
    from_environment = _environment_keys(settings.config)
    if from_environment is not None:
        return lambda: from_environment
    try:
        session = open_session(settings.profile)
        with loading:
            # Makes TLS contexts: a child that came in the midst of that would wait for a lock of OpenSSL for ever.
            session.get_component("credential_provider")
        source = session.get_credentials() if settings.config.profile is not None else _first_of(session)
    except Exception as error:  # botocore's errors have no base in common
        raise CredentialsError(f"the AWS credential chain failed: {error}") from error
    if source is None and settings.config.profile is not None:
        raise CredentialsError(
            f"the profile {settings.config.profile!r} of S3ClientConfig has no AWS credentials, and those of the "
            "environment do not count beside it: put keys or a role into the profile, or name it by AWS_PROFILE, "
            "beside which they do"
        )
    if source is None:
        raise CredentialsError(
            "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose a profile "
            "(S3ClientConfig(profile=…)), or read a public bucket with S3ClientConfig(unsigned=True)"
        )

    def fetch() -> Credentials:
        try:
            frozen = source.get_frozen_credentials()
        except Exception as error:
            raise CredentialsError(f"the AWS credentials could not be refreshed: {error}") from error
        if not frozen.access_key or not frozen.secret_key:
            raise CredentialsError("the AWS credential chain gave no keys; check the profile and the environment")
        # Keys from the environment or a file do not expire and have no refresh of their own.
        refresh_at = expires_at = None
        if hasattr(source, "refresh_needed"):
            # botocore names the time only here; without it, ask again soon.
            expires_at = getattr(source, "_expiry_time", None)
            refresh_at = _refresh_time(expires_at) or datetime.now(UTC) + _RECHECK
        keys = {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "session_token": frozen.token or None,
        }
        _check_keys("the AWS credential chain gave", keys)
        return Credentials(**keys, refresh_at=refresh_at, expires_at=expires_at)

    return fetch


def _first_of(session: botocore.session.Session) -> Any:
    """The chain's first credentials, the environment's before those of the profile that the environment names.

    botocore leaves the environment out as soon as it is told a profile.
    """
    from botocore.credentials import EnvProvider

    return EnvProvider().load() or session.get_credentials()


def _check_keys(source: str, keys: Mapping[str, Any]) -> None:
    for name, value in keys.items():
        if value is not None and not (isinstance(value, str) and fits_signature(name, value)):
            raise CredentialsError(
                f"{source} a {name!r} with a space, a line end or a control character; strip what it is read from"
            )


def _environment_keys(config: S3ClientConfig) -> Credentials | None:
    """The keys of the environment, the chain's first link, without loading botocore (0.3 s in each worker).

    They come before the profile that `AWS_PROFILE` names, but not before one that the config names, as in botocore.
    """
    keys = {
        "access_key_id": os.environ.get("AWS_ACCESS_KEY_ID"),
        "secret_access_key": os.environ.get("AWS_SECRET_ACCESS_KEY"),
    }
    if config.profile is not None or not all(keys.values()) or "AWS_CREDENTIAL_EXPIRATION" in os.environ:
        return None
    keys["session_token"] = os.environ.get("AWS_SESSION_TOKEN") or None
    _check_keys("the environment has", keys)
    return Credentials(**keys)  # type: ignore[arg-type]  # All are there.


def _refresh_time(expires_at: datetime | None) -> datetime | None:
    if expires_at is None:
        return None
    return max(expires_at - _EARLY, datetime.now(UTC) + _SHORTEST)
