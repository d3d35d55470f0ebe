"""HTTP answers: JSON, binary, and errors as one sentence."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from tensorboard import errors
from werkzeug.wrappers import Request, Response

_log = logging.getLogger(__name__)

View: TypeAlias = Callable[[Request], Response]


class RefusedError(Exception):
    """A request that cannot be answered.

    Args:
        status: HTTP status, 400 or 404.
        sentence: why, for a person.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def number(value: float | None) -> float | None:
    """A number as JSON has it: ``None`` where it is NaN or infinite."""
    return float(value) if value is not None and math.isfinite(value) else None


def respond(
    content: bytes, content_type: str, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer that browsers neither guess the type of nor keep without asking.

    Args:
        content: the body.
        content_type: with the charset, if it is text.
        status: HTTP status.
        headers: further ones, which replace those of the same name.
    """
    standard = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache, must-revalidate"}
    return Response(content, status=status, headers=standard | dict(headers or {}), content_type=content_type)


def json_answer(content: Any, *, status: int = 200) -> Response:
    """JSON in ASCII, without NaN."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return respond(text.encode("ascii"), "application/json", status=status)


def application(view: View) -> Any:
    """The WSGI application of a view: only GET, and every failure is an answer with one sentence in JSON."""

    @Request.application
    def serve(request: Request) -> Response:
        if request.method != "GET":
            answer = json_answer({"error": "only GET is answered here"}, status=405)
            answer.headers["Allow"] = "GET"
            return answer
        try:
            return view(request)
        except RefusedError as refusal:
            return json_answer({"error": str(refusal)}, status=refusal.status)
        except errors.PublicError as error:
            return json_answer({"error": str(error)}, status=error.http_code)
        except Exception as error:
            _log.exception("lightning_sphere: %s failed", request.path)
            return json_answer({"error": f"lightning_sphere failed: {type(error).__name__}"}, status=500)

    return serve
