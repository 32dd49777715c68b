"""A trace as a tree: who called whom, and what became of it.

The text of a tree names no id, no time and no port, so that a notebook shows the same each time it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import StatusCode

from kit.otel import semconv

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from kit.otel.waterfall import Waterfall

UNRECORDED = "(not recorded here)"
FAILED = "✗"

_STYLE = "font-family:monospace;line-height:1.5;white-space:pre;overflow-x:auto;margin:0"
_MUTED = "color:#6b7280"
_ACCENT = "color:#b4232a;font-weight:bold"


def plain_duration(seconds: float) -> str:
    """Return a duration in the unit a person would choose: 850 µs, 12.3 ms, 4.2 s."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1.0 or unit == "µs":
            amount = seconds * factor
            return f"{amount:.3g} {unit}" if amount < 1000 else f"{amount:,.0f} {unit}"
    raise AssertionError("the last unit takes every duration")


@dataclass(eq=False)
class Node:
    """A span and the spans below it, in the order in which they started.

    Attributes:
        span: None for a span that others name as their parent but that was not recorded: it is still open, was
            forgotten, or belongs to a process that records for itself.
    """

    span: ReadableSpan | None
    children: list[Node] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The span's name."""
        return UNRECORDED if self.span is None else self.span.name

    @property
    def component(self) -> str:
        """The first word of the name: who did it."""
        return "" if self.span is None else self.span.name.split(".")[0]

    @property
    def start_ns(self) -> int:
        """When the span started, in nanoseconds since the epoch; an unrecorded one with its first child."""
        if self.span is not None:
            return self.span.start_time or 0
        return min((child.start_ns for child in self.children), default=0)

    @property
    def seconds(self) -> float:
        """How long the span took."""
        if self.span is None or self.span.end_time is None or self.span.start_time is None:
            return 0.0
        return (self.span.end_time - self.span.start_time) / 1e9

    @property
    def failed(self) -> bool:
        """Whether the span's status is an error."""
        return self.span is not None and self.span.status.status_code is StatusCode.ERROR

    @property
    def error_type(self) -> str:
        """What failed, by its class."""
        return str(self.attributes.get(semconv.ERROR_TYPE, "")) if self.failed else ""

    @property
    def attributes(self) -> dict[str, Any]:
        """The span's attributes."""
        return {} if self.span is None else dict(self.span.attributes or {})

    def walk(self, depth: int = 0) -> Iterator[tuple[Node, int]]:
        """Yield this node and all below it, with their depth, in the order of the tree."""
        yield self, depth
        for child in self.children:
            yield from child.walk(depth + 1)


class Trace:
    """The recorded spans of one trace, as a tree that shows itself in a notebook.

    ``str(trace)`` has names and failures; ``trace.text(durations=True, attributes=("cache.hit",))`` has more.
    """

    def __init__(self, spans: Sequence[ReadableSpan]) -> None:
        self.roots = _grow(spans)

    @property
    def root(self) -> Node:
        """The node at the top.

        Raises:
            LookupError: there is none, or the tree is in pieces.
        """
        if len(self.roots) != 1:
            raise LookupError(f"this trace has {len(self.roots)} roots")
        return self.roots[0]

    @property
    def connected(self) -> bool:
        """Whether every span hangs below one recorded root."""
        return len(self.roots) == 1 and all(node.span is not None for node, _ in self.walk())

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty when nothing was recorded."""
        for node, _ in self.walk():
            if node.span is not None and node.span.context is not None:
                return f"{node.span.context.trace_id:032x}"
        return ""

    @property
    def seconds(self) -> float:
        """From the first start to the last end."""
        recorded = [node for node, _ in self.walk() if node.span is not None]
        if not recorded:
            return 0.0
        start = min(node.start_ns for node in recorded)
        return max((node.start_ns - start) / 1e9 + node.seconds for node in recorded)

    def __len__(self) -> int:
        return sum(node.span is not None for node, _ in self.walk())

    def walk(self) -> Iterator[tuple[Node, int]]:
        """Yield every node with its depth, in the order of the tree."""
        for root in self.roots:
            yield from root.walk()

    def names(self) -> list[str]:
        """Return the spans' names in the order of the tree."""
        return [node.name for node, _ in self.walk()]

    def find(self, name: str) -> list[Node]:
        """Return the nodes of a name."""
        return [node for node, _ in self.walk() if node.name == name]

    def text(self, *, durations: bool = False, attributes: Sequence[str] = (), fold: bool = True) -> str:
        """Return the tree as text.

        Args:
            durations: how long each span took.
            attributes: names of attributes to show where they are set.
            fold: siblings that look the same become one line, with their number.
        """
        lines = _lines(self.roots, _Labels(durations, tuple(attributes)), fold)
        return "\n".join(lines) if lines else "(no spans)"

    def waterfall(self, title: str | None = None) -> Waterfall:
        """Return the trace as a picture: its spans over time."""
        from kit.otel.waterfall import waterfall

        return waterfall(self, title)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        lines = []
        for line in self.text().splitlines():
            # The branches are muted, so that the names stand out; a failure is red as well as marked.
            stem = len(line) - len(line.lstrip("│├└─ "))
            name, mark, rest = line[stem:].partition(f" {FAILED} ")
            failure = f' <span style="{_ACCENT}">{FAILED} {escape(rest)}</span>' if mark else ""
            lines.append(f'<span style="{_MUTED}">{line[:stem]}</span>{escape(name)}{failure}')
        return f'<div style="{_STYLE}">' + "\n".join(lines) + "</div>"


