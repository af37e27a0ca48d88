from __future__ import annotations

import base64
import dataclasses
import operator
import pickle
from pathlib import Path
from typing import Any

import pytest

from s3core import ConfigError, S3ClientConfig

MiB = 2**20


def fresh_keys() -> dict[str, str]:
    return {"access_key_id": "fresh", "secret_access_key": "secret"}


def test_the_defaults_are_those_that_users_of_other_connectors_know() -> None:
    config = S3ClientConfig()
    assert (config.throughput_target_gbps, config.part_size, config.unsigned) == (10.0, 8 * MiB, False)
    assert (config.force_path_style, config.max_attempts, config.profile) == (None, 10, None)
    assert S3ClientConfig(10.0, 8 * MiB, False, None, 10, None, False) == config


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("throughput_target_gbps", 0, "above 0"),
        ("throughput_target_gbps", float("inf"), "above 0"),
        ("throughput_target_gbps", float("nan"), "above 0"),
        ("throughput_target_gbps", True, "above 0"),
        ("part_size", MiB, "5 MiB to 5 GiB"),
        ("part_size", 5 * 2**30 + 1, "5 MiB to 5 GiB"),
        ("part_size", 8.0 * MiB, "5 MiB to 5 GiB"),
        ("unsigned", 1, "True or False"),
        ("force_path_style", "yes", "True, False or None"),
        ("max_attempts", 0, "from 1 to 100"),
        ("max_attempts", 101, "from 1 to 100"),
        ("max_attempts", True, "from 1 to 100"),
        ("profile", "", "not empty"),
        ("requester_pays", None, "True or False"),
        ("credentials", "key", "callable"),
        ("max_concurrency", 0, "from 1 to 1024"),
        ("max_concurrency", 1025, "from 1 to 1024"),
        ("memory_limit", MiB, "from 5242880"),
        ("connect_timeout", 0, "seconds above 0"),
        ("read_timeout", -1, "seconds above 0"),
        ("read_timeout", "30", "seconds above 0"),
        ("ca_bundle", "/no/such/file.pem", "PEM file that exists"),
        ("proxy", 3, "a URL"),
        ("sse", "AES128", "'AES256'"),
        ("sse_kms_key_id", "alias/key", "given only with"),
        ("sse_bucket_key_enabled", True, "given only with"),
        ("sse_customer_key", None, "SSE-C"),
        ("storage_class", "standard", "such as 'STANDARD'"),
        ("storage_class", "STANDARD\r\nx-evil: 1", "such as 'STANDARD'"),
        ("expected_bucket_owner", "12", "12-digit"),
        ("upload_checksum", "MD5", "'CRC64NVME', 'SHA256'"),
        ("user_agent_suffix", "two\nlines", "printable"),
    ],
)
def test_a_refusal_names_the_field_the_value_and_what_is_allowed(field: str, value: Any, allowed: str) -> None:
    more = {"sse": "SSE-C"} if field == "sse_customer_key" else {}
    with pytest.raises(ValueError, match=rf"S3ClientConfig\.{field} is ") as caught:
        S3ClientConfig(**{field: value, **more})
    assert isinstance(caught.value, ConfigError)
    assert allowed in str(caught.value)
    if field != "credentials":
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"access_key_id": "id"}, "secret_access_key"),
        ({"secret_access_key": "hidden-thing"}, "access_key_id"),
        ({"session_token": "hidden-thing"}, "session_token"),
        ({"access_key_id": "id", "secret_access_key": ""}, "secret_access_key"),
        ({"unsigned": True, "access_key_id": "id", "secret_access_key": "hidden-thing"}, "access_key_id"),
        ({"unsigned": True, "credentials": fresh_keys}, "credentials"),
        ({"credentials": fresh_keys, "access_key_id": "id", "secret_access_key": "hidden-thing"}, "credentials"),
        ({"sse_customer_key": b"hidden-thing"}, "sse_customer_key"),
        ({"sse": "SSE-C", "sse_customer_key": b"hidden-thing"}, "sse_customer_key"),
        ({"sse": "SSE-C", "sse_customer_key": "hidden-thing!"}, "sse_customer_key"),
        ({"proxy": "hidden-thing@proxy.example:3128"}, "proxy"),
        ({"proxy": "ftp://user:hidden-thing@proxy"}, "proxy"),
        ({"proxy": "socks5://user:hidden-thing@proxy:1080"}, "proxy"),
        ({"proxy": "http://user:hidden-thing@proxy:port"}, "proxy"),
        ({"proxy": "http://user:hidden-thing@proxy:99999"}, "proxy"),
        ({"proxy": "http://user:hidden-thing/more@proxy:3128"}, "proxy.*percent-encoded"),
        ({"proxy": "http://user:hidden-thing@[::1"}, "proxy"),
        ({"proxy": "http://user:hidden-thing@[proxy]:3128"}, "proxy"),
        ({"proxy": "http://user:hidden-thing@pro xy:3128"}, "proxy"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_without_showing_secrets(
    values: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        S3ClientConfig(**values)
    assert "hidden-thing" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "flaw"),
    [
        *(
            (name, flaw)
            for name in ("access_key_id", "session_token")
            for flaw in ("\n", " ", "\r\nx-evil: 1", "ü", "\0")
        ),
        *(("secret_access_key", flaw) for flaw in ("\n", " ", "\r\n", "\0")),
    ],
)
def test_keys_with_line_ends_and_the_like_are_refused_without_being_shown(name: str, flaw: str) -> None:
    keys = {"access_key_id": "id", "secret_access_key": "secret", "session_token": "token"}
    keys[name] = f"hidden-thing{flaw}"
    with pytest.raises(ConfigError, match=name) as caught:
        S3ClientConfig(**keys)
    assert "hidden-thing" not in str(caught.value)


