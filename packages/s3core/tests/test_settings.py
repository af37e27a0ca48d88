"""Argument, then environment, then profile."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from s3core import ConfigError, ObjectInfo, S3Client, S3ClientConfig
from s3core._address import locate
from s3core._network import proxy_for

ARN = "arn:aws:s3:eu-west-1:123456789012:accesspoint/training"


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[[str], None]:
    def write(config: str) -> None:
        (tmp_path / "config").write_text(config)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    return write


PROFILES = """
[default]
region = of-default
[profile mine]
region = of-mine
endpoint_url = http://of-mine
[profile service]
services = local
[services local]
s3 =
  endpoint_url = http://of-service
"""


def test_the_region_comes_from_argument_environment_profile(
    monkeypatch: pytest.MonkeyPatch, home: Callable[[str], None]
) -> None:
    assert S3Client().region is None
    home(PROFILES)
    assert S3Client().region == "of-default"
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert S3Client().region == "of-mine"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "of-env-2")
    assert S3Client().region == "of-env-2"
    monkeypatch.setenv("AWS_REGION", "of-env")
    assert S3Client().region == "of-env"
    assert S3Client("of-argument").region == "of-argument"


def test_the_endpoint_comes_from_argument_environment_profile(
    monkeypatch: pytest.MonkeyPatch, home: Callable[[str], None]
) -> None:
    assert S3Client("r").endpoint is None
    home(PROFILES)
    assert S3Client("r", s3client_config=S3ClientConfig(profile="mine")).endpoint == "http://of-mine"
    assert S3Client("r", s3client_config=S3ClientConfig(profile="service")).endpoint == "http://of-service"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://of-env-2/")
    assert S3Client("r").endpoint == "http://of-env-2"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://of-env")
    assert S3Client("r").endpoint == "http://of-env"
    assert S3Client("r", endpoint="http://of-argument/").endpoint == "http://of-argument"
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert S3Client("r").endpoint is None


def test_a_profile_that_is_not_there_is_named(home: Callable[[str], None]) -> None:
    home(PROFILES)
    with pytest.raises(ConfigError, match="profile 'none'"):
        S3Client(s3client_config=S3ClientConfig(profile="none"))


@pytest.mark.parametrize("region", ["a b", "eu/west", "eu-west-1\n", 3])
def test_a_region_that_is_none_is_refused(region: Any) -> None:
    with pytest.raises(ConfigError, match="region is"):
        S3Client(region)


def test_a_ca_bundle_of_the_environment_must_be_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/file")
    with pytest.raises(ConfigError, match="AWS_CA_BUNDLE names '/no/such/file'"):
        S3Client("r")
    (tmp_path / "empty.pem").write_text("nothing")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "empty.pem"))
    with pytest.raises(ConfigError, match="no certificate"):
        S3Client("r")


@pytest.mark.parametrize("agent", ["two\nlines", "ü"])
def test_a_user_agent_that_cannot_travel_is_refused(agent: str) -> None:
    with pytest.raises(ConfigError, match="user_agent is"):
        S3Client("r", user_agent=agent)


def test_a_client_is_a_value() -> None:
    config = S3ClientConfig(access_key_id="id", secret_access_key="hidden", max_attempts=3)
    client = S3Client("eu-west-1", endpoint="http://host:9000", s3client_config=config, user_agent="mine/1")
    copy = pickle.loads(pickle.dumps(client))
    assert (copy.region, copy.endpoint, copy.s3client_config) == ("eu-west-1", "http://host:9000", config)
    assert copy._settings == client._settings
    assert "hidden" not in repr(client) + repr(client._settings)


def test_clients_of_equal_settings_share_their_connections() -> None:
    def make(**more: Any) -> S3Client:
        return S3Client("r", s3client_config=S3ClientConfig(unsigned=True, **more))

    assert make()._runtime is make()._runtime
    assert make()._runtime is not make(max_attempts=3)._runtime


@pytest.mark.parametrize(
    ("bucket", "endpoint", "path_style", "url"),
    [
        ("bucket", None, None, "https://bucket.s3.eu-west-1.amazonaws.com/a%20b"),
        ("bucket", None, True, "https://s3.eu-west-1.amazonaws.com/bucket/a%20b"),
        ("dotted.bucket", None, None, "https://s3.eu-west-1.amazonaws.com/dotted.bucket/a%20b"),
        ("Old_Bucket", None, None, "https://s3.eu-west-1.amazonaws.com/Old_Bucket/a%20b"),
        ("bucket", "http://host:9000", None, "http://host:9000/bucket/a%20b"),
        ("bucket", "http://host:9000/base", None, "http://host:9000/base/bucket/a%20b"),
        ("bucket", "http://host:9000", False, "http://bucket.host:9000/a%20b"),
        (ARN, None, None, "https://training-123456789012.s3-accesspoint.eu-west-1.amazonaws.com/a%20b"),
    ],
)
def test_a_bucket_is_addressed_by_host_on_amazon_and_by_path_elsewhere(
    bucket: str, endpoint: str | None, path_style: bool | None, url: str
) -> None:
    address = locate(bucket, "eu-west-1", endpoint, path_style)
    assert address.origin + address.target("a b") == url


def test_other_partitions_have_their_own_domains() -> None:
    assert locate("bucket", "cn-north-1", None, None).origin == "https://bucket.s3.cn-north-1.amazonaws.com.cn"
    assert locate("bucket", "us-gov-west-1", None, None).origin == "https://bucket.s3.us-gov-west-1.amazonaws.com"


@pytest.mark.parametrize(
    ("bucket", "words"),
    [
        ("name--euw1-az1--x-s3", "directory bucket"),
        ("arn:aws:s3::123456789012:accesspoint/multi.mrap", "not supported"),
        ("arn:aws:s3-outposts:eu-west-1:123456789012:outpost/op-1/accesspoint/a", "not supported"),
        ("arn:aws:s3-object-lambda:eu-west-1:123456789012:accesspoint/a", "not supported"),
    ],
)
def test_a_bucket_of_another_kind_is_refused_with_the_reason(bucket: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        locate(bucket, "eu-west-1", None, None)


def test_an_access_point_needs_amazon() -> None:
    with pytest.raises(ConfigError, match="use a bucket"):
        locate(ARN, "eu-west-1", "http://host", None)


def test_a_proxy_comes_from_the_config_or_else_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://bucket.s3.eu-west-1.amazonaws.com"
    assert proxy_for(url, S3ClientConfig()) is None
    monkeypatch.setenv("HTTPS_PROXY", "http://of-env:3128")
    assert proxy_for(url, S3ClientConfig()) == "http://of-env:3128"
    assert proxy_for("http://host", S3ClientConfig()) is None
    assert proxy_for("https://127.0.0.1:9000", S3ClientConfig()) is None
    assert proxy_for("https://localhost:9000", S3ClientConfig()) is None
    assert proxy_for(url, S3ClientConfig(proxy="http://of-config:1")) == "http://of-config:1"
    assert proxy_for(url, S3ClientConfig(proxy="")) is None
    monkeypatch.setenv("NO_PROXY", ".amazonaws.com")
    assert proxy_for(url, S3ClientConfig()) is None


@pytest.mark.parametrize(
    "proxy", ["socks5://user:hidden-thing@host:1080", "user:hidden-thing@host:port", "http://user:hidden-thing@"]
)
def test_a_proxy_of_the_environment_that_is_none_is_named_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY" if os.name == "nt" else "http_proxy", proxy)
    config = S3ClientConfig(access_key_id="id", secret_access_key="secret")
    client = S3Client("r", endpoint="http://far.invalid", s3client_config=config)
    uses: list[Callable[[], object]] = [
        lambda: next(client.list_objects("bucket")),
        lambda: client.get_object("bucket", "key").read_all(),
        lambda: client.get_object("bucket", "odd//key").read_all(),
        lambda: client.get_object("bucket", "key", object_info=ObjectInfo("key", 10)).read_all(),
        lambda: client.put_object("bucket", "key").close(),
    ]
    for use in uses:
        with pytest.raises(ConfigError, match=r"HTTP_PROXY .*://….*far\.invalid in NO_PROXY, or set .*proxy") as caught:
            use()
        assert "hidden-thing" not in str(caught.value)


@pytest.mark.parametrize("host", ["[::1]", "127.0.0.1"])
def test_no_bucket_goes_before_an_address(host: str) -> None:
    with pytest.raises(ConfigError, match=r"force_path_style is False.*leave force_path_style out"):
        S3Client("r", endpoint=f"http://{host}:9000", s3client_config=S3ClientConfig(force_path_style=False))
    S3Client("r", endpoint=f"http://{host}:9000")
