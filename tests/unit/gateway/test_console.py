"""The console's files: made from the sources that are here, and served so that nothing else is loaded or run."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from typer.testing import CliRunner

from services.cli.commands import app
from services.gateway.app import make_app
from services.gateway.console import bundle
from services.gateway.routes import public_routes
from tests.unit.gateway.test_app import Services

WORDS = (bundle.FOLDER / "src" / "words.js").read_text()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(public_routes(), Services()))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


def test_bundle_is_of_the_sources_that_are_here() -> None:
    """If this fails: `make console`."""
    assert bundle.bundled_of() == bundle.fingerprint()


def test_lock_file_names_no_registry() -> None:
    assert "resolved" not in (bundle.FOLDER / "package-lock.json").read_text()


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html"), ("/console/app.js", "text/javascript"), ("/console/app.css", "text/css")]
)
async def test_file_is_served_and_may_load_nothing_from_elsewhere(
    client: httpx.AsyncClient, path: str, kind: str
) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)
    policy = dict(each.strip().split(" ", 1) for each in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    again = await client.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_page_names_only_files_that_are_served(client: httpx.AsyncClient) -> None:
    page = (await client.get("/")).text
    for place in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert place.startswith("data:") or (await client.get(place)).status_code == 200
    assert "http" not in page


def test_every_word_has_both_languages() -> None:
    entries = re.findall(r"^  (\w+): (\[.*\]),$", WORDS, re.MULTILINE)
    assert len(entries) > 50
    for name, texts in entries:
        english, chinese = json.loads(texts)
        assert english, name
        assert chinese, name
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", chinese)), name


def test_every_word_that_a_page_uses_is_there() -> None:
    known = set(re.findall(r"^  (\w+): \[", WORDS, re.MULTILINE))
    acts = re.findall(r"const ACTS = \[(.*)\];", (bundle.FOLDER / "src" / "pages" / "tour.js").read_text())[0]
    assert {f"{act}{part}" for act in json.loads(f"[{acts}]") for part in ("Title", "Press", "Watch")} <= known
    for file in (bundle.FOLDER / "src").rglob("*.js"):
        used = set(re.findall(r'\bword\("(\w+)"', file.read_text()))
        assert used <= known, (file.name, used - known)


def test_every_command_that_a_page_shows_is_there() -> None:
    """`commands.js` names them by their words."""
    text = (bundle.FOLDER / "src" / "commands.js").read_text()
    found = re.findall(r'=> \["([a-z-]+)"(?:, "([a-z][a-z-]*)")?', text)
    assert len(found) >= 15
    for words in found:
        done = CliRunner().invoke(app, [*filter(None, words), "--help"])
        assert done.exit_code == 0, words
        assert " ".join(filter(None, words)) in done.output
