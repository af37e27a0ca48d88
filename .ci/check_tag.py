"""Compare a release tag, <package>-v<version>, with the package's own version and changelog."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def check_tag(tag: str, packages: Path = ROOT / "packages") -> tuple[str, str]:
    """Return the package and the version that a tag names.

    Raises:
        ValueError: The tag names no package, or a version other than the one in the package's `__about__.py`, or one
            that its changelog does not know or still calls "not released".
    """
    match = re.fullmatch(r"(?P<package>[a-z0-9-]+)-v(?P<version>[0-9]+\.[0-9]+\.[0-9]+(?:(?:a|b|rc)[0-9]+)?)", tag)
    if match is None:
        raise ValueError(f"tag {tag!r} is not <package>-v<version>, as in s3core-v0.1.0")
    package, version = match["package"], match["version"]
    folder = packages / package
    about = folder / "src" / package.replace("-", "_") / "__about__.py"
    if not about.is_file():
        known = ", ".join(sorted(path.parent.name for path in packages.glob("*/pyproject.toml")))
        raise ValueError(f"tag {tag!r} names the package {package!r}; there are {known}")
    stated = re.search(r'^__version__ = "(.+)"$', about.read_text(), re.MULTILINE)
    if stated is None or stated[1] != version:
        raise ValueError(f"tag {tag!r} says {version}, {about.relative_to(packages)} says {stated and stated[1]}")
    heading = next((line for line in (folder / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")), "")
    if heading.split()[1:2] != [version] or "not released" in heading:
        raise ValueError(f"the changelog of {package} starts with {heading!r}; head it with {version} and its date")
    return package, version


if __name__ == "__main__":
    try:
        package, version = check_tag(sys.argv[1])
    except ValueError as error:
        sys.exit(f"error: {error}")
    # The form in which a workflow step hands on its outputs.
    print(f"package={package}\nversion={version}")
