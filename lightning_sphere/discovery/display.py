"""How a discovery looks: in a terminal, as plain text, and in a notebook."""

from __future__ import annotations

import html
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from lightning_sphere.discovery.graph import without_compiled
from lightning_sphere.discovery.repeats import Row, collapse

if TYPE_CHECKING:
    from lightning_sphere.discovery.result import Discovery
    from lightning_sphere.groups import ScaleGroup

READABLE = 46
"""Reasons have a column of their own if it is at least so wide; else they have lines of their own."""

VERDICT = 24
"""Widest column of what is invariant."""

MUCH = 0.1
"""A share of ``eps`` in what a norm divides by that is told."""

INDENT = "    "
"""Stands before a reason that has lines of its own."""

LISTED = 12
"""So many names of a joint set are listed."""

LEGEND = (
    "Invariant: multiplied by any positive number, the weight (or each filter, row, block of it) leaves the loss as "
    "it is. Jointly: only if the whole set is multiplied by the same number."
)

TERMINAL = {"yes": "green", "jointly": "yellow", "unknown": "red", "no": "", "frozen": "dim"}
NOTEBOOK = {"yes": "#2da44e", "jointly": "#c98a00", "unknown": "#d1434b", "no": "#8c959f", "frozen": "#8c959f"}
"""Colours that can be told from each other on white and on black."""


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    name: str
    count: int
    """How many weights it stands for."""
    shape: str
    state: str
    """Key of the colours."""
    verdict: str
    """What is invariant: ``per filter``, ``no``."""
    why: str
    reason: str
    """All of it in one sentence."""

    @property
    def times(self) -> str:
        """The count, if it is more than one."""
        return f" ({self.count}x)" if self.count > 1 else ""


def title(discovery: Discovery) -> str:
    """What was found, in one line."""
    count, total = len(discovery.groups), len(discovery.layers)
    verb = "is" if count == 1 else "are"
    text = f"{count} of {total} weight{'s' * (total != 1 or count == 0)} {verb} scale-invariant by structure"
    sizes = [len(names) for names in discovery.joint_sets]
    if sizes:
        text += f"; {len(sizes)} joint set{'s' * (len(sizes) > 1)} of {_in_words(sizes)} tensors"
    return text + (f"; {len(discovery.frozen)} frozen" if discovery.frozen else "")


def lines(discovery: Discovery, expand: bool = False) -> list[Line]:
    """The table, with repeated blocks told as one unless ``expand``."""
    order = {name: place for place, name in enumerate(discovery.order)}
    layers = sorted((*discovery.layers, *discovery.frozen), key=lambda layer: order.get(layer.parameter, len(order)))
    rows = [Row(layer.name, layer.reason + _remark(layer), (_shape(layer), layer.kind)) for layer in layers]
    result = []
    for row in rows if expand else collapse(rows):
        state, verdict, why = _parts(row.text)
        shape = row.same[0] if isinstance(row.same, tuple) else ""
        result.append(Line(row.name, row.count, shape, state, verdict, why, row.text))
    return result


def joint_sets(discovery: Discovery, expand: bool = False) -> list[tuple[str, list[str]]]:
    """What is invariant only together: how many tensors, and which."""
    found = []
    for names in discovery.joint_sets:
        plain = [without_compiled(name) for name in names]
        shown = plain if expand else [row.name for row in collapse([Row(name) for name in plain])]
        if len(shown) > LISTED and not expand:
            shown = [*shown[:LISTED], f"{len(shown) - LISTED} more"]
        found.append((f"Invariant only together ({len(names)} tensors)", shown))
    return found


class Page:
    """A discovery for a terminal of any width.

    Args:
        discovery: What was found.
        expand: Whether each weight of repeated blocks has a line of its own.
    """

    def __init__(self, discovery: Discovery, expand: bool = False) -> None:
        self.discovery, self.expand = discovery, expand

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(title(self.discovery), style="bold")
        found = lines(self.discovery, self.expand)
        if not found:
            return
        yield Text()
        beside = [max(len(line.name + line.times) for line in found), max(len(line.shape) for line in found)]
        if options.max_width - sum(beside) - VERDICT - 3 >= READABLE:
            yield _columns(found)
        else:
            yield from _stacked(found, console, options.max_width)
        for heading, names in joint_sets(self.discovery, self.expand):
            yield Text()
            yield Text(f"{heading}: {', '.join(names)}", overflow="fold")
        yield Text()
        yield Text(LEGEND, style="dim")


def to_text(discovery: Discovery, width: int, expand: bool = False) -> str:
    """The table as plain text."""
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(Page(discovery, expand))
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().split("\n"))


