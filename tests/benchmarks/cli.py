"""The command line: `hatch run bench`."""

from __future__ import annotations

import json
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import click

from benchmarks._bucket import ForeignDataError
from benchmarks._compare import compare as compare_results
from benchmarks._compare import regressions, write_comparison
from benchmarks._peers import NAMES, library_of, parse_setting
from benchmarks._plots import write_plots
from benchmarks._report import write_report
from benchmarks._run import Plan, Progress, describe, run
from benchmarks._scale import FULL, QUICK, Scale
from benchmarks._server import SETTINGS
from benchmarks._summary import summarize
from benchmarks._target import REMOTE, Target
from benchmarks._workloads import WORKLOADS

QUICK_NAMES = ("ours",)


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
@click.option("--region", default="us-east-1", help="The region of --uri's bucket.")
@click.option(
    "--knob",
    metavar="FIELD=A,B,...",
    help="Ours by default and with each value of a client setting, and who else is named by --peer.",
)
@click.option("--python", "pythons", multiple=True, metavar="PEER=PATH", help="An interpreter for one peer.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Where to write all numbers."
)
@click.option(
    "--report", "report_file", type=click.Path(dir_okay=False, path_type=Path), help="Where to write Markdown."
)
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
        pythons=dict(python.split("=", 1) for python in pythons),
    )
    start = time.monotonic()
    results = describe(plan)

    def report(line: str) -> None:
        click.echo(f"{time.monotonic() - start:6.0f} s  {line}", err=True)

    def keep() -> None:
        if json_file is not None:
            json_file.write_text(json.dumps(results, indent=1))

    try:
        run(plan, Progress(results["records"], report, keep))
    except ForeignDataError as error:
        raise click.ClickException(str(error)) from None
    keep()
    text = write_report(results)
    if report_file is not None:
        report_file.write_text(text)
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
    sys.exit(1 if failed else 0)


@main.command()
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tolerance", default=0.1, help="How much worse a cell of ours may be, as a share.")
def compare(before: Path, after: Path, tolerance: float) -> None:
    """Compare two JSON files; fail when this project became clearly slower in any cell."""
    changes = compare_results(json.loads(before.read_text()), json.loads(after.read_text()))
    for line in write_comparison(changes):
        click.echo(line)
    worse = regressions(changes, tolerance)
    for change in worse:
        cell = change.after
        click.echo(f"{cell.setting}: {cell.workload.name} is {1 - change.ratio:.0%} slower", err=True)
    sys.exit(1 if worse else 0)


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
