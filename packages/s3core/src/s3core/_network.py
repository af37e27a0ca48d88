"""How hosts are reached: through which proxy, and whom to trust."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ._address import is_http_url
from ._config import PROXY_URL, S3ClientConfig, hide_proxy
from ._exceptions import ConfigError
from ._loading import load, loading
from ._settings import Settings

if TYPE_CHECKING:
    import ssl


class Network:
    """What all connections of a client have in common.

    Args:
        settings: Its settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._proxies: dict[str, str | None] = {}
        self._tls: ssl.SSLContext | None = None

    def proxy(self, origin: str) -> str | None:
        """Through which proxy an origin is reached; None for a direct connection."""
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(origin, self._settings.config)
        return self._proxies[origin]

    def tls(self) -> ssl.SSLContext:
        """Whom our own connections trust: the certificates of the settings, or the system's."""
        with loading:
            if self._tls is None:
                self._tls = self.new_tls()
        return self._tls

    def new_tls(self) -> ssl.SSLContext:
        """The same, for a library that may change it; to read the system's certificates takes 17 ms.

        Raises:
            ConfigError: There are none where the settings say.
        """
        load("ssl")
        import ssl

        bundle = self._settings.ca_bundle
        with loading:  # The first one starts OpenSSL, which no child may inherit half.
            try:
                context = ssl.create_default_context(cafile=bundle)
            except OSError as error:
                raise _unreadable(bundle, error) from error
            context.set_alpn_protocols(["http/1.1"])
            return context

    def authorities(self) -> bytes | None:
        """The certificates of the settings in PEM form, for a library that says nothing of what is wrong with them.

        Raises:
            ConfigError: There are none where the settings say.
        """
        bundle = self._settings.ca_bundle
        if bundle is None:
            return None
        self.tls()
        try:
            with open(bundle, "rb") as file:
                return file.read()
        except OSError as error:
            raise _unreadable(bundle, error) from error


def proxy_for(url: str, config: S3ClientConfig) -> str | None:
    """Say through which proxy a URL is reached.

    Args:
        url: The endpoint.
        config: Its `proxy` decides; None there means the environment, where `NO_PROXY` is honoured and a loopback
            address never goes through a proxy.

    Returns:
        The proxy's URL, or None for a direct connection.

    Raises:
        ConfigError: The environment names one that is no HTTP proxy.
    """
    if config.proxy is not None:
        return config.proxy or None
    load("urllib.request")
    import urllib.request

    parts = urlsplit(url)
    host = parts.hostname or ""
    if _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if not is_http_url(proxy):
        raise ConfigError(
            f"{parts.scheme.upper()}_PROXY or ALL_PROXY of the environment is {hide_proxy(proxy)!r}; it must be "
            f"{PROXY_URL}; else name {host} in NO_PROXY, or set S3ClientConfig.proxy ('' for none)"
        )
    return proxy


def _unreadable(bundle: str | None, error: OSError) -> ConfigError:
    reason = error.strerror or error
    return ConfigError(
        f"the certificates to trust of {bundle!r} cannot be read ({reason}); correct the file or ca_bundle"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
