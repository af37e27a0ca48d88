"""A release tag goes out only when it agrees with the package's version and changelog."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CheckTag = Callable[[str, Path], tuple[str, str]]


@pytest.fixture
def check_tag() -> CheckTag:
    names = runpy.run_path(str(ROOT / ".ci" / "check_tag.py"))
    function: CheckTag = names["check_tag"]
    return function


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    source = tmp_path / "s3-thing" / "src" / "s3_thing"
    source.mkdir(parents=True)
    (source / "__about__.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "s3-thing" / "pyproject.toml").write_text("")
    (tmp_path / "s3-thing" / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 (2030-01-02)\n")
    return tmp_path


def test_a_tag_that_agrees_names_its_package_and_version(check_tag: CheckTag, packages: Path) -> None:
    assert check_tag("s3-thing-v1.2.0", packages) == ("s3-thing", "1.2.0")


@pytest.mark.parametrize("tag", ["v1.2.0", "s3-thing-1.2.0", "s3-thing-v1.2", "s3-thing-v1.2.0\n", "S3-thing-v1.2.0"])
def test_a_tag_of_another_form_is_refused(check_tag: CheckTag, packages: Path, tag: str) -> None:
    with pytest.raises(ValueError, match="is not <package>-v<version>"):
        check_tag(tag, packages)


def test_a_tag_of_an_unknown_package_names_those_there_are(check_tag: CheckTag, packages: Path) -> None:
    with pytest.raises(ValueError, match="there are s3-thing"):
        check_tag("s3-other-v1.2.0", packages)


def test_a_tag_of_another_version_is_refused(check_tag: CheckTag, packages: Path) -> None:
    with pytest.raises(ValueError, match=r"says 1\.3\.0, .* says 1\.2\.0"):
        check_tag("s3-thing-v1.3.0", packages)


@pytest.mark.parametrize("heading", ["## 1.1.0 (2029-01-02)", "## 1.2.0 (not released)", ""])
def test_a_changelog_that_does_not_know_the_release_refuses_it(
    check_tag: CheckTag, packages: Path, heading: str
) -> None:
    (packages / "s3-thing" / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    with pytest.raises(ValueError, match="changelog of s3-thing"):
        check_tag("s3-thing-v1.2.0", packages)
