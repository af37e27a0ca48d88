"""What `import s3core` does: little."""

from __future__ import annotations

from collections.abc import Callable


def test_importing_loads_nothing_heavy_and_starts_nothing(run_program: Callable[..., str]) -> None:
    output = run_program(
        """
        heavy = "torch numpy obstore boto3 botocore urllib3 multiprocessing asyncio ssl anycrc".split()
        print([name for name in heavy if name in sys.modules], threading.active_count())
        client = make_client()
        print([name for name in heavy if name in sys.modules], threading.active_count())
        """,
        access_key_id="id",
        secret_access_key="secret",
    )
    assert output.splitlines() == ["[] 1", "[] 1"]


def test_importing_is_quick(run_program: Callable[..., str]) -> None:
    """150 ms is the bar; what is measured is the time on the processor, so that a busy machine does not fail it."""
    output = run_program(
        """
        import subprocess
        def measure(source):
            return min(
                float(subprocess.run([sys.executable, "-c", f"import time\\n{source}\\nprint(time.process_time())"],
                      capture_output=True, text=True, check=True).stdout)
                for _ in range(5)
            )
        print(measure("import s3core") - measure("pass"))
        """
    )
    assert float(output) < 0.15


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
        timeout=20,
    )
