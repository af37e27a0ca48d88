"""The example of the guide runs against a local server, with warnings as errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from servers.counting import CountingServer

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "checkpoints.py"


def test_the_example_of_the_guide_runs(counting_server: CountingServer, root: str) -> None:
    environment = {**os.environ, **counting_server.environment(), "TQDM_DISABLE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), root, counting_server.region],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming from " + root + "/run/step-300 at step 100" in done.stdout
    assert done.stdout.endswith("all parts ran\n")
