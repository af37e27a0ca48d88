"""safetensors files on S3, loaded and saved without a local copy and without the safetensors library."""

from ._load import load_file, load_sharded
from ._open import SafeSlice, safe_open
from ._save import save_file

__all__ = [
    # Loading
    "load_file",
    "load_sharded",
    # A look inside
    "safe_open",
    "SafeSlice",
    # Saving
    "save_file",
]
