"""Check what the built wheels and sdists hold, as those who install them will meet it."""

from __future__ import annotations

import email
import re
import sys
import tarfile
import zipfile
from pathlib import Path


def check_wheel(path: Path) -> list[str]:
    """Return what is wrong with a wheel."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        module = path.name.split("-")[0]
        metadata = email.message_from_bytes(wheel.read(next(n for n in names if n.endswith(".dist-info/METADATA"))))
    wrong = [f"lacks {module}/{file}" for file in ("__init__.py", "py.typed") if f"{module}/{file}" not in names]
    if not any(re.fullmatch(r".*\.dist-info/licenses/LICENSE", name) for name in names):
        wrong.append("lacks its licence")
    strangers = {name.split("/")[0] for name in names if not name.startswith((f"{module}/", f"{module}-"))}
    wrong += [f"holds {name}, which is not its own" for name in sorted(strangers)]
    if metadata["Metadata-Version"] != "2.4":
        wrong.append(f"has metadata {metadata['Metadata-Version']}, which some publishing tools refuse")
    if metadata["Version"] != path.name.split("-")[1]:
        wrong.append(f"says version {metadata['Version']}")
    for requirement in metadata.get_all("Requires-Dist") or []:
        if "==" in requirement.partition(";")[0]:
            wrong.append(f"pins {requirement}")
    return wrong


def check_sdist(path: Path) -> list[str]:
    """Return what is wrong with an sdist."""
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    needed = ["pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "PKG-INFO"]
    return [f"lacks {name}" for name in needed if name not in names]


def main() -> int:
    """Check every wheel and sdist of a folder; return the exit status."""
    folder = Path(sys.argv[1])
    failed = False
    for path in sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")]):
        wrong = check_wheel(path) if path.suffix == ".whl" else check_sdist(path)
        failed = failed or bool(wrong)
        print(f"{path.name}: {'; '.join(wrong) or 'good'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