@dataclass(frozen=True)
class _Labels:
    """How a node is written, and what makes two of them look the same."""

    durations: bool
    attributes: tuple[str, ...]

    def plain(self, node: Node) -> str:
        shown = [f"{key}={node.attributes[key]}" for key in self.attributes if key in node.attributes]
        suffix = f" [{', '.join(shown)}]" if shown else ""
        failure = f" {FAILED} {node.error_type}".rstrip() if node.failed else ""
        return f"{node.name}{suffix}{failure}"

    def looks(self, node: Node) -> tuple[Any, ...]:
        return (self.plain(node), *(self.looks(child) for child in node.children))

    def written(self, alike: Sequence[Node]) -> str:
        times = f" × {len(alike)}" if len(alike) > 1 else ""
        took = sum(node.seconds for node in alike)
        lasted = f"  {plain_duration(took)}" if self.durations and alike[0].span is not None else ""
        return f"{self.plain(alike[0])}{times}{lasted}"


def _lines(nodes: Sequence[Node], labels: _Labels, fold: bool, stem: str = "", top: bool = True) -> list[str]:
    groups: dict[Any, list[Node]] = {}
    for number, node in enumerate(nodes):
        groups.setdefault(labels.looks(node) if fold else number, []).append(node)
    lines: list[str] = []
    for number, alike in enumerate(groups.values(), start=1):
        last = number == len(groups)
        branch, below = ("", "") if top else (("└─ ", "   ") if last else ("├─ ", "│  "))
        lines.append(f"{stem}{branch}{labels.written(alike)}")
        # Alike to the last leaf: what is below one is below all, and only its time differs.
        children = [child for node in alike for child in node.children] if fold else alike[0].children
        lines.extend(_lines(children, labels, fold, stem + below, top=False))
    return lines


def _grow(spans: Sequence[ReadableSpan]) -> list[Node]:
    """Hang every span below its parent, whatever the order, and stand-ins where a parent is missing."""
    nodes = {span.context.span_id: Node(span) for span in spans if span.context is not None}
    missing: dict[int, Node] = {}
    roots: list[Node] = []
    for node in sorted(nodes.values(), key=lambda node: (node.start_ns, node.name)):
        parent = node.span.parent if node.span is not None else None
        if parent is None:
            roots.append(node)
        elif parent.span_id in nodes:
            nodes[parent.span_id].children.append(node)
        else:
            missing.setdefault(parent.span_id, Node(None)).children.append(node)
    # All spans of a trace descend from its root: what hangs in the air does, by a way that is not known here.
    (roots[0].children if len(roots) == 1 else roots).extend(missing.values())
    _open_circles(list(nodes.values()), roots)
    for root in roots:
        root.children.sort(key=lambda node: node.start_ns)
    return sorted(roots, key=lambda node: node.start_ns)


def _open_circles(nodes: list[Node], roots: list[Node]) -> None:
    """Cut circles of parents, which no honest sender makes, so that every span is seen and the walk ends."""
    reached = {id(node) for root in roots for node, _ in root.walk()}
    for node in sorted(nodes, key=lambda node: node.start_ns):
        if id(node) not in reached:
            for other in nodes:
                if node in other.children:
                    other.children.remove(node)
            roots.append(node)
            reached |= {id(below) for below, _ in node.walk()}
