"""The one place where what a store, obstore or the network says becomes an `S3Exception`."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from ._exceptions import (
    AccessDeniedError,
    ArchivedObjectError,
    ConfigError,
    CredentialsError,
    NoSuchBucketError,
    NoSuchKeyError,
    PreconditionFailedError,
    S3ConnectionError,
    S3Exception,
    S3TimeoutError,
    ThrottledError,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What is known about a request that failed.

    Args:
        status: HTTP status; 0 when no answer came.
        code: S3's error code, such as `NoSuchKey`; empty when the answer has none (a HEAD has no body).
        message: S3's own sentence.
        region: The region that the store names for the bucket.
        size: The object's size, where the answer to an unsatisfiable range tells it.
    """

    status: int = 0
    code: str = ""
    message: str = ""
    region: str | None = None
    size: int | None = None


# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#ErrorCodeList
_BY_CODE: dict[str, tuple[type[S3Exception], str]] = {
    "NoSuchBucket": (NoSuchBucketError, "the bucket does not exist; check its name and the endpoint"),
    "NoSuchKey": (NoSuchKeyError, "there is no such object; check the key, letter by letter"),
    "NoSuchVersion": (NoSuchKeyError, "the object has no such version; check version_id"),
    "NoSuchUpload": (S3Exception, "the multipart upload no longer exists; somebody aborted it or a lifecycle rule did"),
    "AccessDenied": (AccessDeniedError, "the credentials do not allow this; check the IAM and bucket policies"),
    "AllAccessDisabled": (AccessDeniedError, "all access to the bucket is disabled"),
    "AccountProblem": (AccessDeniedError, "the AWS account has a problem that blocks this"),
    "InvalidAccessKeyId": (CredentialsError, "the store does not know this access key; check the credentials"),
    "SignatureDoesNotMatch": (
        CredentialsError,
        "the secret key does not belong to the access key; check the credentials",
    ),
    "ExpiredToken": (CredentialsError, "the session token has expired; renew the credentials"),
    "TokenRefreshRequired": (CredentialsError, "the session token must be renewed"),
    "InvalidToken": (CredentialsError, "the session token is not valid; a stale AWS_SESSION_TOKEN may be set"),
    "RequestTimeTooSkewed": (CredentialsError, "this machine's clock is wrong; set it by NTP"),
    "InvalidObjectState": (ArchivedObjectError, "the object is archived; restore it (RestoreObject) before reading it"),
    "PreconditionFailed": (PreconditionFailedError, "a condition of the request does not hold"),
    "ConditionalRequestConflict": (
        PreconditionFailedError,
        "another change of the same key came in between; look at it, and write it again",
    ),
    "SlowDown": (ThrottledError, "the store throttles; lower max_concurrency or spread the keys over prefixes"),
    "ServiceUnavailable": (ThrottledError, "the store is overloaded; lower max_concurrency or raise max_attempts"),
    "TooManyRequests": (ThrottledError, "the store throttles; lower max_concurrency"),
    "RequestTimeout": (S3TimeoutError, "the store waited too long for data; check the network"),
    "PermanentRedirect": (
        ConfigError,
        "the bucket is at another endpoint (maybe https:// in place of http://) or in another region",
    ),
    "AuthorizationHeaderMalformed": (ConfigError, "the request was signed for another region"),
    "IllegalLocationConstraintException": (ConfigError, "the bucket is in another region"),
    "BadDigest": (S3Exception, "the bytes that arrived are not those that were sent; try again"),
    "XAmzContentChecksumMismatch": (S3Exception, "the bytes that arrived are not those that were sent; try again"),
    "IncompleteBody": (S3Exception, "not all bytes arrived; check the network and the proxy"),
    "EntityTooLarge": (S3Exception, "the object is larger than the store allows"),
    "EntityTooSmall": (S3Exception, "a part is smaller than the store allows; raise part_size"),
    "InvalidRange": (S3Exception, "the object has no such range"),
}
_BY_STATUS: dict[int, tuple[type[S3Exception], str]] = {
    400: (
        S3Exception,
        "the store refused it; where it gives no reason, the endpoint may say http:// where the port speaks https, the "
        "session token may have expired, the region may be wrong, or the object may need its customer key",
    ),
    **dict.fromkeys((301, 302, 303, 307, 308), _BY_CODE["PermanentRedirect"]),
    401: (CredentialsError, "the store does not accept the credentials"),
    403: _BY_CODE["AccessDenied"],
    404: (
        NoSuchKeyError,
        "there is no such object, or no such bucket; check the key, letter by letter, the bucket and the endpoint",
    ),
    407: (S3Exception, "the proxy does not accept the user and password; check those in the proxy's URL"),
    408: _BY_CODE["RequestTimeout"],
    409: _BY_CODE["ConditionalRequestConflict"],
    412: _BY_CODE["PreconditionFailed"],
    416: _BY_CODE["InvalidRange"],
    429: _BY_CODE["SlowDown"],
    501: (S3Exception, "the store does not implement this request"),
    503: _BY_CODE["SlowDown"],
}
# Refusals that another attempt mends though their status says the request is wrong: the body did not arrive as it was
# sent, or too slowly.
RETRIED_CODES = frozenset({"RequestTimeout", "BadDigest", "XAmzContentChecksumMismatch", "IncompleteBody"})
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
# Keys that have expired, or that somebody has replaced: the source may have others by now.
OUTDATED_KEYS_CODES = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
CERTIFICATE_REFUSED = "CERTIFICATE_VERIFY_FAILED"  # as OpenSSL says it
TUNNEL_REFUSED = "Tunnel connection failed: 407"  # as `http.client` says it

