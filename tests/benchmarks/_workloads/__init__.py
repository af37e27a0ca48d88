"""What is measured, a family of workloads a module."""

from __future__ import annotations

from benchmarks._workloads import checkpoints, distributed, large, listing, objects, tar
from benchmarks._workloads._workload import Workload, WrongBytesError

WORKLOADS = {
    workload.name: workload
    for family in (objects, tar, large, listing, checkpoints, distributed)
    for workload in family.WORKLOADS
}

__all__ = ["WORKLOADS", "Workload", "WrongBytesError"]
