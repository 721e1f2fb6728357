"""The voice page at /console/voice: files of the package, the same for everybody.

Plain ES modules that speak to `/v1/models` and to the realtime socket. They are open to whoever can
reach the server, for they hold nothing of it: what they ask for needs a key like everything else.
Each file has a route of its own, so no path that is sent ever meets the file system.
"""

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parents[1] / "assets" / "voice"
PAGE_PATH = "/console/voice"
PAGE_FILE = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "permissions-policy": "microphone=(self), camera=(self)",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # kept, but asked for anew: a newer server has newer files
}
FILES = {
    PAGE_PATH if file.name == PAGE_FILE else f"{PAGE_PATH}/{file.name}": file
    for file in sorted(FOLDER.iterdir())
    if file.suffix in TYPES
}
VOICE_PAGE_PATHS = frozenset(FILES)
router = APIRouter(tags=["pages"])


@router.get(PAGE_PATH, response_class=Response)
async def voice_page(request: Request) -> Response:
    """Give the page on which one talks with a model; the files it loads lie under it."""
    return _answer(request)


async def _send_file(request: Request) -> Response:
    return _answer(request)


for _path in sorted(VOICE_PAGE_PATHS - {PAGE_PATH}):
    router.routes.append(Route(_path, _send_file, methods=["GET"]))


def _answer(request: Request) -> Response:
    """Send a file, or 304 to whoever has it already."""
    file = FILES[request.scope["path"]]
    content = file.read_bytes()
    headers = {**HEADERS, "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=TYPES[file.suffix], headers=headers)
