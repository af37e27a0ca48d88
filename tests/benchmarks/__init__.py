"""Benchmarks: this project and its peers, side by side, each measurement in a fresh process; `hatch run bench`."""