def _columns(found: Sequence[Line]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("weight", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    table.add_column("invariant", max_width=VERDICT)
    table.add_column("why", overflow="fold", ratio=1)
    for line in found:
        colour = TERMINAL[line.state]
        table.add_row(Text(line.name + line.times), line.shape, Text(line.verdict, style=colour), Text(line.why))
    return table


def _stacked(found: Sequence[Line], console: Console, width: int) -> RenderResult:
    """A line that says which weight, and its whole reason below."""
    for line in found:
        yield Text.assemble((line.name, "bold"), f"{line.times}  {line.shape}", overflow="fold")
        start = line.reason[: len(line.reason) - len(line.why)]
        why = Text.assemble((start, TERMINAL[line.state]), line.why, overflow="fold")
        for part in why.wrap(console, max(width - len(INDENT), 1)):
            part.rstrip()
            yield Text.assemble(INDENT, part)


# -- notebook ----------------------------------------------------------------------------------------------------------

STYLE = (
    ".lightning-sphere{overflow-x:auto}"
    ".lightning-sphere table{border-collapse:collapse;color:inherit;background:none}"
    ".lightning-sphere tr{background:none}"
    ".lightning-sphere td,.lightning-sphere th{text-align:left;vertical-align:baseline;padding:2px 14px 2px 0;border:0;"
    "border-bottom:1px solid rgba(128,128,128,.25);white-space:nowrap}"
    ".lightning-sphere td:nth-child(3){white-space:normal;min-width:9em}"
    ".lightning-sphere td:last-child{white-space:normal;min-width:18em}"
    ".lightning-sphere code{background:none;color:inherit;font-size:.95em}"
    ".lightning-sphere small{opacity:.7}"
)


def to_html(discovery: Discovery, expand: bool = False) -> str:
    """The table for a notebook; nothing of a name is taken for HTML."""
    parts = [f"<style>{STYLE}</style>", f'<div class="lightning-sphere"><p><b>{html.escape(title(discovery))}</b></p>']
    found = lines(discovery, expand)
    if found:
        heads = "".join(f"<th>{head}</th>" for head in ("weight", "shape", "invariant", "why"))
        parts.append(f"<table><thead><tr>{heads}</tr></thead><tbody>")
        for line in found:
            dot = f'<span style="color:{NOTEBOOK[line.state]}">&#9679;</span> '
            cells = (
                _code(line.name) + line.times,
                html.escape(line.shape),
                dot + _marked(line.verdict),
                _marked(line.why),
            )
            parts.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        parts.append("</tbody></table>")
        for heading, names in joint_sets(discovery, expand):
            parts.append(f"<p>{html.escape(heading)}: {', '.join(_code(name) for name in names)}</p>")
        parts.append(f"<p><small>{html.escape(LEGEND)}</small></p>")
    return "".join(parts) + "</div>"


def _code(name: str) -> str:
    return f"<code>{html.escape(name)}</code>"


def _marked(text: str) -> str:
    """Text with its quoted names as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


# -- parts of a line ---------------------------------------------------------------------------------------------------


def _parts(reason: str) -> tuple[str, str, str]:
    """Cut a reason into a state, a verdict and the rest."""
    if match := re.fullmatch(r"invariant (.+?): (.+)", reason):
        return "yes", match[1], match[2]
    if reason == "invariant":
        return "yes", "yes", ""
    if match := re.fullmatch(r"not invariant alone; jointly (.+)", reason):
        return "jointly", "jointly", match[1]
    if match := re.fullmatch(r"not invariant: (.+)", reason):
        return "no", "no", match[1]
    if reason.startswith("frozen"):
        return "frozen", "frozen", reason.partition(": ")[2]
    if reason.startswith("unknown"):
        return "unknown", "unknown", reason.removeprefix("unknown: ")
    return "no", "no", reason


def _remark(layer: ScaleGroup) -> str:
    """A warning where the norm's ``eps`` leaves little of the invariance."""
    share = layer.eps_share or 0.0
    return f" (its eps is {share:.0%} of what it divides by)" if layer.invariant and share >= MUCH else ""


def _shape(layer: ScaleGroup) -> str:
    return "x".join(map(str, layer.shape))


def _in_words(sizes: Sequence[int]) -> str:
    """Sizes of sets: ``14``, ``2 and 14``, ``12 (3 times) and 14``."""
    counts = sorted(Counter(sizes).items())
    words = [f"{size}" if count == 1 or len(counts) == 1 else f"{size} ({count} times)" for size, count in counts]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
