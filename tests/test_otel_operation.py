"""An operation is one span, its counter and its duration, whatever happens inside; context is put back in any case."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import random
from collections.abc import AsyncIterator, Iterator

import pytest
from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry.trace import SpanKind, StatusCode

from kit.catalogue import AGENT_LLM_CALL, GATEWAY_CACHE_HITS, RAG_QUERY, RAG_QUERY_PROCESS, RAG_VECTOR_SEARCH
from kit.errors import ConfigurationError
from kit.otel import Telemetry, extract, inject, start_telemetry


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    started = start_telemetry("test", tenant_id="acme", capture_logging=False)
    yield started
    started.shutdown()


def test_an_operation_is_a_span_with_the_rows_name_and_kind_and_the_tenant(telemetry: Telemetry) -> None:
    with telemetry.operation(RAG_VECTOR_SEARCH, {"results.count": 3}, kind="client") as operation:
        operation.set("rag.query.id", "q-1")
        operation.update({"cache.hit": False})
        operation.event("looked", {"where": "index"})
    (span,) = telemetry.recorder.finished
    assert (span.name, span.kind) == ("rag.vector.search", SpanKind.CLIENT)
    assert dict(span.attributes or {}) == {
        "openinference.span.kind": "RETRIEVER",
        "tenant.id": "acme",
        "results.count": 3,
        "rag.query.id": "q-1",
        "cache.hit": False,
    }
    assert span.status.status_code is StatusCode.UNSET
    assert [event.name for event in span.events] == ["looked"]
    assert operation.trace_id == f"{span.context.trace_id:032x}"


def test_it_counts_and_measures_with_its_outcome(telemetry: Telemetry) -> None:
    for _ in range(3):
        with telemetry.operation(RAG_QUERY):
            pass
    with pytest.raises(ValueError, match="no"), telemetry.operation(RAG_QUERY):
        raise ValueError("no")
    with telemetry.operation(RAG_QUERY, labels={"model": "m"}) as operation:
        operation.label("cached", True)
    recorder = telemetry.recorder
    assert recorder.total("rag.queries.executed") == 5
    assert recorder.total("rag.queries.executed", status="success") == 4
    assert recorder.total("rag.queries.executed", status="error", error_type="ValueError") == 1
    assert recorder.total("rag.queries.executed", model="m", cached=True, status="success") == 1
    assert recorder.total("rag.query.duration") == 5
    assert recorder.total("rag.query.duration", status="error") == 1


def test_an_exception_is_recorded_and_goes_on(telemetry: Telemetry) -> None:
    with pytest.raises(ConfigurationError), telemetry.operation(RAG_QUERY):
        raise ConfigurationError("the index is missing")
    (span,) = telemetry.recorder.finished
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "ConfigurationError: the index is missing"
    assert (span.attributes or {})["error.type"] == "ConfigurationError"
    (event,) = span.events
    attributes = dict(event.attributes or {})
    assert event.name == "exception"
    assert attributes["exception.type"] == "kit.errors.ConfigurationError"
    assert attributes["exception.message"] == "the index is missing"
    assert "test_otel_operation.py" in str(attributes["exception.stacktrace"])


def test_a_failure_can_be_told_without_an_exception(telemetry: Telemetry) -> None:
    with telemetry.operation(RAG_QUERY) as operation:
        operation.fail("RemoteError", "the other side said no")
    (span,) = telemetry.recorder.finished
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "the other side said no")
    assert telemetry.recorder.total("rag.queries.executed", status="error", error_type="RemoteError") == 1


async def test_a_cancelled_operation_is_no_failure_of_its_own(telemetry: Telemetry) -> None:
    async def work() -> None:
        with telemetry.operation(RAG_QUERY):
            await asyncio.sleep(30)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (span,) = telemetry.recorder.finished
    assert (span.status.description, list(span.events)) == ("cancelled", [])
    assert telemetry.recorder.total("rag.queries.executed", status="cancelled") == 1
    assert telemetry.recorder.total("rag.queries.executed", status="error") == 0


def test_the_former_context_comes_back_in_any_case(telemetry: Telemetry) -> None:
    before = context_api.get_current()
    with pytest.raises(ConfigurationError, match="an id never labels"), telemetry.operation(RAG_QUERY) as operation:
        operation.label("request_id", "r-1")  # refused when the operation is counted, at its end
    assert context_api.get_current() is before
    (span,) = telemetry.recorder.finished
    assert span.end_time is not None


def test_operations_nest(telemetry: Telemetry) -> None:
    with telemetry.operation(RAG_QUERY) as outer, telemetry.operation(RAG_VECTOR_SEARCH):
        telemetry.annotate({"results.count": 1})
    inner_span, outer_span = telemetry.recorder.finished
    assert inner_span.parent == outer_span.context == outer.span.get_span_context()
    assert (inner_span.attributes or {})["results.count"] == 1
    assert "results.count" not in (outer_span.attributes or {})


async def test_concurrent_tasks_do_not_mix_their_contexts(telemetry: Telemetry) -> None:
    async def work() -> tuple[str, str]:
        with telemetry.operation(RAG_QUERY) as outer:
            await asyncio.sleep(random.random() * 0.005)
            with telemetry.operation(RAG_VECTOR_SEARCH) as inner:
                await asyncio.sleep(random.random() * 0.005)
            return outer.trace_id, inner.trace_id

    pairs = await asyncio.gather(*(work() for _ in range(50)))
    assert all(outer == inner for outer, inner in pairs)
    assert len({outer for outer, _ in pairs}) == 50


async def test_a_generator_closed_in_another_task_leaves_quietly(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    async def stream() -> AsyncIterator[int]:
        with telemetry.operation(RAG_QUERY):
            for number in range(10):
                yield number

    pieces = stream()
    assert await anext(pieces) == 0
    await asyncio.create_task(pieces.aclose(), context=contextvars.Context())
    assert [span.name for span in telemetry.recorder.finished] == ["rag.query"]
    assert telemetry.recorder.total("rag.queries.executed", status="cancelled") == 1
    assert caplog.records == []


def test_what_is_served_is_never_a_child_of_what_subscribed(telemetry: Telemetry) -> None:
    with telemetry.operation(AGENT_LLM_CALL):
        with telemetry.operation(RAG_QUERY_PROCESS, kind="server"):
            pass
        with telemetry.operation(RAG_QUERY_PROCESS, kind="consumer"):
            pass
        with telemetry.operation(RAG_QUERY, kind="client"):
            pass
    server, consumer, client, caller = telemetry.recorder.finished
    assert server.parent is None
    assert consumer.parent is None
    assert client.parent == caller.context


def test_links_name_what_is_related(telemetry: Telemetry) -> None:
    with telemetry.operation(RAG_QUERY) as first:
        headers = inject()
    context = extract(headers)
    assert context is not None
    with telemetry.operation(RAG_QUERY_PROCESS, kind="consumer", links=[context]):
        pass
    linked = telemetry.recorder.finished[-1]
    assert [link.context.span_id for link in linked.links] == [first.span.get_span_context().span_id]
    assert linked.parent is None


def test_one_telemetry_serves_several_tenants(telemetry: Telemetry) -> None:
    globex = telemetry.for_tenant("globex")
    assert globex is telemetry.for_tenant("globex")
    assert globex.recorder is telemetry.recorder
    with globex.operation(RAG_QUERY):
        pass
    with telemetry.operation(RAG_QUERY):
        pass
    assert [(span.attributes or {})["tenant.id"] for span in telemetry.recorder.finished] == ["globex", "acme"]
    assert telemetry.recorder.total("rag.queries.executed", **{"tenant.id": "globex"}) == 1
    assert telemetry.recorder.total("rag.queries.executed") == 2


def test_an_unsampled_operation_is_counted_but_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    telemetry = start_telemetry("test", capture_logging=False)
    with telemetry.operation(RAG_QUERY, {"a": 1}) as outer:
        assert not outer.recording
        outer.set("b", 2)
        headers = inject()
        assert headers is not None
        assert headers["traceparent"].endswith(("-00", "-02"))
        with telemetry.operation(RAG_VECTOR_SEARCH) as inner:
            assert inner.trace_id == outer.trace_id
    with telemetry.operation(RAG_QUERY_PROCESS, kind="server", parent=extract(headers)) as remote:
        assert remote.trace_id == outer.trace_id
        assert remote.headers() == headers
    assert telemetry.recorder.finished == []
    assert telemetry.recorder.total("rag.queries.executed") == 1
    assert context_api.get_current() == {}


def test_a_sampled_parent_is_followed_by_a_service_that_samples_nothing_itself(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    other = start_telemetry("other", capture_logging=False)
    with telemetry.operation(RAG_QUERY):
        headers = inject()
    with other.operation(RAG_QUERY_PROCESS, kind="server", parent=extract(headers)):
        pass
    assert [span.name for span in other.recorder.finished] == ["rag.query.process"]


def test_disabled_telemetry_only_passes_the_senders_context_on(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    off = start_telemetry("test", tenant_id="acme")
    assert off.enabled is False
    with telemetry.operation(RAG_QUERY):
        headers = inject()
    with off.operation(RAG_QUERY_PROCESS, {"a": 1}, kind="server", parent=extract(headers)) as operation:
        operation.set("b", 1)
        operation.label("request_id", "not even looked at")
        assert operation.headers() == inject() == headers
        with off.operation(RAG_VECTOR_SEARCH) as inner:
            assert inner.trace_id == operation.trace_id
    with off.operation(RAG_QUERY) as alone:
        assert alone.trace_id == "0" * 32
        assert inject() is None
    off.count(GATEWAY_CACHE_HITS)
    off.counter(GATEWAY_CACHE_HITS).add()
    off.logger("x").error("nobody hears this")
    assert context_api.get_current() == {}
    assert off.recorder.finished == []
    assert off.recorder.metrics().empty
    assert off.recorder.logs().empty
    assert off.force_flush(0.1) is True
    off.shutdown()


def test_ids_do_not_follow_the_shared_generator(telemetry: Telemetry) -> None:
    """A notebook that seeds its random numbers in two processes must not get the same trace ids in both."""
    ids = []
    for _ in range(2):
        random.seed(0)
        with telemetry.operation(RAG_QUERY) as operation:
            ids.append(operation.trace_id)
    assert ids[0] != ids[1]


def _child_ids(telemetry: Telemetry, answers: multiprocessing.Queue[tuple[str, int]]) -> None:
    with telemetry.operation(RAG_QUERY) as operation:
        pass
    answers.put((operation.trace_id, operation.span.get_span_context().span_id))


def test_a_forked_child_makes_ids_of_its_own(telemetry: Telemetry) -> None:
    fork = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[tuple[str, int]] = fork.Queue()  # type: ignore[assignment]
    children = [fork.Process(target=_child_ids, args=(telemetry, answers)) for _ in range(2)]
    for child in children:
        child.start()
    found = [answers.get(timeout=10) for _ in children]
    for child in children:
        child.join(10)
    _child_ids(telemetry, answers)
    found.append(answers.get(timeout=10))
    assert len({trace_id for trace_id, _ in found}) == 3


def test_other_libraries_find_the_operations_span_as_the_current_one(telemetry: Telemetry) -> None:
    with telemetry.operation(RAG_QUERY) as operation:
        current = trace_api.get_current_span()
        assert current is operation.span
        current.set_attribute("theirs", 1)
        current.set_attributes({"more": "of them"})
        current.record_exception(ValueError("swallowed"))
        current.update_name("renamed")
    (span,) = telemetry.recorder.finished
    assert span.name == "renamed"
    assert (span.attributes or {})["theirs"] == 1
    assert span.events[0].name == "exception"
