"""The files of the explorer, read: nothing of others is fetched, nothing becomes HTML or code, nothing is missing."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

STATIC = Path(str(files("ntkpipe.pipeline.server"))) / "static"
FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]

DANGEROUS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|createContextualFragment|DOMParser"
    r"|\beval\(|new Function|setTimeout\(\s*[\"'`]|javascript:"
)
FOREIGN = re.compile(r"(https?:)?//(?!www\.w3\.org/)[a-z0-9-]+\.[a-z]", re.IGNORECASE)
"""Names of XML are no addresses."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(STATIC).as_posix())
def test_a_file_neither_asks_others_nor_makes_html_of_text(path):
    text = re.sub(r"^\s*//.*$", "", path.read_text(), flags=re.MULTILINE)
    assert path.suffix in {".html", ".css", ".js", ".svg"}
    assert not FOREIGN.search(text)
    assert not DANGEROUS.search(text)
    assert "@import" not in text
    assert "url(" not in text


def test_the_page_has_no_script_or_style_of_its_own():
    page = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", page) == []
    for name in re.findall(r'(?:src|href)="static/([^"]+)"', page):
        assert (STATIC / name).is_file()


def test_every_script_is_imported_and_every_import_is_there():
    wanted = {STATIC / "main.js", STATIC / "theme.js"}
    for path in SCRIPTS:
        for name in re.findall(r'from "([^"]+)"', path.read_text()):
            assert name.startswith(("./", "../")), f"{path}: {name}"
            wanted.add((path.parent / name).resolve())
    assert wanted == {path.resolve() for path in SCRIPTS}


def test_modules_stay_small_enough_to_be_read():
    assert [path.name for path in SCRIPTS if len(path.read_text().splitlines()) > 300] == []
