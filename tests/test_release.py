"""A release is one version everywhere, and its pages have links that work on an index page."""

from __future__ import annotations

import re

import pytest
from support.paths import ROOT
from support.tools import load_tool

import slimfast

release = load_tool("release")
PROJECT = (ROOT / "pyproject.toml").read_text()


def test_one_version_everywhere() -> None:
    version = slimfast.__version__
    assert f'version = "{version}"\n' in PROJECT
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    sections = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert sections[:2] == ["Unreleased", version]
    release.check_tag(PROJECT, f"v{version}")
    with pytest.raises(SystemExit, match=f"expected the tag v{version}, got v9"):
        release.check_tag(PROJECT, "v9")


def test_links_of_the_readme_work_on_an_index_page() -> None:
    text = release.absolute((ROOT / "README.md").read_text(), "https://host/a/b", "v1")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    known = re.findall(r"\]\(https://host/a/b/(?:blob|raw)/v1/([^)#\s]+)", text)
    assert [path for path in known if not (ROOT / path).exists()] == []
    assert release.absolute("[a](b.md#c) ![d](e.png) [f](#g) [h](https://i)", "https://x", "v1") == (
        "[a](https://x/blob/v1/b.md#c) ![d](https://x/raw/v1/e.png) [f](#g) [h](https://i)"
    )


def test_a_release_adds_its_addresses_once() -> None:
    text = release.with_addresses(PROJECT, "https://host/a/b", "v1")
    assert 'Repository = "https://host/a/b"\n' in text
    assert 'Changelog = "https://host/a/b/blob/v1/CHANGELOG.md"\n' in text
    assert len(text.splitlines()) == len(PROJECT.splitlines()) + 3


def test_a_wheel_is_made_for_every_python_that_is_promised() -> None:
    promised = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PROJECT)
    built = re.findall(r"cp3(\d+)-manylinux_x86_64", PROJECT)
    assert promised == built
    assert f'requires-python = ">=3.{promised[0]}"' in PROJECT


def test_extras_are_named_and_no_index_is_advised() -> None:
    extras = set(re.findall(r"^(\w+) = \[", PROJECT.partition("optional-dependencies]")[2], re.M))
    for path in (ROOT / "slimfast").rglob("*.py"):
        text = path.read_text()
        assert "pip install 'slimfast" not in text, path
        assert set(re.findall(r"the extra 'slimfast\[(\w+)\]'", text)) <= extras, path
