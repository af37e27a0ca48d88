"""The host and path under which a bucket is reached."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, urlsplit

from ._exceptions import ConfigError

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html: only such names fit into a host name.
_DNS_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_ACCESS_POINT = re.compile(r"arn:([^:]+):s3:([a-z0-9-]+):(\d{12}):accesspoint[:/]([a-z0-9-]+)")
# https://docs.aws.amazon.com/general/latest/gr/rande.html and botocore's partitions: what region names begin with.
_SUFFIXES = {
    "cn-": "amazonaws.com.cn",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
    "eusc-": "amazonaws.eu",
}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)*([A-Za-z0-9_-]{1,63})\.?")
# Unreserved characters of RFC 3986, and the slash: what a signed S3 path leaves as it is.
_SAFE = "/-_.~"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a bucket is.

    Args:
        bucket: The bucket as the user names it.
        region: Region for the signature.
        origin: Scheme, host and port of the requests.
        path: What stands before `/key` in the path: empty, or `/bucket`.
        host_is_bucket: Whether the bucket is in the host name.
    """

    bucket: str
    region: str
    origin: str
    path: str
    host_is_bucket: bool

    @property
    def host(self) -> str:
        """The `Host` header of its requests."""
        return host_of(self.origin)

    def target(self, key: str = "", query: Mapping[str, str] | None = None) -> str:
        """What a request asks for: path and query, percent-encoded so that every byte arrives.

        Args:
            key: The key; empty for the bucket.
            query: Parameters, unescaped.
        """
        path = f"{self.path}/{quote(key, safe=_SAFE)}"
        if not query:
            return path
        return path + "?" + "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in query.items())


@lru_cache(maxsize=256)
def host_of(url: str) -> str:
    """The `Host` header for a URL: the name in lower case, and the port unless it is the scheme's own."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"  # an IPv6 address
    if parts.port is None or parts.port == _DEFAULT_PORTS.get(parts.scheme):
        return host
    return f"{host}:{parts.port}"


def is_http_url(url: str) -> bool:
    """Say whether a URL leads to a host by HTTP, for each of the libraries that are given it.

    obstore panics, and urllib3 raises errors of its own, where a host name is none.

    Args:
        url: The URL, whose other parts may be anything that is ASCII.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # A port that is no number, or half a bracket.
        return False
    is_plain = url.isascii() and url.isprintable() and " " not in url
    return is_plain and parts.scheme in ("http", "https") and port != 0 and (is_ip_address(host) or _is_name(host))


def is_ip_address(host: str) -> bool:
    """Say whether a host is an address and no name."""
    try:
        return not getattr(ipaddress.ip_address(host), "scope_id", None)  # Zones are not for URLs.
    except ValueError:
        return False


def _is_name(host: str) -> bool:
    match = _NAME.fullmatch(host)
    return match is not None and not match[1].isdecimal()  # That would be an address, which it is not.


def locate(bucket: str, region: str, endpoint: str | None, force_path_style: bool | None) -> Address:
    """Find a bucket's address.

    Args:
        bucket: The bucket or an access point's ARN.
        region: The bucket's region.
        endpoint: URL of an S3-compatible store; None for AWS.
        force_path_style: As in the config.

    Returns:
        The address.

    Raises:
        ConfigError: The bucket is of a kind that s3core does not speak to.
    """
    if bucket.startswith("arn:"):
        return _locate_access_point(bucket, endpoint)
    if bucket.endswith("--x-s3"):
        raise ConfigError(
            f"s3://{bucket} is a directory bucket (S3 Express One Zone), which needs session credentials that "
            "s3core does not request; use a general purpose bucket"
        )
    base = endpoint or f"https://s3.{region}.{_suffix(region)}"
    parts = urlsplit(base)
    path_style = force_path_style if force_path_style is not None else endpoint is not None
    # A bucket with dots does not match AWS's wildcard certificate.
    if not path_style and _DNS_BUCKET.fullmatch(bucket):
        return Address(bucket, region, f"{parts.scheme}://{bucket}.{parts.netloc}", parts.path, True)
    return Address(bucket, region, f"{parts.scheme}://{parts.netloc}", f"{parts.path}/{bucket}", False)


def _locate_access_point(arn: str, endpoint: str | None) -> Address:
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-points-naming.html."""
    match = _ACCESS_POINT.fullmatch(arn)
    if match is None:
        raise ConfigError(
            f"{arn!r} is not the ARN of an S3 access point in a region, such as "
            "'arn:aws:s3:eu-west-1:123456789012:accesspoint/name'; multi-region, Outposts and Object Lambda access "
            "points are not supported"
        )
    if endpoint is not None:
        raise ConfigError(
            f"{arn!r} is an access point of AWS, which the endpoint {endpoint!r} does not know; use a bucket"
        )
    _, region, account, name = match.groups()
    return Address(arn, region, f"https://{name}-{account}.s3-accesspoint.{region}.{_suffix(region)}", "", True)


def _suffix(region: str) -> str:
    return next((suffix for start, suffix in _SUFFIXES.items() if region.startswith(start)), "amazonaws.com")
