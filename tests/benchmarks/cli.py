"""The command line: `hatch run bench`."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click
from botocore.exceptions import BotoCoreError, ClientError

from benchmarks._bucket import ForeignDataError
from benchmarks._compare import compare as compare_results
from benchmarks._compare import losses, regressions, write_comparison
from benchmarks._peers import NAMES, library_of, parse_setting
from benchmarks._plots import write_plots
from benchmarks._report import write_report
from benchmarks._run import Plan, Progress, describe, run
from benchmarks._scale import FULL, QUICK, Scale
from benchmarks._server import SETTINGS
from benchmarks._summary import summarize
from benchmarks._target import REMOTE, Target
from benchmarks._workloads import WORKLOADS
from servers import ServerStartError

QUICK_NAMES = ("ours",)
_INTERRUPTED = 130  # as shells have it
_OUTPUT = click.Path(dir_okay=False, resolve_path=True, path_type=Path)  # what a link leads to, which stays a link


def _gigabytes(scale: Scale) -> str:
    return f"{scale.uploaded_bytes / 1e9:.1f}"


@click.group(invoke_without_command=True, context_settings={"show_default": True})
@click.option("--quick", is_flag=True, help="Little data and one round: shows that all works, says nothing of speed.")
@click.option("--rounds", type=click.IntRange(1), help="How often each cell is measured; 5, or 1 with --quick.")
@click.option("--setting", "settings", multiple=True, type=click.Choice(SETTINGS), help="Of the local server; all.")
@click.option("--peer", "peers", multiple=True, type=click.Choice(NAMES), help="Only these; all, or with --quick ours.")
@click.option("--workload", "patterns", multiple=True, help="Only those that match, such as 'small-*'; all.")
@click.option(
    "--uri",
    help="Measure in this bucket instead, such as s3://bucket/prefix: in a folder full/, or quick/ with --quick, which "
    f"has to be empty or that of a run before. Puts {_gigabytes(FULL)} GB there, or {_gigabytes(QUICK)} with --quick, "
    "which stay, and removes what it wrote besides.",
)
@click.option("--endpoint", help="The URL of --uri's server, when it is not AWS.")
@click.option(
    "--region",
    envvar=["AWS_REGION", "AWS_DEFAULT_REGION"],
    default="us-east-1",
    show_envvar=True,
    help="The region of --uri's bucket.",
)
@click.option(
    "--knob",
    metavar="FIELD=A,B,...",
    help="Ours by default and with each value of a client setting, and who else is named by --peer.",
)
@click.option("--python", "pythons", multiple=True, metavar="PEER=PATH", help="An interpreter for one peer.")
@click.option("--json", "json_file", type=_OUTPUT, help="Where to write all numbers.")
@click.option("--report", "report_file", type=_OUTPUT, help="Where to write Markdown.")
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="Where to write SVG and PNG.")
@click.pass_context
def main(
    context: click.Context,
    quick: bool,
    rounds: int | None,
    settings: tuple[str, ...],
    peers: tuple[str, ...],
    patterns: tuple[str, ...],
    uri: str | None,
    endpoint: str | None,
    region: str,
    knob: str | None,
    pythons: tuple[str, ...],
    json_file: Path | None,
    report_file: Path | None,
    plots: Path | None,
) -> None:
    """Measure this project and its peers, side by side.

    It fails when this project did, or when any peer delivered wrong bytes; never for being slow.
    """
    if context.invoked_subcommand is not None:
        return
    _check_options(uri, endpoint, settings, json_file, report_file, plots)
    workloads = [name for name in WORKLOADS if not patterns or any(fnmatch(name, pattern) for pattern in patterns)]
    if not workloads:
        raise click.UsageError(f"no workload matches; there are: {', '.join(WORKLOADS)}")
    scale = QUICK if quick else FULL
    remote = None if uri is None else _remote(uri, endpoint, region, scale.name)
    default_settings = ("loopback",) if quick else SETTINGS
    plan = Plan(
        scale=scale,
        rounds=rounds or (1 if quick else 5),
        settings=(REMOTE,) if remote is not None else settings or default_settings,
        peers=tuple(dict.fromkeys((*(_variants(knob) if knob else ()), *peers))) or (QUICK_NAMES if quick else NAMES),
        workloads=workloads,
        remote=remote,
        pythons=dict(_python(text) for text in pythons),
    )
    start = time.monotonic()
    results = describe(plan)

    def report(line: str) -> None:
        click.echo(f"{time.monotonic() - start:6.0f} s  {line}", err=True)

    def keep() -> None:
        if json_file is not None and results["records"]:
            _replace(json_file, json.dumps(results, indent=1))

    is_interrupted, failure = False, None
    try:
        with _terminating_as_ctrl_c():
            run(plan, Progress(results["records"], report, keep))
    except KeyboardInterrupt:
        is_interrupted = True
        report("interrupted: what follows is what was measured until then")
    except (ForeignDataError, ServerStartError, BotoCoreError, ClientError, OSError) as error:
        failure = error
    finally:
        keep()
    if results["records"]:
        text = write_report(results)
        if report_file is not None:
            _replace(report_file, text)
        if plots is not None:
            write_plots(results, plots)
        click.echo(text)
    failed = [
        cell
        for cell in summarize(results)
        if cell.is_error and (library_of(cell.peer) == "ours" or "WrongBytes" in cell.reason)
    ]
    for cell in failed:
        click.echo(f"{cell.setting}: {cell.workload.name}: {cell.peer} failed: {cell.reason}", err=True)
    if failure is not None:
        raise click.ClickException(f"it ended early: {failure}") from failure
    sys.exit(_INTERRUPTED if is_interrupted else 1 if failed else 0)


@main.command()
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tolerance", default=0.1, help="How much worse a cell of ours may be, as a share.")
def compare(before: Path, after: Path, tolerance: float) -> None:
    """Compare two JSON files of one machine, with three rounds or more.

    It fails when this project became clearly slower in any cell, or has no number there now.
    """
    old, new = _results(before), _results(after)
    if old["scale"] != new["scale"]:
        raise click.UsageError(f"scale {old['scale']} and scale {new['scale']} don't compare")
    if old["machine"] != new["machine"]:
        click.echo("These are of two machines, or systems, and the difference may be theirs.", err=True)
    changes = compare_results(old, new)
    for line in write_comparison(changes):
        click.echo(line)
    worse = regressions(changes, tolerance)
    for change in worse:
        cell = change.after
        click.echo(f"{cell.setting}: {cell.workload.name} is {1 - change.ratio:.0%} slower", err=True)
    lost = losses(old, new)
    for cell, reason in lost:
        click.echo(f"{cell.setting}: {cell.workload.name} is lost: {reason}", err=True)
    sys.exit(1 if worse or lost else 0)


def _results(file: Path) -> dict[str, Any]:
    try:
        results: dict[str, Any] = json.loads(file.read_text())
        summarize(results)
        results["scale"], results["machine"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise click.UsageError(f"{file} is not what --json writes: {type(error).__name__}: {error}") from error
    return results


def _check_options(uri: str | None, endpoint: str | None, settings: tuple[str, ...], *outputs: Path | None) -> None:
    """Refuse before hours of work what would fail after them."""
    if uri is None and endpoint is not None:
        raise click.UsageError("--endpoint goes with --uri: the local server has an endpoint of its own")
    if uri is not None and settings:
        raise click.UsageError("--setting is of the local server, and --uri is not")
    *files, plots = outputs
    try:
        for file in filter(None, files):
            if file.exists() and not file.is_file():
                raise click.UsageError(f"{file} is no file that can be replaced")
            TemporaryFile(dir=file.parent).close()  # not the file itself, which may be of an earlier run
        if plots is not None:
            plots.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"can't write there: {error}") from error
    if plots is not None and find_spec("matplotlib") is None:
        raise click.UsageError("--plots needs matplotlib")


def _replace(file: Path, text: str) -> None:
    """Write a file whole or not at all: until then there is what was there before."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.replace(file)


def _python(text: str) -> tuple[str, str]:
    peer, _, path = text.partition("=")
    if peer not in NAMES or shutil.which(path) is None:
        raise click.UsageError(f"--python is to be such as litdata=/path/to/python, not {text}")
    return peer, path


@contextmanager
def _terminating_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, which removes what lies about and keeps what was measured."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _variants(knob: str) -> tuple[str, ...]:
    field, _, values = knob.partition("=")
    variants = [f"{field}={value}" for value in values.split(",")]
    try:
        for variant in variants:
            parse_setting(variant)
    except ValueError as error:
        raise click.UsageError(f"--knob is to be such as part_size=8MiB,16MiB, not {knob}") from error
    return ("ours", *(f"ours {variant}" for variant in variants))


def _remote(uri: str, endpoint: str | None, region: str, scale_name: str) -> Target:
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise click.UsageError(f"--uri is to be s3://bucket/prefix, not {uri}")
    prefix = f"{prefix.strip('/')}/{scale_name}/".lstrip("/")
    return Target(REMOTE, scale_name, bucket, prefix, region, endpoint, None, None, "")
