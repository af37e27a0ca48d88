"""Where a client talks to and as whom: its arguments, completed from the environment and the profile."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ._address import is_http_url, is_ip_address
from ._config import S3ClientConfig
from ._exceptions import ConfigError
from ._loading import load

if TYPE_CHECKING:
    import botocore.session


# https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html: those that choose an identity.
_CREDENTIAL_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides what a client sends; clients of equal settings share one runtime in a process.

    Args:
        region: Region of the requests' signature; None until the bucket tells its own.
        endpoint: URL of an S3-compatible store, without a trailing slash; None for AWS.
        config: The other settings.
        user_agent: Value of the User-Agent header.
        ca_bundle: Path of the certificates to trust; None for the system's.
        profile: Profile of the AWS config files.
        surroundings: What the environment says about credentials and proxies, and the state of the AWS files, where
            these decide: clients of before a change share nothing with those of after it, for which the new ones count.
    """

    region: str | None
    endpoint: str | None
    config: S3ClientConfig
    user_agent: str
    ca_bundle: str | None = None
    profile: str | None = None
    surroundings: tuple[object, ...] = field(default=(), repr=False)


def resolve_settings(region: str | None, endpoint: str | None, config: S3ClientConfig, user_agent: str) -> Settings:
    """Complete a client's arguments: argument, then environment, then profile.

    The profile's file is read only for what neither argument nor environment says, and not at all where credentials
    are explicit and no profile is named.

    Args:
        region: The region argument.
        endpoint: The endpoint argument.
        config: The client's config.
        user_agent: The User-Agent to send.

    Returns:
        The settings; `region` is still None where only the bucket can tell.

    Raises:
        ConfigError: A value cannot work, or the profile does not exist.
    """
    profile = config.profile
    if profile is None and _uses_credential_chain(config):
        profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or None
    if region is None:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    if endpoint is None and os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
        if endpoint is None and _has_profile_file(profile, config):
            endpoint = _profile_endpoint(open_session(profile))
    if region is None and _has_profile_file(profile, config):
        region = open_session(profile).get_config_variable("region")
    if endpoint is not None:
        endpoint = _check_endpoint(endpoint, config.force_path_style)
    if region is not None and (not isinstance(region, str) or not region.replace("-", "").isalnum()):
        raise ConfigError(f"region is {region!r}; it must be the name of a region, such as 'eu-west-1'")
    if region is None and endpoint is not None:
        region = _region_of_host(urlsplit(endpoint).hostname or "") or "us-east-1"
    ca_bundle = config.ca_bundle
    if ca_bundle is None and (named := os.environ.get("AWS_CA_BUNDLE")):
        if not os.path.isfile(named):
            raise ConfigError(f"AWS_CA_BUNDLE names {named!r}, which is no file; correct it or set ca_bundle")
        ca_bundle = named
    if ca_bundle is not None:
        with open(ca_bundle, "rb") as file:
            if b"CERTIFICATE-----" not in file.read():  # A key and a request have other ends of this line.
                raise ConfigError(f"the CA bundle {ca_bundle!r} holds no certificate in PEM form")
    surroundings = _credential_state() if _uses_credential_chain(config) else ()
    if config.proxy is None:
        surroundings += tuple(sorted(item for item in os.environ.items() if item[0].lower().endswith("_proxy")))
    return Settings(region, endpoint, config, user_agent, ca_bundle, profile, surroundings)


def open_session(profile: str | None) -> botocore.session.Session:
    """Open a botocore session, which knows the AWS files and the credential chain.

    Raises:
        ConfigError: The profile does not exist.
    """
    load("botocore.exceptions", "botocore.session")
    import botocore.exceptions
    import botocore.session

    try:
        session = botocore.session.Session(profile=profile)
        session.get_scoped_config()
    except botocore.exceptions.ProfileNotFound as error:
        raise ConfigError(
            f"the AWS profile {profile!r} is in neither the config nor the credentials file; "
            "correct S3ClientConfig.profile or AWS_PROFILE"
        ) from error
    except botocore.exceptions.BotoCoreError as error:
        raise ConfigError(f"the AWS config files cannot be read: {error}") from error
    return session


def _uses_credential_chain(config: S3ClientConfig) -> bool:
    return not config.unsigned and config.access_key_id is None and config.credentials is None


def _has_profile_file(profile: str | None, config: S3ClientConfig) -> bool:
    if profile is not None:
        return True
    if not _uses_credential_chain(config):
        return False
    return any(map(os.path.isfile, _profile_files()))


def _profile_files() -> list[str]:
    paths = (
        os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config",
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials",
    )
    return [os.path.expanduser(path) for path in paths]


def _credential_state() -> tuple[object, ...]:
    states: list[tuple[int, int, int] | None] = []
    for path in _profile_files():
        try:
            found = os.stat(path)
        except OSError:
            states.append(None)
        else:
            states.append((found.st_ino, found.st_size, found.st_mtime_ns))
    return (*map(os.environ.get, _CREDENTIAL_VARIABLES), *states)


def _profile_endpoint(session: botocore.session.Session) -> str | None:
    """https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html."""
    profile = session.get_scoped_config()
    services = session.full_config.get("services", {}).get(profile.get("services", ""), {})
    for source in (services.get("s3"), profile):
        if isinstance(source, dict) and source.get("endpoint_url"):
            return str(source["endpoint_url"])
    return None


def _check_endpoint(endpoint: str, force_path_style: bool | None) -> str:
    fits = isinstance(endpoint, str) and is_http_url(endpoint)
    parts = urlsplit(endpoint) if fits else None
    if parts is None or parts.query or parts.fragment or "@" in parts.netloc:
        shown = re.sub(r"//.*@", "//<hidden>@", endpoint, flags=re.DOTALL) if isinstance(endpoint, str) else endpoint
        raise ConfigError(
            f"endpoint is {shown!r}; it must be a URL like 'https://s3.example.com' or 'http://host:9000'"
        )
    if force_path_style is False and is_ip_address(parts.hostname or ""):
        raise ConfigError(
            f"S3ClientConfig.force_path_style is False, which puts the bucket before the host's name, but endpoint is "
            f"{endpoint!r}, an address; leave force_path_style out, or name the host"
        )
    return endpoint.rstrip("/")


def _region_of_host(host: str) -> str | None:
    """The region that an AWS host name contains: `s3.eu-west-1.amazonaws.com`."""
    labels = host.split(".")
    if "amazonaws" in labels and len(labels) >= 4 and labels[0] == "s3":
        return labels[1] if labels[1] != "dualstack" else labels[2]
    return None
