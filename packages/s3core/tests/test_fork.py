"""Processes that are started by fork, spawn and forkserver: all can use S3, whatever their parent has done before.

Each test is a program of its own, because what it shows depends on everything that its process did before.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from servers import CountingServer, S3Server

pytestmark = [
    pytest.mark.usefixtures("by_obstore"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs a private copy of the native library"),
]

MiB = 2**20
DATA = random.Random(5).randbytes(6 * MiB)

# What the programs of this file share: `check` reads and writes in whatever process it runs; `in_child` runs a function
# in a forked child, and says so when the child hangs or fails.
PREAMBLE = """
import hashlib, signal, traceback
DIGEST = {digest!r}
def check(client, name="own"):
    data = client.get_object(bucket, "data").read_all()
    assert hashlib.sha256(data).hexdigest() == DIGEST
    with client.put_object(bucket, name) as stream:
        stream.write(data[:6 * 2**20])
    assert client.head_object(bucket, name).size == 6 * 2**20
    assert client.get_object(bucket, "odd//data").read_all() == b"odd"
    assert "data" in next(client.list_objects(bucket)).keys
def in_child(call, *arguments):
    pid = os.fork()
    if pid == 0:
        signal.alarm(120)  # a child that hangs is a finding
        try:
            call(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    return pid
def join(pid):
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"child ended with {{status}}"
"""


@pytest.fixture
def server(seaweedfs_server: S3Server) -> S3Server:
    """SeaweedFS, because it refuses a wrong signature."""
    return seaweedfs_server


@pytest.fixture
def run(server: S3Server, run_program: Callable[..., str]) -> Callable[..., str]:
    import hashlib

    bucket = server.create_bucket()
    store = server.boto3_client()
    store.put_object(Bucket=bucket, Key="data", Body=DATA)
    store.close()
    preamble = PREAMBLE.format(digest=hashlib.sha256(DATA).hexdigest())

    def run(source: str) -> str:
        import textwrap

        source = textwrap.dedent(source).replace(
            "import obstore\n", IMPORT_OBSTORE.format(server=server, bucket=bucket)
        )
        prepare = 'with make_client().put_object(bucket, "odd//data") as _s:\n    _s.write(b"odd")\n'
        if "# the parent sends nothing before" in source:
            prepare = ""
            _put_odd(server, bucket)
        return run_program(preamble + prepare + source, server, bucket, timeout=280, part_size=5 * MiB)

    return run


def _put_odd(server: S3Server, bucket: str) -> None:
    store = server.boto3_client()
    store.put_object(Bucket=bucket, Key="odd//data", Body=b"odd")
    store.close()


IMPORT_OBSTORE = """
import obstore, obstore.store, obstore.exceptions
from obstore.store import S3Store
def user_store():
    return S3Store({bucket!r}, endpoint={server.endpoint!r}, access_key_id={server.access_key!r},
        secret_access_key={server.secret_key!r}, region={server.region!r}, client_options={{"allow_http": True}},
        virtual_hosted_style_request=False)
def check_user_store(store):
    assert isinstance(store, S3Store) and isinstance(store, obstore.store.S3Store)
    assert bytes(obstore.get(store, "data").bytes())[:100] and len(obstore.get(store, "data").bytes()) == 6 * 2**20
    try:
        obstore.get(store, "none")
        raise SystemError("no error")
    except FileNotFoundError:
        pass
    try:
        obstore.put(store, "data", b"x", mode="create")
        raise SystemError("no error")
    except obstore.exceptions.BaseError as error:
        assert isinstance(error, obstore.exceptions.AlreadyExistsError), error
"""


def test_fifty_children_transfer_while_four_threads_of_the_parent_do(run: Callable[..., str]) -> None:
    run(
        """
        client = make_client()
        over = threading.Event()
        failures = []
        def work(n):
            while not over.is_set():
                try:
                    check(client, f"thread{n}")
                except BaseException as error:
                    failures.append(error)
                    raise
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        going = []
        for n in range(50):
            going.append(in_child(check, client, f"child{n}"))
            if len(going) == 4:
                join(going.pop(0))
        for pid in going:
            join(pid)
        over.set()
        for thread in threads:
            thread.join()
        assert not failures
        """
    )


# A process that is spawned inherits nothing; fifty of them take minutes on a busy machine, and showed nothing more.
@pytest.mark.parametrize(("method", "count"), [("forkserver", 50), ("spawn", 12)])
def test_processes_of_the_other_start_methods_transfer_while_four_threads_of_the_parent_do(
    run: Callable[..., str], method: str, count: int
) -> None:
    output = run(
        f"""
        import multiprocessing
        def work(n):
            while not over.wait(0.2):
                try:
                    check(client, f"thread{{n}}")
                except BaseException as error:
                    failures.append(error)
                    raise
        if __name__ == "__main__":
            client, over, failures = make_client(), threading.Event(), []
            threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
            for thread in threads:
                thread.start()
            context = multiprocessing.get_context({method!r})
            context.set_forkserver_preload(["s3core"])
            processes = [context.Process(target=check, args=(client, f"child{{n}}")) for n in range({count})]
            for n, process in enumerate(processes):
                process.start()
                if n >= 3:
                    processes[n - 3].join()
            for process in processes:
                process.join()
            over.set()
            for thread in threads:
                thread.join()
            assert not failures
            print(sum(process.exitcode == 0 for process in processes))
        """
    )
    assert output == f"{count}\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_each_start_method_transfer(run: Callable[..., str], method: str) -> None:
    output = run(
        f"""
        import multiprocessing
        if __name__ == "__main__":
            client = make_client()
            check(client)
            streams = [client.get_object(bucket, "data"), client.put_object(bucket, "inherited")]
            next(streams[0])
            streams[1].write(bytes(11 * 2**20))
            with multiprocessing.get_context({method!r}).Pool(3) as pool:
                pool.starmap(check, [(client, f"worker{{n}}") for n in range(12)])
            check(client)
            streams[1].close()
            assert client.head_object(bucket, "inherited").size == 11 * 2**20
            print("done")
        """
    )
    assert output.endswith("done\n")


def test_the_first_client_may_be_made_in_the_child_of_a_parent_that_used_obstore(run: Callable[..., str]) -> None:
    run(
        """
        # the parent sends nothing before
        import obstore
        store = user_store()
        check_user_store(store)
        for _ in range(3):
            join(in_child(lambda: check(make_client())))
        check_user_store(store)
        """
    )


def test_descriptors_that_the_parent_closed_and_used_again_do_not_matter(run: Callable[..., str]) -> None:
    run(
        """
        client = make_client()
        check(client)
        def close_all():
            for fd in range(3, 256):
                try:
                    os.close(fd)
                except OSError:
                    pass
            return [os.open("/dev/null", os.O_RDONLY) for _ in range(64)]
        def child():
            held = close_all()
            check(client)
            join(in_child(check, client))
        join(in_child(child))
        # In the parent only the native copy's own descriptor, which nothing needs any more.
        for fd in os.listdir("/proc/self/fd"):
            try:
                if "s3core" in os.readlink(f"/proc/self/fd/{fd}"):
                    os.close(int(fd))
            except OSError:
                pass
        held = [os.open("/dev/null", os.O_RDONLY) for _ in range(64)]
        check(client)
        join(in_child(check, client))
        """
    )


def test_grandchildren_transfer_too(run: Callable[..., str]) -> None:
    run(
        """
        client = make_client()
        check(client)
        def child(depth):
            check(client, f"depth{depth}")
            if depth:
                pids = [in_child(child, depth - 1) for _ in range(2)]
                for pid in pids:
                    join(pid)
            check(client, f"depth{depth}")
        join(in_child(child, 2))
        """
    )


def test_the_users_own_obstore_still_works_in_parent_and_child(run: Callable[..., str]) -> None:
    """In the child only where the parent had not used it, which is obstore's own limit."""
    run(
        """
        import obstore
        client = make_client()
        check(client)
        store = user_store()
        def child():
            check(client)
            check_user_store(store)
            check_user_store(user_store())
            check(client)
        join(in_child(child))
        check_user_store(store)
        check(client)
        assert sys.modules["obstore.exceptions"] is obstore.exceptions
        """
    )


def test_the_users_obstore_may_come_after_ours(run: Callable[..., str]) -> None:
    run(
        """
        check(make_client())
        assert not [name for name in sys.modules if name.startswith("obstore")]
        import obstore
        check_user_store(user_store())
        check(make_client())
        """
    )


def test_inherited_streams_do_nothing_in_the_child(run: Callable[..., str]) -> None:
    run(
        """
        client = make_client()
        reading, writing = client.get_object(bucket, "data"), client.put_object(bucket, "new")
        listing = client.list_objects(bucket, max_keys=1)
        first = bytes(next(reading))
        next(listing)
        writing.write(bytes(11 * 2**20))
        def child():
            global reading, writing
            for use in (lambda: next(reading), reading.read_all, lambda: writing.write(b"x"), writing.close):
                try:
                    use()
                    raise SystemError("usable")
                except S3Exception as error:
                    assert f"s3://{bucket}/" in str(error) and str(os.getppid()) in str(error), error
            assert [page.keys for page in listing]  # a listing goes on, with requests of its own
            writing.abort()
            reading.close()
            del reading, writing
            import gc
            gc.collect()
            check(client)
        join(in_child(child))
        assert first + reading.read_all() == client.get_object(bucket, "data").read_all()
        writing.close()
        assert client.head_object(bucket, "new").size == 11 * 2**20
        """
    )


def test_a_child_of_a_with_block_that_exits_leaves_the_parents_upload_alone(run: Callable[..., str]) -> None:
    run(
        """
        client = make_client()
        with client.put_object(bucket, "new") as stream:
            stream.write(bytes(11 * 2**20))
            pid = os.fork()
            if pid == 0:
                sys.exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            stream.write(b"end")
        assert client.head_object(bucket, "new").size == 11 * 2**20 + 3
        """
    )


@pytest.mark.parametrize("way", ["del stream", "stream.close()"])
def test_a_child_that_drops_a_stream_does_not_end_the_parents_transfers(
    counting_server: CountingServer, run_program: Callable[..., str], way: str
) -> None:
    counting_server.put("data", DATA)
    counting_server.fault(operation="GetObject", pace_bytes_per_second=2 * MiB)
    run_program(
        f"""
        import time
        client = make_client(max_attempts=1)
        info = client.head_object(bucket, "data")
        stream = client.get_object(bucket, "data", object_info=info, etag=info.etag)
        stream.prefetch()
        stream._window.confirmed()
        time.sleep(0.1)
        pid = os.fork()
        if pid == 0:
            {way}
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert len(stream.read_all()) == info.size
        """,
        counting_server,
        counting_server.bucket,
    )
    assert len([one for one in counting_server.requests if one.operation == "GetObject"]) == 6


def test_a_child_starts_from_its_parents_credentials(
    counting_server: CountingServer, run_program: Callable[..., str]
) -> None:
    counting_server.put("data", b"abc")
    output = run_program(
        """
        asked = os.open(sys.argv[0] + ".asked", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        def credentials():
            os.write(asked, b"x")
            return {"access_key_id": "fresh", "secret_access_key": "secret"}
        client = make_client(credentials=credentials)
        def read():
            assert client.get_object(bucket, "data").read_all() == b"abc"
        read()
        pid = os.fork()
        if pid == 0:
            read()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        print(os.path.getsize(sys.argv[0] + ".asked"))
        """,
        counting_server,
        counting_server.bucket,
    )
    assert output == "1\n"


def test_a_child_that_comes_while_a_thread_writes_does_not_wait_for_it(
    counting_server: CountingServer, start_program: Callable[..., subprocess.Popen[str]]
) -> None:
    counting_server.fault(operation="CreateMultipartUpload", hold=True)
    process = start_program(
        """
        import signal
        stream = make_client(part_size=5 * 2**20).put_object(bucket, "key")
        thread = threading.Thread(target=stream.write, args=(bytes(6 * 2**20),))
        thread.start()
        while stream._upload is None:
            pass
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)  # a child that waits does so for ever
            for use in (stream.close, lambda: stream.write(b"x")):
                try:
                    use()
                except S3Exception:
                    continue
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        print("child ended", flush=True)
        thread.join()
        stream.close()
        """,
        counting_server,
        counting_server.bucket,
    )
    assert process.stdout is not None
    counting_server.wait_for_requests(1, operation="CreateMultipartUpload")
    assert process.stdout.readline() == "child ended\n"
    counting_server.faults_clear()
    counting_server.release()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def test_a_fork_while_a_thread_loads_a_module_with_a_logger_goes_on(
    tmp_path: Path, run_program: Callable[..., str]
) -> None:
    """Both the loading and `logging` keep a fork waiting; taken in two orders, the parent would wait for ever."""
    (tmp_path / "loads_slowly.py").write_text(
        "import __main__, logging, time\n"
        "__main__.begun.set()\n"
        "time.sleep(1)  # meanwhile the fork begins\n"
        "logging.getLogger('loads_slowly')\n"
    )
    output = run_program(
        """
        import faulthandler, signal
        from s3core._loading import load
        faulthandler.dump_traceback_later(30, exit=True)
        begun = threading.Event()
        thread = threading.Thread(target=load, args=("loads_slowly",))
        thread.start()
        begun.wait()
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            load("loads_slowly")
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        thread.join()
        print("both ended")
        """
    )
    assert output == "both ended\n"


def test_children_that_come_while_the_first_request_is_being_made_transfer_too(run: Callable[..., str]) -> None:
    """The first request imports much and loads the native library, in whatever thread it is made."""
    run(
        """
        # the parent sends nothing before
        client = make_client()
        thread = threading.Thread(target=check, args=(client, "thread"))
        thread.start()
        pids = []
        while thread.is_alive() and len(pids) < 6:
            pids.append(in_child(check, client, f"child{len(pids)}"))
            time.sleep(0.02)
        thread.join()
        for pid in pids:
            join(pid)
        """
    )


def test_a_process_without_anonymous_files_uses_a_file(run: Callable[..., str]) -> None:
    run(
        """
        # the parent sends nothing before
        def refuse(*arguments):
            raise OSError("refused")
        os.memfd_create = refuse
        client = make_client()
        check(client)
        join(in_child(check, client))
        import glob, tempfile
        assert not glob.glob(tempfile.gettempdir() + "/s3core-*")
        """
    )


def test_a_child_that_ends_as_programs_do_waits_for_no_thread_of_its_parent(
    counting_server: CountingServer, run_program: Callable[..., str]
) -> None:
    output = run_program(
        """
        client = make_client()
        def write(number):
            while True:
                with client.put_object(bucket, f"key{number}") as stream:
                    stream.write(b"x")
        for number in range(8):
            threading.Thread(target=write, args=[number], daemon=True).start()
        sys.setswitchinterval(1e-6)  # so that a fork may find a thread at any instruction
        for _ in range(100):
            child = os.fork()
            if child == 0:
                sys.exit(7)
            os.waitpid(child, 0)
        print("all ended", flush=True)
        os._exit(0)
        """,
        counting_server,
        counting_server.bucket,
        timeout=100,
    )
    assert output == "all ended\n"
