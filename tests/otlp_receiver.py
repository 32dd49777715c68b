"""A real OTLP receiver: the official protobuf services over gRPC, and the same messages over HTTP.

It knows nothing of the kit, so that what it has taken is what any collector would have taken. It can also misbehave:
``refuse`` answers UNAVAILABLE or 503, ``hang`` takes the call and never answers.
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb2
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

Protocol = Literal["grpc", "http/protobuf"]
Behaviour = Literal["accept", "refuse", "hang"]

_REQUESTS = {
    "/v1/traces": trace_pb2.ExportTraceServiceRequest,
    "/v1/metrics": metrics_pb2.ExportMetricsServiceRequest,
    "/v1/logs": logs_pb2.ExportLogsServiceRequest,
}
_RESPONSES = {
    "/v1/traces": trace_pb2.ExportTraceServiceResponse,
    "/v1/metrics": metrics_pb2.ExportMetricsServiceResponse,
    "/v1/logs": logs_pb2.ExportLogsServiceResponse,
}


class OtlpReceiver:
    """Takes what is exported and keeps it.

    Attributes:
        endpoint: what OTEL_EXPORTER_OTLP_ENDPOINT has to be.
        requests: the messages as they came, with their path and headers.
    """

    def __init__(
        self, protocol: Protocol = "grpc", behaviour: Behaviour = "accept", *, tls: tuple[Path, Path] | None = None
    ) -> None:
        self.protocol = protocol
        self._tls = tls  # files of the certificate chain and of its key
        self.behaviour = behaviour
        self.requests: list[tuple[str, Any, dict[str, str]]] = []
        self._released = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        port = self._start_grpc() if self.protocol == "grpc" else self._start_http()
        self.endpoint = f"http://127.0.0.1:{port}" if self._tls is None else f"https://localhost:{port}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._released.set()
        self._stop()

    def _start_grpc(self) -> int:
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
        trace_grpc.add_TraceServiceServicer_to_server(_service("/v1/traces", self), server)
        metrics_grpc.add_MetricsServiceServicer_to_server(_service("/v1/metrics", self), server)
        logs_grpc.add_LogsServiceServicer_to_server(_service("/v1/logs", self), server)
        if self._tls is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            chain, key = (path.read_bytes() for path in self._tls)
            port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
        server.start()
        self._stop = lambda: server.stop(grace=None).wait(2.0)
        return port

    def _start_http(self) -> int:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_HttpHandler,), {"receiver": self}))
        server.daemon_threads = True
        if self._tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*self._tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

        def stop() -> None:
            server.shutdown()
            server.server_close()

        self._stop = stop
        return int(server.server_address[1])

    def take(self, path: str, request: Any, headers: dict[str, str]) -> bool:
        """Keep a request, or misbehave; say whether it was taken."""
        if self.behaviour == "hang":
            self._released.wait(60.0)
            return False
        if self.behaviour == "refuse":
            return False
        with self._lock:
            self.requests.append((path, request, headers))
        return True

    def _of(self, path: str) -> list[Any]:
        with self._lock:
            return [request for at, request, _ in self.requests if at == path]

    @property
    def spans(self) -> list[Any]:
        """Every span that was taken, as its protobuf message."""
        return [
            span
            for request in self._of("/v1/traces")
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def metrics(self) -> dict[str, Any]:
        """The last state of every metric, by name."""
        return {
            metric.name: metric
            for request in self._of("/v1/metrics")
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    @property
    def logs(self) -> list[Any]:
        """Every log record that was taken."""
        return [
            record
            for request in self._of("/v1/logs")
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    @property
    def resources(self) -> dict[str, dict[str, Any]]:
        """The resource's attributes, by path."""
        found: dict[str, dict[str, Any]] = {}
        for path, request, _ in self.requests:
            for _, groups in request.ListFields():
                found[path] = attributes(groups[0].resource.attributes)
        return found


def _service(path: str, receiver: OtlpReceiver) -> Any:
    base: type = {
        "/v1/traces": trace_grpc.TraceServiceServicer,
        "/v1/metrics": metrics_grpc.MetricsServiceServicer,
        "/v1/logs": logs_grpc.LogsServiceServicer,
    }[path]

    class Service(base):  # type: ignore[misc]
        def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the official name
            headers = {str(key): str(value) for key, value in context.invocation_metadata()}
            if not receiver.take(path, request, headers):
                context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
            return _RESPONSES[path]()

    return Service()


class _HttpHandler(BaseHTTPRequestHandler):
    receiver: OtlpReceiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = _REQUESTS[self.path]()
        request.ParseFromString(body)
        taken = self.receiver.take(self.path, request, headers)
        self.send_response(200 if taken else 503)
        self.send_header("Content-Type", "application/x-protobuf")
        answer = _RESPONSES[self.path]().SerializeToString()
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the caller did not wait for a hanging answer
            self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


class Mute:
    """A port that takes connections and never says anything."""

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


def dead_endpoint() -> str:
    """Return the endpoint of a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def value(of: AnyValue) -> Any:
    """Return a protobuf value as a Python value."""
    kind = of.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [value(item) for item in of.array_value.values]
    if kind == "kvlist_value":
        return attributes(of.kvlist_value.values)
    return getattr(of, kind)


def attributes(of: Any) -> dict[str, Any]:
    """Return protobuf attributes as a dict."""
    pairs: list[KeyValue] = list(of)
    return {pair.key: value(pair.value) for pair in pairs}
