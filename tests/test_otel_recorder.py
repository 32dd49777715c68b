"""What was recorded can be looked at: frames, a tree that is whole whatever order spans ended in, and a picture."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from kit.catalogue import (
    AGENT_TOOL_EXECUTE,
    API_QUERY_PROCESS,
    GATEWAY_CACHE_CHECK,
    GATEWAY_TOKENS_USED,
    RAG_QUERY,
    RAG_QUERY_PROCESS,
    RAG_VECTOR_SEARCH,
    USE_CASE_DOCUMENT_QA,
)
from kit.otel import Recorder, Telemetry, extract, inject, start_telemetry
from kit.otel.metrics import Store
from kit.otel.trace import UNRECORDED, Trace, plain_duration


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    started = start_telemetry("test", tenant_id="acme", capture_logging=False)
    yield started
    started.shutdown()


def _span(
    name: str, number: int, parent: int | None = None, *, start: int = 0, end: int = 1_000_000, failed: bool = False
) -> ReadableSpan:
    """A finished span of trace 1, made by hand; times in nanoseconds."""

    def context(span_id: int) -> SpanContext:
        return SpanContext(1, span_id, False, TraceFlags(1))

    return ReadableSpan(
        name=name,
        context=context(number),
        parent=None if parent is None else context(parent),
        resource=Resource({}),
        attributes={"error.type": "ValueError"} if failed else {},
        status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
        start_time=start,
        end_time=end,
    )


def _work(telemetry: Telemetry) -> str:
    with telemetry.operation(USE_CASE_DOCUMENT_QA, kind="client") as operation:
        with telemetry.operation(API_QUERY_PROCESS, kind="server", parent=extract(inject())):
            with telemetry.operation(RAG_QUERY), telemetry.operation(RAG_VECTOR_SEARCH):
                pass
            for _ in range(3):
                with telemetry.operation(AGENT_TOOL_EXECUTE):
                    pass
            with telemetry.operation(GATEWAY_CACHE_CHECK, {"cache.hit": True}):
                pass
            with suppress(ValueError), telemetry.operation(RAG_QUERY_PROCESS):
                raise ValueError("no")
        return operation.trace_id


TREE = """\
use_case.document_qa
└─ api.query.process
   ├─ rag.query
   │  └─ rag.vector.search
   ├─ agent.tool.execute × 3
   ├─ gateway.cache.check
   └─ rag.query.process ✗ ValueError"""


def test_a_trace_is_a_tree_without_ids_or_times(telemetry: Telemetry) -> None:
    trace_id = _work(telemetry)
    trace = telemetry.recorder.trace()
    assert str(trace) == repr(trace) == TREE
    assert trace.trace_id == trace_id
    assert (trace.connected, len(trace), trace.root.name) == (True, 9, "use_case.document_qa")
    assert trace.names()[:2] == ["use_case.document_qa", "api.query.process"]
    assert [node.failed for node in trace.find("rag.query.process")] == [True]
    assert 0 < trace.root.seconds <= trace.seconds


def test_a_tree_can_tell_more(telemetry: Telemetry) -> None:
    _work(telemetry)
    text = telemetry.recorder.trace().text(durations=True, attributes=("cache.hit", "missing"), fold=False)
    assert text.count("agent.tool.execute") == 3
    assert re.search(r"gateway\.cache\.check \[cache\.hit=True\]  [\d.]+ (µs|ms)$", text, re.MULTILINE)
    folded = telemetry.recorder.trace().text(durations=True)
    assert re.search(r"agent\.tool\.execute × 3  [\d.]+ (µs|ms)$", folded, re.MULTILINE)


def test_a_tree_shows_itself_as_html(telemetry: Telemetry) -> None:
    _work(telemetry)
    html = telemetry.recorder.trace()._repr_html_()
    plain = re.sub(r"<[^>]+>", "", html)
    assert plain == TREE
    assert "://" not in html
    ElementTree.fromstring(html)
    assert Trace([_span("<b>&", 1, failed=True)])._repr_html_().count("&lt;b&gt;&amp;") == 1


def test_a_trace_is_chosen_by_id_by_name_or_as_the_last(telemetry: Telemetry) -> None:
    recorder = telemetry.recorder
    with pytest.raises(LookupError, match="no span was recorded"):
        recorder.trace()
    first = _work(telemetry)
    with telemetry.operation(RAG_QUERY) as operation:
        pass
    assert recorder.trace().trace_id == operation.trace_id
    assert recorder.trace(first).trace_id == first
    assert recorder.trace(name="use_case.document_qa").trace_id == first
    assert recorder.trace_ids() == [first, operation.trace_id]
    with pytest.raises(LookupError, match="'nothing'"):
        recorder.trace(name="nothing")
    with pytest.raises(LookupError, match="no span of trace"):
        recorder.trace("ff")


def test_a_tree_is_whole_whatever_order_its_spans_ended_in() -> None:
    spans = [_span("a", 1), _span("b", 2, 1, start=2), _span("c", 3, 2, start=3), _span("d", 4, 1, start=4)]
    expected = str(Trace(spans))
    for order in ([3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]):
        assert str(Trace([spans[number] for number in order])) == expected
    assert expected == "a\n├─ b\n│  └─ c\n└─ d"


def test_what_is_missing_has_a_stand_in() -> None:
    """A parent that is still open, was forgotten, or records elsewhere leaves its children where they can be seen."""
    below_root = Trace(
        [_span("root", 1), _span("x", 3, 2, start=5), _span("y", 4, 2, start=6), _span("z", 5, 1, start=7)]
    )
    assert str(below_root) == f"root\n├─ {UNRECORDED}\n│  ├─ x\n│  └─ y\n└─ z"
    assert (below_root.connected, len(below_root)) == (False, 4)
    alone = Trace([_span("x", 3, 2, start=5), _span("z", 5, 4, start=7)])
    assert str(alone) == f"{UNRECORDED}\n├─ x\n{UNRECORDED}\n└─ z".replace("├", "└")
    with pytest.raises(LookupError, match="2 roots"):
        _ = alone.root
    assert alone.trace_id == f"{1:032x}"


def test_an_open_operation_is_not_recorded_yet(telemetry: Telemetry) -> None:
    with telemetry.operation(RAG_QUERY):
        with telemetry.operation(RAG_VECTOR_SEARCH):
            pass
        assert str(telemetry.recorder.trace()) == f"{UNRECORDED}\n└─ rag.vector.search"
    assert telemetry.recorder.trace().connected


def test_parents_in_a_circle_end() -> None:
    assert str(Trace([_span("a", 1, 2), _span("b", 2, 1, start=1), _span("c", 3, 3)])) == "a\n└─ b\nc"


def test_no_spans_are_no_trouble() -> None:
    empty = Trace([])
    assert (str(empty), len(empty), empty.seconds, empty.trace_id) == ("(no spans)", 0, 0.0, "")
    assert "no spans" in repr(empty.waterfall())


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, "0 µs"), (8.5e-7, "0.85 µs"), (0.00085, "850 µs"), (0.0123, "12.3 ms"), (4.2, "4.2 s"), (1234.0, "1,234 s")],
)
def test_durations_are_plain(seconds: float, expected: str) -> None:
    assert plain_duration(seconds) == expected


def test_frames_have_a_row_for_everything(telemetry: Telemetry) -> None:
    _work(telemetry)
    telemetry.record(GATEWAY_TOKENS_USED, 100, model="m")
    telemetry.record(GATEWAY_TOKENS_USED, 300, model="m")
    telemetry.logger("x").info("y")
    recorder = telemetry.recorder
    spans = recorder.spans()
    assert len(spans) == 9
    assert spans["name"].iloc[0] == "use_case.document_qa"
    assert spans["start"].is_monotonic_increasing
    assert spans["parent_id"].isna().sum() == 1
    failed = recorder.spans("rag.query.process").iloc[0]
    assert (failed["status"], failed["error_type"], failed["kind"]) == ("error", "ValueError", "internal")
    assert failed["events"][0]["exception.message"] == "no"
    (tokens,) = recorder.metrics("gateway.tokens.used").to_dict("records")
    assert tokens["labels"] == {"model": "m", "tenant.id": "acme"}
    assert {key: tokens[key] for key in ("kind", "unit", "count", "sum", "mean", "min", "max")} == {
        "kind": "histogram",
        "unit": "{token}",
        "count": 2,
        "sum": 400,
        "mean": 200,
        "min": 100,
        "max": 300,
    }
    assert len(recorder.logs()) == 1
    recorder.clear()
    assert (len(recorder.spans()), len(recorder.logs())) == (0, 0)
    assert recorder.total("gateway.tokens.used") == 2


def test_memory_is_bounded_and_what_was_forgotten_is_counted() -> None:
    recorder = Recorder(Store().read, spans=10, logs=5)
    for number in range(1, 26):
        recorder.keep_span(_span("a", number))
        recorder.keep_log(object())  # type: ignore[arg-type]
    assert len(recorder.finished) == 10
    assert recorder.forgotten == {"traces": 15, "logs": 20}


# --- the picture ------------------------------------------------------------------------------------------------


def _many() -> Trace:
    spans = [_span("use_case.document_qa", 1, end=3_000_000_000)]
    name = "gateway.a-name-that-is-much-longer-than-any-that-a-sensible-person-would-ever-choose"
    spans.append(_span(name, 2, 1, start=5_000, end=2_000_000_000, failed=True))
    spans += [_span("rag.embedding.generate", 10 + n, 2, start=n * 1000, end=n * 1000 + 50) for n in range(30)]
    spans += [_span(f"agent.step-{n}", 100 + n, 1, start=n, end=n + 10 + n) for n in range(70)]
    return Trace(spans)


def test_the_longest_label_is_never_cut() -> None:
    picture = _many().waterfall(title="A title " * 20)
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    page = picture.bbox
    (axes,) = picture.axes
    for text in [*picture.texts, *axes.texts]:
        box = text.get_window_extent(renderer)
        assert page.x0 <= box.x0, text.get_text()
        assert box.x1 <= page.x1, text.get_text()
    left = axes.get_window_extent(renderer).x0
    labels = [text for text in picture.texts if text.get_fontsize() == 9.0]
    assert max(text.get_window_extent(renderer).x1 for text in labels) <= left


def test_a_picture_has_title_unit_and_legend_and_is_the_same_from_the_same_data() -> None:
    picture = _many().waterfall()
    svg = picture.svg()
    text = re.sub(r"\s+", " ", " ".join(ElementTree.fromstring(svg).itertext()))
    for part in ("use_case.document_qa: 3 s", "time since the trace began (s)", "rag.embedding.generate × 30", "✗"):
        assert part in text
    assert "… and 13 shorter ones" in text  # 73 rows, of which the 60 longest are drawn
    assert "agent.step-12 " not in text
    for component in ("use_case", "gateway", "rag", "agent"):
        assert component in text
    assert _many().waterfall().svg() == svg
    assert not re.search(r"(href|src)=\"http", svg)
    assert picture._repr_mimebundle_()["image/svg+xml"] == svg
    assert repr(picture) == "Waterfall: use_case.document_qa: 3 s"


def test_a_span_of_nanoseconds_is_still_seen_within_seconds() -> None:
    (axes,) = _many().waterfall().axes
    widths = [path.get_extents().width for bars in axes.collections for path in bars.get_paths()]
    assert min(widths) >= 3.0 / 300 * 0.99


def test_components_differ_without_colour() -> None:
    (axes,) = _many().waterfall().axes
    assert len({bars.get_hatch() for bars in axes.collections}) >= 4


@pytest.mark.parametrize(("end", "unit"), [(2_000, "µs"), (2_000_000, "ms"), (2_000_000_000, "s")])
def test_the_unit_fits_the_trace(end: int, unit: str) -> None:
    (axes,) = Trace([_span("rag.query", 1, end=end)]).waterfall().axes
    assert axes.get_xlabel() == f"time since the trace began ({unit})"
    assert axes.get_xlim() == (0, pytest.approx(2.0))


def test_drawing_leaves_the_users_style_alone(telemetry: Telemetry) -> None:
    before = dict(mpl.rcParams)
    _work(telemetry)
    telemetry.recorder.waterfall(name="use_case.document_qa").svg()
    assert dict(mpl.rcParams) == before


def test_pandas_and_matplotlib_are_loaded_only_when_they_are_needed() -> None:
    code = (
        "import sys; from kit.otel import start_telemetry; from kit.catalogue import RAG_QUERY\n"
        "t = start_telemetry('x')\n"
        "with t.operation(RAG_QUERY): t.logger('x').info('y')\n"
        "print(t.recorder.trace(), [m for m in ('pandas', 'matplotlib', 'grpc', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "rag.query []\n"
