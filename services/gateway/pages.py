"""The console's files, as they are served."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

_FOLDER: Final = Path(__file__).parent / "console" / "static"
_TYPES: Final = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css"}
#: A page loads what this gateway serves and nothing else, runs no script that is in its text, and is in no frame.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Pages:
    """The files, by path; read once."""

    def __init__(self) -> None:
        self._files = {f"/console/{file.name}": file.read_bytes() for file in _FOLDER.iterdir()}
        self._files["/"] = self._files.pop("/console/index.html")

    def at(self, path: str) -> bool:
        """Return whether there is a file at a path."""
        return path in self._files

    def answer(self, request: Request) -> Response:
        """Return a file; nothing of it if the browser has it already."""
        path = request.url.path
        content = self._files[path]
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"etag": tag, "cache-control": "no-cache", "content-security-policy": _POLICY}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        kind = _TYPES[Path(path).suffix or ".html"]
        return Response(content, media_type=kind, headers=headers)
