"""Give a checkout the addresses of the repository it is released from: ``python tools/release.py URL TAG``.

An index page knows no relative links, so those of README.md become absolute ones at the tag; pyproject.toml
gets the project's addresses. The release workflow runs it before it builds; nothing of it is committed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
URLS = "[project.urls]\n"
PAGES = {"Repository": "", "Changelog": "/blob/{tag}/CHANGELOG.md", "Issues": "/issues"}
PICTURES = (".png", ".svg", ".jpg")


def absolute(text: str, url: str, tag: str) -> str:
    """Make the relative links and pictures of a page at the root absolute ones."""

    def link(match: re.Match[str]) -> str:
        target = match[1]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        kind = "raw" if target.endswith(PICTURES) else "blob"
        return f"]({url}/{kind}/{tag}/{target})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)


def with_addresses(text: str, url: str, tag: str) -> str:
    """Add the addresses to the table of them in a pyproject.toml."""
    lines = "".join(f'{name} = "{url}{page.format(tag=tag)}"\n' for name, page in PAGES.items())
    return text.replace(URLS, URLS + lines, 1)


def check_tag(text: str, tag: str) -> None:
    """Refuse a tag that is not the version of a pyproject.toml."""
    version = re.search(r'^version = "(.+)"$', text, re.M)
    if version is None or tag != f"v{version[1]}":
        raise SystemExit(f"release: expected the tag v{version[1] if version else '?'}, got {tag}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite README.md and pyproject.toml of this checkout."""
    parser = argparse.ArgumentParser(prog="python tools/release.py", description=__doc__.splitlines()[0])
    parser.add_argument("url", help="https://HOST/OWNER/REPOSITORY")
    parser.add_argument("tag", help="the tag that is released, v and the version")
    options = parser.parse_args(arguments)
    project, readme = ROOT / "pyproject.toml", ROOT / "README.md"
    check_tag(project.read_text(), options.tag)
    project.write_text(with_addresses(project.read_text(), options.url, options.tag))
    readme.write_text(absolute(readme.read_text(), options.url, options.tag))
    return 0


if __name__ == "__main__":
    sys.exit(main())