WRONG_REGION_CODES = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)


def error_for(failure: Failure, operation: str, uri: str) -> S3Exception:
    """Make the error for an answer of the store.

    Args:
        failure: What the answer said.
        operation: What was attempted, as a noun: `GET`, `upload of part 3`.
        uri: The `s3://bucket/key`.

    Returns:
        The error, ready to raise.
    """
    kind, remedy = _BY_CODE.get(failure.code) or _BY_STATUS.get(failure.status) or (S3Exception, "")
    if kind is ConfigError and failure.region:
        remedy = f"{remedy}; its region is {failure.region!r}, set region to it"
    if failure.status >= 500 and not remedy:
        remedy = "the store failed in every attempt; try again later or raise max_attempts"
    said = f"HTTP {failure.status} {failure.code}".rstrip()
    if failure.message:
        said = f"{said}: {failure.message[:300]}"
    return kind(f"{operation} of {uri} failed: {remedy or 'the store refused it'} ({said})")


def timeout_error(operation: str, uri: str, cause: str, attempts: int) -> S3TimeoutError:
    """Make the error for an answer that never came."""
    return S3TimeoutError(
        f"{operation} of {uri} failed: no answer in time, in up to {attempts} attempts ({cause}); "
        "check the network and the endpoint, or raise connect_timeout, read_timeout"
    )


def connection_error(operation: str, uri: str, cause: str, attempts: int) -> S3ConnectionError:
    """Make the error for a store that cannot be reached, or a connection that broke."""
    if CERTIFICATE_REFUSED in cause:
        return S3ConnectionError(
            f"{operation} of {uri} failed: the store's certificate is refused ({cause}); set ca_bundle to the "
            "certificates to trust, and use a name of the store that its certificate has"
        )
    if TUNNEL_REFUSED in cause:
        return S3ConnectionError(f"{operation} of {uri} failed: {_BY_STATUS[407][1]} ({cause})")
    return S3ConnectionError(
        f"{operation} of {uri} failed: the store cannot be reached or the connection broke, in up to {attempts} "
        f"attempts ({cause}); check the endpoint, the network and the proxy"
    )


def in_doubt(error: S3Exception) -> S3Exception:
    """The same error, which says that the change may have been made."""
    doubtful = type(error)(
        f"{error}; if the request got through, the store has done it all the same: look before you do it again"
    )
    doubtful.in_doubt = True
    return doubtful


def parse_failure(status: int, body: bytes | str, region: str | None = None) -> Failure:
    """Read S3's error document.

    Args:
        status: HTTP status of the answer.
        body: Its body; anything that is not S3's XML gives a failure without a code.
        region: The region from the answer's headers.
    """
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    begin = text.find("<Error")
    end = text.rfind("</Error>")
    fields: dict[str, str] = {}
    if begin >= 0 and end > begin:
        try:
            root = ElementTree.fromstring(text[begin : end + len("</Error>")])
            fields = {child.tag.rpartition("}")[2]: child.text or "" for child in root}
        except ElementTree.ParseError:
            pass
    size = fields.get("ActualObjectSize", "")
    return Failure(
        status,
        fields.get("Code", ""),
        fields.get("Message", ""),
        region or fields.get("Region") or None,
        int(size) if size.isdigit() else None,
    )


_STATUS = re.compile(r"(?:status code|status|error): (\d{3})\b")
_KIND = re.compile(r"\bkind: (\w+)")
_REFUSED = re.compile(r"InvalidCertificate\(\s*(?:Other\(\s*OtherError\(\s*)?(\w+)")
_OS_ERROR = re.compile(r'message: "([^"]+)"|"((?:tcp|dns|tls|invalid peer)[^"]*)"')


def parse_native(error: BaseException) -> tuple[Failure, str, str]:
    """Take apart what obstore raised; it exposes no status, only text.

    Args:
        error: The exception of obstore's native library.

    Returns:
        The store's failure (status 0 when no answer came), the kind of the transport's error (`Timeout`, `Connect`, …,
        `CERTIFICATE_REFUSED`, or empty), and its cause in a few words, free of the library's debug output.
    """
    text, _, debug = str(error).partition("\n\nDebug source:")
    status = _STATUS.search(text)
    if status is not None:
        return parse_failure(int(status.group(1)), text), "", ""
    if isinstance(error, FileNotFoundError):
        return Failure(404), "", ""
    if type(error).__name__ == "PreconditionError":
        return Failure(412), "", ""
    if "redirect without LOCATION" in text:
        return Failure(301, "PermanentRedirect"), "", ""  # S3's answer where a bucket is in another region.
    kind = _KIND.search(debug)
    if _REFUSED.search(debug):
        return Failure(), CERTIFICATE_REFUSED, ""
    if "ProxyAuthRequired" in debug:
        return Failure(), "Connect", TUNNEL_REFUSED
    details = list(dict.fromkeys(first or second for first, second in _OS_ERROR.findall(debug)))
    cause = ": ".join(details) or text.rpartition(" - ")[2].partition("\n")[0][:200]
    return Failure(), kind.group(1) if kind else "", cause
