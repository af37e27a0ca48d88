"""`S3ClientConfig`: every setting of a client, with its default and its bounds, checked when it is made."""

from __future__ import annotations

import base64
import binascii
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, TypeAlias

from ._address import is_http_url
from ._exceptions import ConfigError

KiB = 2**10
MiB = 2**20
GiB = 2**30

MIN_PART_SIZE = 5 * MiB  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_PART_SIZE = 5 * GiB
SSE_MODES = ("AES256", "aws:kms", "aws:kms:dsse", "SSE-C")
UPLOAD_CHECKSUMS = ("CRC64NVME", "SHA256")

# https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html#AmazonS3-PutObject-request-header-StorageClass
STORAGE_CLASS = re.compile(r"[A-Z][A-Z0-9_-]{1,63}")
_PRINTABLE = re.compile(r"[\x20-\x7e]+")
_VISIBLE = re.compile(r"[\x21-\x7e]+")

PROXY_URL = "a URL like 'http://proxy.example:3128', with user and password percent-encoded if there are any"

RefreshCredentials: TypeAlias = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=False)
class S3ClientConfig:
    """The settings of an `S3Client`; the defaults suit a training job, so that most users pass none.

    A config is a value: frozen, hashable, and picklable as long as `credentials` is. Clients of equal settings in one
    process share their connections, threads and memory bound. Secrets never show in its `repr`.

    Args:
        throughput_target_gbps: Network throughput to plan for, in gigabits per second. Sets how many requests are in
            flight when `max_concurrency` is None.
        part_size: Bytes per ranged GET and per part of an upload, 5 MiB to 5 GiB.
        unsigned: Send requests without a signature, for public buckets.
        force_path_style: True for `endpoint/bucket/key`, False for `bucket.endpoint/key`; None means virtual-hosted on
            AWS and path style on a custom endpoint.
        max_attempts: How often a request is tried in all, 1 to 100.
        profile: Profile of the AWS config files to take credentials, region and endpoint from; None for `AWS_PROFILE`.
        requester_pays: Agree to pay for requests to a requester-pays bucket.
        access_key_id: Explicit access key, together with `secret_access_key`; None for the AWS credential chain.
        secret_access_key: Explicit secret key.
        session_token: Session token that belongs to the explicit keys.
        credentials: A callable that returns fresh credentials whenever they are about to expire: a mapping with
            `access_key_id`, `secret_access_key` and, where they apply, `session_token` and `expires_at` (an aware
            `datetime`; asked again five minutes before it).
        max_concurrency: Requests in flight per client and process, 1 to 1024; None derives it from
            `throughput_target_gbps` (128 at 10 Gbit/s).
        memory_limit: Bytes that one client may hold in its own buffers (parts to upload, ranges read ahead). The
            smallest step of each stream, one part, is always allowed.
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds to wait for the next bytes of an answer, and for the store to take the next MiB of a body.
        ca_bundle: Path of a PEM file with certificates to trust; None for `AWS_CA_BUNDLE`, then the system's.
        proxy: URL of an HTTP proxy; `""` for none; None for `HTTPS_PROXY`/`HTTP_PROXY` unless `NO_PROXY` names the host
            (loopback addresses never go through a proxy).
        sse: Encryption of what is written: `"AES256"` (SSE-S3), `"aws:kms"`, `"aws:kms:dsse"`, or `"SSE-C"` with
            `sse_customer_key`; None leaves it to the bucket.
        sse_kms_key_id: Key for the two KMS modes; None for the bucket's or the account's default key.
        sse_bucket_key_enabled: Ask for an S3 bucket key with the KMS modes.
        sse_customer_key: The 256-bit key of SSE-C, 32 bytes or their base64 text; sent with reads too.
        storage_class: Storage class of what is written, unless a call names another.
        expected_bucket_owner: Twelve-digit account id that must own the bucket.
        upload_checksum: Checksum that the store verifies on upload: `"CRC64NVME"`, `"SHA256"` or None.
        user_agent_suffix: Text added to the User-Agent header.

    Raises:
        ConfigError: A value is out of its bounds (also a `ValueError`).

    Example:
        >>> S3ClientConfig(part_size=16 * 2**20, max_attempts=3).concurrency
        128
    """

    throughput_target_gbps: float = 10.0
    part_size: int = 8 * MiB
    unsigned: bool = False
    force_path_style: bool | None = None
    max_attempts: int = 10
    profile: str | None = None
    requester_pays: bool = False
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    credentials: RefreshCredentials | None = field(default=None, repr=False)
    max_concurrency: int | None = None
    memory_limit: int = 1 * GiB
    connect_timeout: float = 5.0
    read_timeout: float = 30.0
    ca_bundle: str | None = None
    proxy: str | None = field(default=None, repr=False)
    sse: str | None = None
    sse_kms_key_id: str | None = None
    sse_bucket_key_enabled: bool = False
    sse_customer_key: str | bytes | None = field(default=None, repr=False)
    storage_class: str | None = None
    expected_bucket_owner: str | None = None
    upload_checksum: str | None = "CRC64NVME"
    user_agent_suffix: str | None = None

    def __post_init__(self) -> None:
        self._check_transfer()
        self._check_credentials()
        self._check_network()
        self._check_encryption()
        _check_match("storage_class", self.storage_class, STORAGE_CLASS, "a storage class such as 'STANDARD'")
        _check_match(
            "expected_bucket_owner", self.expected_bucket_owner, re.compile(r"\d{12}"), "a 12-digit account id"
        )
        _check_choice("upload_checksum", self.upload_checksum, UPLOAD_CHECKSUMS)
        _check_match("user_agent_suffix", self.user_agent_suffix, _PRINTABLE, "printable ASCII text")

    @property
    def concurrency(self) -> int:
        """Requests in flight per client and process: `max_concurrency`, or what the throughput target asks for."""
        if self.max_concurrency is not None:
            return self.max_concurrency
        # Small objects decide: at 30 ms each, 128 in flight carry 3,900 of them a second, 64 only 1,900.
        return max(16, min(256, round(12.8 * self.throughput_target_gbps)))

    def _take_int(self, name: str, low: int, high: int, unit: str = "") -> None:
        value = getattr(self, name)
        if not is_whole(value) or not low <= value <= high:
            raise _refusal(name, value, f"a whole number from {low} to {high} {unit}".rstrip())
        object.__setattr__(self, name, int(value))  # NumPy's numbers have other bounds.

    def _take_number(self, name: str, unit: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not issubclass(type(value), Real) or not 0 < value < math.inf:
            raise _refusal(name, value, f"a number of {unit} above 0")
        object.__setattr__(self, name, float(value))

    def _check_transfer(self) -> None:
        self._take_number("throughput_target_gbps", "gigabits per second")
        self._take_int("part_size", MIN_PART_SIZE, MAX_PART_SIZE, "bytes (5 MiB to 5 GiB, S3's own bounds)")
        self._take_int("max_attempts", 1, 100)
        if self.max_concurrency is not None:
            self._take_int("max_concurrency", 1, 1024, "or None")
        self._take_int("memory_limit", MIN_PART_SIZE, 2**63 - 1, "bytes")
        for name in ("unsigned", "requester_pays", "sse_bucket_key_enabled"):
            _check_type(name, getattr(self, name), bool, "True or False")
        if self.force_path_style is not None:
            _check_type("force_path_style", self.force_path_style, bool, "True, False or None")

    def _check_credentials(self) -> None:
        for name in ("profile", "access_key_id", "secret_access_key", "session_token"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                shown = "<hidden>" if name != "profile" else value
                raise _refusal(name, shown, "a text that is not empty, or None")
            if name != "profile" and not fits_signature(name, value):
                raise _refusal(name, "<hidden>", "free of spaces, line ends and control characters; strip the text")
        if (self.access_key_id is None) != (self.secret_access_key is None):
            given, missing = ("access_key_id", "secret_access_key")
            if self.access_key_id is None:
                given, missing = missing, given
            raise _refusal(missing, None, f"given whenever {given} is")
        if self.session_token is not None and self.access_key_id is None:
            raise _refusal("session_token", "<hidden>", "given only together with access_key_id and secret_access_key")
        if self.credentials is not None and not callable(self.credentials):
            raise _refusal("credentials", f"a {type(self.credentials).__name__}", "a callable that takes no argument")
        if self.credentials is not None and type(self.credentials).__hash__ is None:
            raise _refusal(
                "credentials",
                f"a {type(self.credentials).__name__} without a hash",
                "hashable, such as a function: clients of equal settings share connections",
            )
        ways = {
            "unsigned": self.unsigned,
            "access_key_id": self.access_key_id is not None,
            "credentials": self.credentials is not None,
        }
        chosen = [name for name, given in ways.items() if given]
        if len(chosen) > 1:
            raise _refusal(
                chosen[1], "given", f"left out when {chosen[0]} is given: there is one way to sign a request"
            )

    def _check_network(self) -> None:
        for name in ("connect_timeout", "read_timeout"):
            self._take_number(name, "seconds")
        if self.ca_bundle is not None and not os.path.isfile(self.ca_bundle):
            raise _refusal("ca_bundle", self.ca_bundle, "the path of a PEM file that exists")
        if self.proxy is not None:
            _check_type("proxy", self.proxy, str, "a URL, '' for none, or None for the environment's")
            if self.proxy and not is_http_url(self.proxy):
                raise _refusal("proxy", hide_proxy(self.proxy), PROXY_URL)

    def _check_encryption(self) -> None:
        _check_choice("sse", self.sse, SSE_MODES)
        if self.sse_kms_key_id is not None and self.sse not in ("aws:kms", "aws:kms:dsse"):
            raise _refusal("sse_kms_key_id", self.sse_kms_key_id, "given only with sse='aws:kms' or 'aws:kms:dsse'")
        _check_match("sse_kms_key_id", self.sse_kms_key_id, _VISIBLE, "a key's id, alias or ARN")
        if self.sse_bucket_key_enabled and self.sse != "aws:kms":
            raise _refusal("sse_bucket_key_enabled", True, "given only with sse='aws:kms'")
        if (self.sse == "SSE-C") != (self.sse_customer_key is not None):
            raise _refusal("sse_customer_key", "<hidden>" if self.sse_customer_key else None, "given with sse='SSE-C'")
        if self.sse_customer_key is not None and len(self.customer_key_bytes) != 32:
            raise _refusal("sse_customer_key", "<hidden>", "32 bytes, or their base64 text")

    @property
    def customer_key_bytes(self) -> bytes:
        """The key of SSE-C as bytes; empty when there is none or its text is not base64."""
        key = self.sse_customer_key
        if key is None:
            return b""
        if isinstance(key, bytes):
            return key
        try:
            return base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError, TypeError):
            return b""


def hide_proxy(url: str) -> str:
    """What may be shown of a proxy's URL, which may hold a password anywhere."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url)
    return f"{scheme[0]}…" if scheme is not None else "a text without a scheme"


def fits_signature(name: str, value: str | None) -> bool:
    """Say whether a key can be used as it is: a line end of the file it was pasted from would go into a header.

    Args:
        name: `access_key_id`, `secret_access_key` or `session_token`; all but the secret travel in headers.
        value: The key; None for none.
    """
    if value is None:
        return True
    if name == "secret_access_key":
        return value.isprintable() and value == value.strip()
    return _VISIBLE.fullmatch(value) is not None


def _refusal(name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"S3ClientConfig.{name} is {value!r}; it must be {allowed}")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, of Python's or of NumPy's; True and False are none."""
    return issubclass(type(value), Integral) and not isinstance(value, bool)


def _check_type(name: str, value: object, kind: type, allowed: str) -> None:
    if not isinstance(value, kind):
        raise _refusal(name, value, allowed)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise _refusal(name, value, "one of " + ", ".join(map(repr, choices)) + " or None")


def _check_match(name: str, value: object, pattern: re.Pattern[str], allowed: str) -> None:
    if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
        raise _refusal(name, value, f"{allowed}, or None")
