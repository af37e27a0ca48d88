"""Nothing in the environment decides behind the back of whoever passes everything explicitly."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from servers import CountingServer

# Whatever an SDK, obstore, an HTTP library or a proxy setting was ever known to read.
RUBBISH = dict.fromkeys(
    [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_SECURITY_TOKEN",
        "AWS_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_CA_BUNDLE",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_SESSION_NAME",
        "AWS_BUCKET",
        "AWS_BUCKET_NAME",
        "AWS_DEFAULT_OUTPUT",
        "AWS_SDK_LOAD_CONFIG",
        "AWS_RETRY_MODE",
        "AWS_DATA_PATH",
        "AWS_STS_REGIONAL_ENDPOINTS",
        "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT",
        "AWS_SDK_UA_APP_ID",
        "AWS_REQUEST_CHECKSUM_CALCULATION",
        "AWS_CHECKSUM_ALGORITHM",
        "AWS_COPY_IF_NOT_EXISTS",
        "AWS_CONDITIONAL_PUT",
        "AWS_SERVER_SIDE_ENCRYPTION",
        "AWS_SSE_KMS_KEY_ID",
        "AWS_SSE_CUSTOMER_KEY_BASE64",
        "AWS_METADATA_ENDPOINT",
        "AWS_USER_AGENT",
        "AWS_PROXY_CA_CERTIFICATE",
        "AWS_PROXY_EXCLUDES",
    ],
    "rubbish",
) | {
    "AWS_ENDPOINT": "http://127.0.0.1:9",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
    "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:9",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/rubbish",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN": "rubbish",
    "AWS_PROXY_URL": "http://127.0.0.1:9",
    "AWS_SKIP_SIGNATURE": "true",
    "AWS_UNSIGNED_PAYLOAD": "false",
    "AWS_REQUEST_PAYER": "true",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
    "AWS_S3_EXPRESS": "true",
    "AWS_IMDSV1_FALLBACK": "true",
    "AWS_USE_FIPS_ENDPOINT": "true",
    "AWS_USE_DUALSTACK_ENDPOINT": "true",
    "AWS_DISABLE_TAGGING": "true",
    "AWS_SSE_BUCKET_KEY_ENABLED": "true",
    "AWS_ALLOW_HTTP": "false",
    "AWS_ALLOW_INVALID_CERTIFICATES": "true",
    "AWS_CONNECT_TIMEOUT": "1ms",
    "AWS_TIMEOUT": "1ms",
    "AWS_READ_TIMEOUT": "1ms",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_HTTP2_ONLY": "true",
    "AWS_DEFAULT_CONTENT_TYPE": "text/rubbish",
    "AWS_RANDOMIZE_ADDRESSES": "false",
    **{
        spelled: "http://127.0.0.1:9"
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY")
        for spelled in (name, name.lower())
    },
    "NO_PROXY": "rubbish.example",
    "no_proxy": "rubbish.example",
    "REQUEST_METHOD": "",
}

# Not refused by anybody, and so worse.
HARMFUL = {
    "AWS_SERVER_SIDE_ENCRYPTION": "sse-c",
    "AWS_SSE_CUSTOMER_KEY_BASE64": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    "AWS_CHECKSUM_ALGORITHM": "crc64nvme",
    "AWS_COPY_IF_NOT_EXISTS": "header:x-rubbish:yes",
    "AWS_CONDITIONAL_PUT": "disabled",
}

PROGRAM = """
import importlib.util, json
certificates = importlib.util.find_spec("botocore").submodule_search_locations[0] + "/cacert.pem"
os.environ.update(json.loads({rubbish!r}))
config = S3ClientConfig(
    access_key_id="own-id", secret_access_key="own-secret", session_token={token!r}, part_size=5 * 2**20, proxy="",
    force_path_style=True, ca_bundle=certificates, max_attempts=2, upload_checksum="CRC64NVME", profile=None,
)
client = S3Client("us-east-1", endpoint={endpoint!r}, s3client_config=config)
assert client.get_object(bucket, "data").read_all() == b"abc"
assert client.get_object(bucket, "odd//data").read_all() == b"abc"
assert client.head_object(bucket, "data").size == 3
with client.put_object(bucket, "new") as stream:
    stream.write(b"abc")
with client.put_object(bucket, "large", metadata={{"run": "7"}}) as stream:
    stream.write(bytes(6 * 2**20))
