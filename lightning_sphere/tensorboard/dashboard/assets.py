"""The files that the page consists of: ours, and plotly.js from the installed plotly package."""

from __future__ import annotations

import gzip
import importlib
import importlib.metadata
import importlib.util
import threading
from collections.abc import Mapping
from pathlib import Path

from werkzeug.wrappers import Request, Response

from lightning_sphere.tensorboard.dashboard.answers import RefusedError, View, respond

STATIC = Path(__file__).parent / "static"

CONTENT_TYPES: Mapping[str, str] = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
"""What is served of :data:`STATIC`, by suffix. No HTML: TensorBoard makes the document."""

INSTALL = "pip install 'lightning-sphere[dashboard]'"
"""How to get plotly."""

YEAR = 365 * 24 * 3600


def static_views(folder: Path = STATIC) -> dict[str, View]:
    """One view per file that lies directly in a folder; no other path can be asked for.

    Args:
        folder: its files are listed now, and read at each request.

    Returns:
        Views by route, ``/static/<name>``.
    """
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {f"/static/{file.name}": _of(file) for file in files if file.suffix in CONTENT_TYPES and file.is_file()}


def _of(file: Path) -> View:
    def view(_: Request) -> Response:
        try:
            content = file.read_bytes()
        except OSError:
            raise RefusedError(404, f"{file.name} is gone; was lightning_sphere reinstalled?") from None
        return respond(content, CONTENT_TYPES[file.suffix])

    return view


class Plotly:
    """plotly.js as the plotly package brings it, compressed once. The package itself is not imported."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._compressed: tuple[Path, bytes] | None = None

    @property
    def version(self) -> str | None:
        """Version of the package; ``None`` if it is not installed, or has no plotly.js."""
        if self._file() is None:
            return None
        try:
            return importlib.metadata.version("plotly")
        except importlib.metadata.PackageNotFoundError:
            return None

    def view(self, request: Request) -> Response:
        """plotly.min.js; to be kept for a year where the address names a version."""
        file = self._file()
        if file is None:
            raise RefusedError(404, f"the charts need plotly, which is not installed: {INSTALL}")
        headers = {"Vary": "Accept-Encoding"}
        if request.args.get("v"):
            headers["Cache-Control"] = f"private, max-age={YEAR}, immutable"
        try:
            if request.accept_encodings["gzip"] > 0:
                content = self._gzipped(file)
                headers["Content-Encoding"] = "gzip"
            else:
                content = file.read_bytes()
        except OSError:
            raise RefusedError(404, f"plotly.js of the installed plotly package cannot be read: {INSTALL}") from None
        return respond(content, CONTENT_TYPES[".js"], headers=headers)

    def _gzipped(self, file: Path) -> bytes:
        with self._lock:
            if self._compressed is None or self._compressed[0] != file:
                self._compressed = file, gzip.compress(file.read_bytes(), compresslevel=6, mtime=0)
            return self._compressed[1]

    def _file(self) -> Path | None:
        """Where it lies now: the package may be installed while TensorBoard runs."""
        importlib.invalidate_caches()
        try:
            spec = importlib.util.find_spec("plotly")
        except (ImportError, ValueError):
            return None
        folders = spec.submodule_search_locations if spec is not None else None
        found = (Path(folder) / "package_data" / "plotly.min.js" for folder in folders or ())
        return next((file for file in found if file.is_file()), None)