def test_a_kms_key_that_cannot_travel_in_a_header_is_refused() -> None:
    with pytest.raises(ConfigError, match="sse_kms_key_id"):
        S3ClientConfig(sse="aws:kms", sse_kms_key_id="key\r\nx-evil: 1")


def test_numbers_of_numpy_are_as_good_as_those_of_python() -> None:
    np = pytest.importorskip("numpy")
    whole = {"part_size": 6 * MiB, "max_attempts": 3, "max_concurrency": 4, "memory_limit": 9 * MiB}
    others = {"throughput_target_gbps": 5, "connect_timeout": 2, "read_timeout": 8}
    config = S3ClientConfig(
        **{name: np.uint32(value) for name, value in whole.items()},
        **{name: np.float32(value) for name, value in others.items()},
    )
    assert config == S3ClientConfig(**whole, **others)  # type: ignore[arg-type]
    assert {type(getattr(config, name)) for name in whole} == {int}
    assert {type(getattr(config, name)) for name in others} == {float}
    with pytest.raises(ConfigError, match="part_size is"):
        S3ClientConfig(part_size=np.float32(8 * MiB))


def test_secrets_never_show() -> None:
    config = S3ClientConfig(
        access_key_id="id",
        secret_access_key="hidden-1",
        session_token="hidden-2",
        proxy="http://user:hidden-3@proxy:3128",
        sse="SSE-C",
        sse_customer_key="hidden4" * 6 + "x=",
    )
    assert "hidden" not in repr(config) + str(config)
    assert "fresh_keys" not in repr(S3ClientConfig(credentials=fresh_keys))


def test_a_config_is_a_value() -> None:
    config = S3ClientConfig(max_attempts=3, credentials=fresh_keys)
    assert config == S3ClientConfig(max_attempts=3, credentials=fresh_keys)
    assert hash(config) == hash(S3ClientConfig(max_attempts=3, credentials=fresh_keys))
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, max_attempts=4).max_attempts == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_attempts = 5  # type: ignore[misc]


def test_a_config_that_is_changed_by_replace_is_checked_again() -> None:
    with pytest.raises(ConfigError, match="max_attempts"):
        dataclasses.replace(S3ClientConfig(), max_attempts=0)


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self) -> dict[str, str]:
        return fresh_keys()


def test_credentials_that_cannot_be_hashed_are_refused_when_the_config_is_made() -> None:
    with pytest.raises(ConfigError, match="credentials"):
        S3ClientConfig(credentials=Unhashable())


@pytest.mark.parametrize(("gbps", "requests"), [(0.1, 16), (10.0, 128), (15.0, 192), (1000.0, 256)])
def test_the_throughput_target_sets_the_requests_in_flight(gbps: float, requests: int) -> None:
    assert S3ClientConfig(throughput_target_gbps=gbps).concurrency == requests
    assert S3ClientConfig(throughput_target_gbps=gbps, max_concurrency=3).concurrency == 3


@pytest.mark.parametrize("encode", [bytes, lambda key: base64.b64encode(key).decode()])
def test_a_customer_key_is_given_as_bytes_or_as_base64(encode: Any) -> None:
    key = bytes(range(32))
    assert S3ClientConfig(sse="SSE-C", sse_customer_key=encode(key)).customer_key_bytes == key


def test_a_ca_bundle_is_a_file(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    assert operator.attrgetter("ca_bundle")(S3ClientConfig(ca_bundle=str(bundle))) == str(bundle)
