"""What every test of the repository shares: the local S3 servers, and an environment that names no real account."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tests"))  # also before pytest reads `pythonpath`

from hypothesis import settings

from servers.fixtures import *  # noqa: F403

# A loaded machine makes an example slow, not wrong.
settings.register_profile("s3torch", deadline=None)
settings.load_profile("s3torch")


def _forget_real_accounts() -> None:
    """Keep tests away from the credentials, endpoints and proxies of whoever runs them."""
    for name in list(os.environ):
        if name.upper().startswith("AWS_") or name.lower() in {"http_proxy", "https_proxy", "all_proxy"}:
            del os.environ[name]
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull


_forget_real_accounts()
# A shell starts what it runs in the background with Ctrl-C ignored, and so all that this starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
