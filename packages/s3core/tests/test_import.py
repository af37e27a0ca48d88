"""What `import s3core` does: little, so that it is quick."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from servers import CountingServer

# What takes long to load, or starts something, of the standard library. The bar for `import s3core` is 150 ms, measured
# by hand on an idle machine with bytecode in place; what keeps it there is to load none of these and nothing of others.
HEAVY = """
    asyncio concurrent.futures.process email http http.client http.cookiejar json multiprocessing pickle secrets shutil
    socket ssl subprocess tempfile unittest urllib.error urllib.request urllib.response uuid xml.sax
"""


def test_importing_loads_nothing_heavy_and_starts_nothing(run_program: Callable[..., str]) -> None:
    output = run_program(
        f"""
        standard, heavy = sys.stdlib_module_names, {HEAVY!r}.split()
        def report():
            loaded = set(sys.modules) - modules_at_start
            others = {{name.partition(".")[0] for name in loaded}} - standard - {{"s3core"}}
            print(sorted(others), sorted(loaded.intersection(heavy)), threading.active_count())
        report()
        client = make_client()
        report()
        """,
        access_key_id="id",
        secret_access_key="secret",
    )
    assert output.splitlines() == ["[] [] 1", "[] [] 1"]


def test_a_process_with_a_client_that_was_used_ends_at_once(run_program: Callable[..., str], moto_server) -> None:  # type: ignore[no-untyped-def]
    bucket = moto_server.create_bucket()
    run_program(
        """
        client = make_client()
        list(client.list_objects(bucket))
        stream = client.get_object(bucket, "none")
        stream.prefetch()
        """,
        moto_server,
        bucket,
        timeout=60,
    )


def test_the_end_of_a_process_warns_of_no_connection_that_was_left_open(
    start_program: Callable[..., subprocess.Popen[str]],
    counting_server: CountingServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counting_server.put("large", bytes(20_000_000))
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    process = start_program(
        """
        client = make_client()
        list(client.list_objects(bucket))
        b"".join(client.get_object(bucket, "large"))
        with client.put_object(bucket, "small") as stream:
            stream.write(b"x")
        b"".join(client.get_object(bucket, "small"))
        """,
        counting_server,
        counting_server.bucket,
    )
    assert process.communicate(timeout=60) == ("", "")
