"""The process in which one piece of work is measured: `python -m benchmarks._cell SPECIFICATION OUTPUT`."""

from __future__ import annotations

import json
import statistics
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._data import samples
from benchmarks._meter import Meter
from benchmarks._peers import CannotDoError, load_peer
from benchmarks._target import Target
from benchmarks._workloads import WORKLOADS

_ENOUGH_INTERVALS = 20  # for percentiles


@dataclass(frozen=True, slots=True)
class Specification:
    """What to measure.

    Attributes:
        peer: Name of the peer.
        workload: Name of the workload; or `prepare`, to let the peer write its own format; or `survey`, to ask what
            it can't do.
        target: Where the data is.
        control_ports: Of the local server's processes, to ask for their counters; empty where there is none.
    """

    peer: str
    workload: str
    target: Target
    control_ports: tuple[int, ...] = ()

    def to_json(self) -> str:
        """Its fields, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Specification:
        """The specification that `to_json` wrote."""
        values = json.loads(text)
        return cls(**values | {"target": Target(**values["target"]), "control_ports": tuple(values["control_ports"])})


def run(specification: Specification) -> dict[str, Any]:
    """Do and measure it.

    Returns:
        What was measured; or `cannot` with the reason; or `error` with what went wrong. For `survey`, the reasons by
        workload.
    """
    try:
        peer = load_peer(specification.peer, specification.target)
        if specification.workload == "prepare":
            peer.prepare_samples(samples(specification.target))
            return {}
        if specification.workload == "survey":
            return {workload.name: peer.reason_against(workload.ability) for workload in WORKLOADS.values()}
        workload = WORKLOADS[specification.workload]
        meter = Meter(control_ports=specification.control_ports)
        workload.run(peer, meter)
    except CannotDoError as reason:
        return {"cannot": str(reason)}
    except BaseException as error:
        traceback.print_exc()
        first_line = str(error).partition("\n")[0]
        return {"error": f"{type(error).__name__}: {first_line}"[:300]}
    amount = meter.needed_bytes / 1e6 if workload.unit == "MB" else meter.units
    record = {
        "rate": amount / meter.seconds,
        "seconds": meter.seconds,
        "units": meter.units,
        "needed_bytes": meter.needed_bytes,
        "first_seconds": meter.first_seconds,
        "cpu_seconds": meter.cpu_seconds,
        "peak_rss_bytes": meter.peak_rss_bytes,
        **meter.counted,
    }
    between = meter.intervals[1:]  # the first has a number of its own
    if len(between) >= _ENOUGH_INTERVALS:
        percentiles = statistics.quantiles(between, n=100, method="inclusive")
        record |= {"p50_seconds": percentiles[49], "p99_seconds": percentiles[98]}
    return record


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(Specification.from_json(sys.argv[1]))))
