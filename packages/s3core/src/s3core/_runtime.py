"""What clients of equal settings share in one process: threads, connections, stores, credentials, the memory bound."""

from __future__ import annotations

import base64
import logging
import threading
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ._address import Address, locate
from ._budget import ByteBudget
from ._credentials import Credentials, CredentialSource
from ._exchanges import Exchanges
from ._network import Network
from ._pool import Pool
from ._process import forget_credentials, inherited_credentials, process
from ._settings import Settings

if TYPE_CHECKING:
    from ._get_template import GetTemplate

logger = logging.getLogger("s3core")

# Directly connected hosts: reqwest takes proxies from the environment unless it is given one, so it is given this one,
# together with an exclusion for the only host that the store talks to.
_NO_PROXY = "http://proxy.invalid"


class Runtime:
    """The live half of a client. Make it through `runtime_for`.

    Args:
        settings: What the clients have in common.
    """

    def __init__(self, settings: Settings) -> None:
        from ._rest import RestClient

        self.settings = settings
        self.process = process()
        self.pid = self.process.pid
        self.config = settings.config
        self.pool = Pool(settings.config.concurrency)
        self.exchanges = Exchanges(self.pool, settings.config.concurrency, settings.config.read_timeout)
        self.budget = ByteBudget(settings.config.memory_limit)
        self.credentials = CredentialSource(settings, inherited_credentials(settings))
        self.network = Network(settings)
        self.rest = RestClient(self)
        # They may refer to objects of the user, such as a callable that provides credentials.
        weakref.finalize(self, forget_credentials, settings).atexit = False
        self.known_buckets: set[str] = set()  # They are there.
        self.deletes_many = True  # Whether the store may know how to, in one request.
        self.is_distrusted = False  # Whether obstore refuses the store's certificate.
        self.get_templates: dict[tuple[str, bool], GetTemplate] = {}
        self._lock = threading.Lock()
        self._addresses: dict[str, Address] = {}
        self._stores: dict[str, tuple[object, Any]] = {}  # Each with the keys that it signs with.

    def keys(self) -> Credentials | None:
        """The credentials to sign with now; None for unsigned requests."""
        return self.credentials.get()

    def address(self, bucket: str) -> Address:
        """Where a bucket is; asks the bucket for its region when nothing else told it."""
        address = self._addresses.get(bucket)
        if address is None:
            region = self.settings.region
            if region is None and not bucket.startswith("arn:"):
                region = self.rest.find_region(bucket)
            address = self._addresses[bucket] = self._locate(bucket, region or "us-east-1")
        return address

    def is_ready(self, bucket: str) -> bool:
        """Whether a request to a bucket can be addressed and signed without asking anyone."""
        is_located = bucket in self._addresses or self.settings.region is not None
        return is_located and (self.config.unsigned or self.credentials.is_fresh)

    def has_exchanges(self, bucket: str) -> bool:
        """Whether exchanges can be had with a bucket; may ask for its region."""
        return (
            self.config.max_attempts > 1
            and self.exchanges.is_understood
            and self.network.proxy(self.address(bucket).origin) is None
        )

    def correct_region(self, bucket: str, region: str, used: str) -> bool:
        """Take over the region that the store itself named for a bucket.

        Args:
            bucket: The bucket.
            region: What the store says.
            used: What the refused request was sent with; another thread may have corrected it since.

        Returns:
            Whether it pays to send the request again.
        """
        with self._lock:
            if self._addresses[bucket].region == region:
                return used != region
            self._addresses[bucket] = self._locate(bucket, region)
            self._stores.pop(bucket, None)
        logger.info("s3://%s is in the region %s; using that from now on", bucket, region)
        return True

    def store(self, bucket: str, keys: Credentials | None) -> Any:
        """The native store of a bucket, made once for the same keys: it goes on to sign with those it has.

        Args:
            bucket: The bucket.
            keys: What to sign with now.
        """
        signer = None if keys is None else keys.signer
        made_for, store = self._stores.get(bucket, (None, None))
        if store is None or made_for != signer:
            self.address(bucket)
            with self._lock:
                made_for, store = self._stores.get(bucket, (None, None))
                if store is None or made_for != signer:
                    # Not the address from before the lock, which may have been corrected meanwhile.
                    store = self._make_store(self._addresses[bucket])
                    self._stores[bucket] = signer, store
        return store

    def _locate(self, bucket: str, region: str) -> Address:
        return locate(bucket, region, self.settings.endpoint, self.config.force_path_style)

    def _make_store(self, address: Address) -> Any:
        """Build a store with every option that obstore would otherwise take from the environment set here."""
        config = self.config
        proxy = self.network.proxy(address.origin)
        host = urlsplit(address.origin).hostname or ""
        client: dict[str, Any] = {
            "allow_http": address.origin.startswith("http://"),
            "allow_invalid_certificates": False,
            "connect_timeout": timedelta(seconds=config.connect_timeout),
            "read_timeout": timedelta(seconds=config.read_timeout),
            # Spans the whole body, so it must be long: a stalled body is what `read_timeout` is for.
            "timeout": timedelta(hours=1),
            "pool_max_idle_per_host": str(config.concurrency),
            "pool_idle_timeout": timedelta(seconds=30),
            "http1_only": True,
            "user_agent": self.settings.user_agent,
            "proxy_url": proxy or _NO_PROXY,
        }
        if proxy is None:
            client["proxy_excludes"] = host
        authorities = self.network.authorities()
        if authorities is not None:
            client["root_certificate"] = authorities
        headers = {}
        if config.expected_bucket_owner is not None:
            headers["x-amz-expected-bucket-owner"] = config.expected_bucket_owner
        if headers:
            client["default_headers"] = headers
        # With the bucket in `endpoint`, the bucket's own address stands for both styles.
        endpoint = address.origin + (
            address.path if address.host_is_bucket else address.path[: -len(address.bucket) - 1]
        )
        store: dict[str, Any] = {
            "region": address.region,
            "endpoint": endpoint,
            "aws_endpoint_url_s3": endpoint,
            "virtual_hosted_style_request": address.host_is_bucket,
            "skip_signature": config.unsigned,
            "unsigned_payload": True,
            "request_payer": config.requester_pays,
            "s3_express": False,
            "imdsv1_fallback": False,
            # Writes' business, which is not this store's; set because the environment's would be taken, or refused.
            "checksum_algorithm": "SHA256",
            "conditional_put": "etag",
            "copy_if_not_exists": "multipart",
            "aws_server_side_encryption": "AES256",
            "client_options": client,
            "retry_config": {
                "max_retries": config.max_attempts - 1,
                "retry_timeout": timedelta(hours=1),
                "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 2},
            },
        }
        if config.sse_customer_key is not None:
            store["aws_server_side_encryption"] = "sse-c"
            store["aws_sse_customer_key_base64"] = base64.b64encode(config.customer_key_bytes).decode()
        if not config.unsigned:
            self.keys()  # Missing credentials are an error of ours, raised here and not within a native call.
            store["credential_provider"] = _native_keys(self.credentials)
        bucket = address.bucket if not address.bucket.startswith("arn:") else "access-point"
        return self.process.native._store.S3Store(bucket, **store)


def _native_keys(credentials: CredentialSource) -> Callable[[], dict[str, Any]]:
    """obstore's view of the credentials: it asks again at `expires_at`.

    It holds the source and not the runtime, which the native store would otherwise keep alive for ever.
    """

    def provide() -> dict[str, Any]:
        keys = credentials.get()
        assert keys is not None, "an unsigned store has no provider"
        return {
            "access_key_id": keys.access_key_id,
            "secret_access_key": keys.secret_access_key,
            "token": keys.session_token,
            "expires_at": keys.refresh_at,
        }

    return provide


def runtime_for(settings: Settings) -> Runtime:
    """The runtime of these settings in this process, made at first use.

    Args:
        settings: The client's settings.
    """
    state = process()
    with state.lock:
        runtime = state.runtimes.get(settings)
        if runtime is None:
            runtime = state.runtimes[settings] = Runtime(settings)
        return runtime