assert len(next(client.list_objects(bucket, "", "/"))) > 1
client.copy_object(bucket, "data", bucket, "copied")
client.delete_object(bucket, "new")
client.delete_objects(bucket, ["large", "copied"])
with client.put_object(bucket, "given up") as stream:
    stream.write(bytes(6 * 2**20))
    stream.abort()
"""

# What differs from run to run, whatever the environment.
CHANGING = {"authorization", "x-amz-date", "host"}


@pytest.mark.parametrize("token", [None, "own-token"])
def test_rubbish_in_the_environment_changes_no_request(
    counting_server: CountingServer, run_program: Callable[..., str], token: str | None
) -> None:
    def requests(rubbish: dict[str, str]) -> list[Any]:
        for key in ("data", "odd//data"):
            counting_server.put(key, b"abc")
        counting_server.clear()
        source = PROGRAM.format(rubbish=json.dumps(rubbish), token=token, endpoint=counting_server.endpoint)
        run_program(source, None, counting_server.bucket)
        found = []
        for request in counting_server.requests:
            if request.operation == "UploadPart" and request.key == "given up":
                continue  # Whether the part goes out before the abort is a matter of luck.
            headers = {name: value for name, value in request.headers.items() if name not in CHANGING}
            signed = request.headers["authorization"].split(",")[:2]
            query = {name: value for name, value in request.query.items() if name != "uploadId"}
            credential = signed[0].split("/")
            body = request.bytes_received if request.operation != "CompleteMultipartUpload" else 0
            found.append(
                (request.operation, request.path, sorted(query.items()), headers, credential[0], signed[1], body)
            )
        return sorted(found, key=repr)

    clean, dirty = requests({}), requests(RUBBISH if token is None else RUBBISH | HARMFUL)
    assert {found[0] for found in clean} >= {
        "GetObject", "HeadObject", "PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload",
        "AbortMultipartUpload", "ListObjectsV2", "CopyObject", "DeleteObject", "DeleteObjects",
    }  # fmt: skip
    assert dirty == clean
    assert all(found[4].endswith("Credential=own-id") for found in clean)
    assert {found[3].get("x-amz-security-token") for found in clean} == {token}


def test_the_environment_is_as_it_was_after_the_first_request(
    counting_server: CountingServer, run_program: Callable[..., str]
) -> None:
    counting_server.put("data", b"abc")
    run_program(
        """
        client, before, modules = make_client(), dict(os.environ), set(sys.modules)
        client.get_object(bucket, "data").read_all()
        assert dict(os.environ) == before
        assert not [name for name in set(sys.modules) - modules if name.startswith("obstore")]
        """,
        counting_server,
        counting_server.bucket,
    )


def test_the_native_library_is_loaded_for_many_whole_objects_of_unknown_size_alone(
    counting_server: CountingServer, run_program: Callable[..., str]
) -> None:
    counting_server.put("data", bytes(range(256)) * 40_000)
    run_program(
        """
        from s3core._process import process
        client, data = make_client(), bytes(range(256)) * 40_000
        assert client.get_object(bucket, "data", start=3, end=1000).read_all() == data[3:1000]  # the very first request
        assert bytes(next(client.get_object(bucket, "data"))) == data[:128 * 1024]
        buffer = bytearray(1000)
        assert client.get_object(bucket, "data").read_into(buffer) == 1000 and buffer == data[:1000]
        found = client.head_object(bucket, "data")
        assert client.get_object(bucket, "data", object_info=found, etag=found.etag).read_all() == data
        assert client.get_object(bucket, "data").read_all() == data
        assert process()._native is None
        streams = [client.get_object(bucket, "data") for _ in range(32)]
        for stream in streams:
            stream.prefetch()
        assert all(stream.read_all() == data for stream in streams)
        assert process()._native is not None
        """,
        counting_server,
        counting_server.bucket,
    )


def test_what_is_not_passed_comes_from_the_environment(
    counting_server: CountingServer, run_program: Callable[..., str]
) -> None:
    counting_server.put("data", b"abc")
    output = run_program(
        """
        client = S3Client()
        assert client.get_object(bucket, "data").read_all() == b"abc"
        print(client.region, client.endpoint)
        """,
        counting_server,
        counting_server.bucket,
    )
    assert output.split() == ["us-east-1", counting_server.endpoint]
    (request,) = counting_server.requests
    assert f"Credential={counting_server.access_key}/" in request.headers["authorization"]
