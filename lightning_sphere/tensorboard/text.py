"""Text for TensorBoard's Text tab: Markdown in which names stay what they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tensorboard.plugins.text.metadata import create_summary_metadata

from lightning_sphere.tensorboard.values import string_value

TEXT_TAG = "sphere/about"
"""What a run is."""

LONGEST = 300
"""Characters of a cell, at most."""

_QUOTED = re.compile(r"`([^`]*)`")
_PLAIN = re.compile(r"[\w.,:;+=()/ -]", re.ASCII)
"""What Markdown and HTML take as it is, within a line and outside of code."""
_CODE = re.compile(r"[\w.,:;+=(){}\[\]/\"' -]*[\w.)}\]\"']", re.ASCII)
"""What can stand between backquotes in a table."""


def text_value(tag: str, markdown: str) -> Any:
    """A text summary as TensorBoard's own plugin reads it."""
    return string_value(tag, markdown.encode(), create_summary_metadata(display_name=None, description=None))


def escaped(text: str) -> str:
    """Any text as Markdown that shows just it, also within a table."""
    return "".join(map(_escaped, shortened(text)))


def _escaped(character: str) -> str:
    if character == "_" or not _PLAIN.fullmatch(character):
        return f"&#{ord(character)};" if character.isprintable() else "&#65533;"
    return character


def code(text: str) -> str:
    """A name as code; one that could be taken for anything else is spelled in character references."""
    text = shortened(text)
    return f"`{text}`" if _CODE.fullmatch(text) else f"<code>{escaped(text)}</code>"


def marked(text: str) -> str:
    """Text whose names stand between backquotes, these as code."""
    parts = _QUOTED.split(shortened(text))
    return "".join(code(part) if index % 2 else escaped(part) for index, part in enumerate(parts) if part)


def shortened(text: str) -> str:
    """A text of :data:`LONGEST` characters at most."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell or ' ' for cell in line)} |" for line in lines)
