"""The whole contract as data: one row per operation, span and metric.

Everything else is derived from these rows: subjects, streams, validators, spans, instruments, tables, coverage
tests and the AsyncAPI document. A subject, span or metric name written as a literal anywhere else is a defect.

Source: the integration story's tables and code, with the corrections of the kit's design (a result comes to the
caller's inbox; ``responses``, ``results``, ``status`` are events that anyone may watch).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from kit.errors import ConfigurationError


class Mode(StrEnum):
    """How an operation travels, and what is promised."""

    EVENT = "event"  # publish/subscribe; fan-out; a stored event can be replayed
    REQUEST = "request"  # request/reply over the caller's inbox; answered or an error within the deadline
    JOB = "job"  # JetStream work queue; at least once, effect once, never lost


class Instrument(StrEnum):
    """What a metric counts with."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A metric: its name, its instrument and its unit (UCUM, as OpenTelemetry asks)."""

    name: str
    instrument: Instrument
    unit: str
    purpose: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A span, with the counter and the duration histogram that end with it."""

    name: str
    component: str
    purpose: str
    kind: str = "CHAIN"  # openinference.span.kind: AGENT, CHAIN, LLM, EMBEDDING, RETRIEVER, TOOL, GUARDRAIL, PROMPT
    counter: Metric | None = None
    duration: Metric | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPolicy:
    """How a job is retried.

    Attributes:
        ack_wait: seconds without a heartbeat after which another worker takes the job.
        max_attempts: deliveries before the job becomes a dead letter.
        backoff: seconds to wait before attempt 2, 3, …; the last value repeats.
        result_ttl: seconds for which a finished job's id is remembered, so that its effect happens once.
    """

    ack_wait: float = 10.0
    max_attempts: int = 4
    backoff: tuple[float, ...] = (0.2, 1.0, 5.0)
    result_ttl: float = 3600.0


URGENCIES = ("high", "low")  # tokens at the end of a job's subject; what is usual has none


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One subject: who sends what to whom, how, and what both sides record.

    Attributes:
        name: the row's constant, e.g. ``RAG_QUERIES``.
        prefix: the subject without its tenant, e.g. ``ai.rag.queries``.
        message_type: schema of what is sent; ``result_type``: schema of the answer (None for an event).
        send_span / handle_span: the one span on either side of the hop.
        addressed: whether one receiver can be named (``to=``), as the token of the subject after the tenant.
        stored: for an event, whether a stream keeps it for ``max_age`` seconds, to be replayed.
        prioritized: for a job, whether urgent ones overtake others, by the subject's last token (``URGENCIES``).
        served: whether a component of this kit serves the row.
    """

    name: str
    prefix: str
    mode: Mode
    component: str
    message_type: str
    result_type: str | None = None
    publisher: str
    subscriber: str
    purpose: str
    send_span: Span
    handle_span: Span
    addressed: bool = False
    stored: bool = False
    max_age: float = 30 * 86400.0
    policy: JobPolicy = JobPolicy()
    prioritized: bool = False
    served: bool = False

    def subject(self, tenant_id: str, to: str | None = None) -> str:
        """Return the subject for a tenant, and for one receiver where the row is addressed.

        Raises:
            ConfigurationError: an id that is not one, a receiver where the row has none, or one that is named like a
                level of urgency.
        """
        if to is None:
            return f"{self.prefix}.{check_id(tenant_id)}"
        if not self.addressed:
            raise ConfigurationError(f"{self.name} has no single receiver: leave `to` out")
        if self.prioritized and to in URGENCIES:
            raise ConfigurationError(f"{self.name} has no receiver {to!r}: its subject says how urgent a job is")
        return f"{self.prefix}.{check_id(tenant_id)}.{check_id(to, what='receiver')}"

    @property
    def queue(self) -> str:
        """The queue group (REQUEST) or durable consumer (JOB) that all its workers share."""
        return f"{self.component}-workers"

    @property
    def stream(self) -> str | None:
        """The JetStream stream that covers the subject, or None: never one for a REQUEST."""
        stores = self.mode is Mode.JOB or (self.mode is Mode.EVENT and self.stored)
        return self.prefix.upper().replace(".", "_") if stores else None


_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def check_id(value: str, *, what: str = "tenant_id") -> str:
    """Return a tenant or agent id unchanged, if it can stand as one token of a subject.

    Raises:
        ConfigurationError: it does not match ``^[a-z0-9][a-z0-9_-]{0,62}$``.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ConfigurationError(
            f"{what} {value!r} is refused: 1 to 63 of a-z, 0-9, '_' and '-', and not '_' or '-' first"
        )
    return value


def _count(name: str, purpose: str, unit: str = "1") -> Metric:
    return Metric(name=name, instrument=Instrument.COUNTER, unit=unit, purpose=purpose)


def _histogram(name: str, purpose: str, unit: str = "s") -> Metric:
    return Metric(name=name, instrument=Instrument.HISTOGRAM, unit=unit, purpose=purpose)


# --- metrics: the specification's names ------------------------------------------------------------------------

AGENT_TASKS_PUBLISHED = _count("agent.tasks.published", "tasks submitted to the queue", "{task}")
AGENT_TASKS_EXECUTED = _count("agent.tasks.executed", "tasks run by a worker", "{task}")
AGENT_TASK_DURATION = _histogram("agent.task.duration", "time to run a task")
AGENT_MESSAGES_SENT = _count("agent.messages.sent", "messages sent by agents", "{message}")
AGENT_MESSAGES_RECEIVED = _count("agent.messages.received", "messages handled by agents", "{message}")
AGENT_MEMORY_UPDATES = _count("agent.memory.updates", "memory items handed over for storing", "{item}")
AGENT_MEMORY_RETRIEVALS = _count("agent.memory.retrievals", "memory retrievals", "{retrieval}")
AGENT_MEMORY_RETRIEVAL_DURATION = _histogram("agent.memory.retrieval.duration", "time to retrieve memories")
AGENT_TOOLS_EXECUTED = _count("agent.tools.executed", "tool executions", "{execution}")
AGENT_TOOL_DURATION = _histogram("agent.tool.duration", "time from tool call to result")
AGENT_SESSIONS_CREATED = _count("agent.sessions.created", "sessions created", "{session}")
GATEWAY_REQUESTS_QUEUED = _count("gateway.requests.queued", "LLM requests accepted into the queue", "{request}")
GATEWAY_REQUESTS_COMPLETED = _count("gateway.requests.completed", "LLM requests finished", "{request}")
GATEWAY_REQUEST_DURATION = _histogram("gateway.request.duration", "time from LLM request to response")
GATEWAY_CACHE_HITS = _count("gateway.cache.hits", "responses answered from the cache", "{request}")
GATEWAY_CACHE_MISSES = _count("gateway.cache.misses", "responses not in the cache", "{request}")
GATEWAY_PROVIDER_CALLS = _count("gateway.provider.calls", "calls to a model provider", "{call}")
GATEWAY_TOKENS_USED = _histogram("gateway.tokens.used", "tokens of one provider call", "{token}")
GATEWAY_COST = _histogram("gateway.cost", "cost of one provider call", "USD")
GATEWAY_RATE_LIMIT_CHECKS = _count("gateway.rate-limit.checks", "rate limit checks", "{check}")
GATEWAY_RATE_LIMIT_VIOLATIONS = _count("gateway.rate-limit.violations", "requests over their rate limit", "{request}")
GATEWAY_VALIDATION_CHECKS = _count("gateway.validation.checks", "response validations", "{check}")
RAG_DOCUMENTS_QUEUED = _count("rag.documents.queued", "documents accepted into the queue", "{document}")
RAG_DOCUMENTS_INGESTED = _count("rag.documents.ingested", "documents in the index", "{document}")
RAG_INGESTION_DURATION = _histogram("rag.ingestion.duration", "time to index a document")
RAG_DOCUMENTS_PROCESSED = _count("rag.documents.processed", "documents handled by a worker", "{document}")
RAG_EMBEDDINGS_GENERATED = _count("rag.embeddings.generated", "embedding requests answered", "{request}")
RAG_EMBEDDING_DURATION = _histogram("rag.embedding.duration", "time to embed a batch of texts")
RAG_SEARCHES_EXECUTED = _count("rag.searches.executed", "searches of the index", "{search}")
RAG_SEARCH_DURATION = _histogram("rag.search.duration", "time of one search")
RAG_QUERIES_QUEUED = _count("rag.queries.queued", "queries sent", "{query}")
RAG_QUERIES_EXECUTED = _count("rag.queries.executed", "queries answered to their caller", "{query}")
RAG_QUERIES_COMPLETED = _count("rag.queries.completed", "queries finished by a worker", "{query}")
RAG_QUERY_DURATION = _histogram("rag.query.duration", "time from query to result")
RAG_RESPONSES_GENERATED = _count("rag.responses.generated", "answers generated from context", "{response}")

# --- metrics: what the specification leaves unnamed -------------------------------------------------------------

LLMOPS_OPERATIONS_LOGGED = _count("llmops.operations.logged", "operations written to the log", "{operation}")
LLMOPS_COST = _count("llmops.cost", "cost accumulated by tenant and model", "USD")
LLMOPS_REPORTS_BUILT = _count("llmops.reports.built", "usage reports built", "{report}")
MLOPS_TRAINING_JOBS = _count("mlops.training.jobs", "training jobs run", "{job}")
MLOPS_TRAINING_DURATION = _histogram("mlops.training.duration", "time of one training job")
MLOPS_PREDICTIONS_MADE = _count("mlops.predictions.made", "prediction requests answered", "{request}")
MLOPS_PREDICTION_DURATION = _histogram("mlops.prediction.duration", "time of one prediction request")
MLOPS_MODEL_SCORE = _histogram("mlops.model.score", "held-out score of a trained model", "1")
MLOPS_DEPLOYMENTS = _count("mlops.deployments", "deploy events followed by a worker", "{deployment}")
PROMPT_TEMPLATES_RENDERED = _count("prompt.templates.rendered", "templates rendered", "{render}")
PROMPT_RENDER_DURATION = _histogram("prompt.render.duration", "time to render a template")
PROMPT_CONTEXTS_BUILT = _count("prompt.contexts.built", "contexts built", "{context}")
PROMPT_TOKENS_ESTIMATED = _histogram("prompt.tokens.estimated", "estimated tokens of a built context", "{token}")
API_QUERIES_ANSWERED = _count("api.queries.answered", "questions answered end to end", "{query}")
API_QUERY_DURATION = _histogram("api.query.duration", "time from question to answer")
# The kit's own health: what was retried, died, was refused or was dropped.
JOBS_RETRIED = _count("kit.jobs.retried", "job attempts that failed and will be tried again", "{attempt}")
JOBS_DEAD = _count("kit.jobs.dead", "jobs that became dead letters", "{job}")
JOBS_FORGOTTEN = _count("kit.jobs.forgotten", "dead letters dropped because they were too old or too many", "{job}")
JOBS_DEDUPLICATED = _count("kit.jobs.deduplicated", "deliveries whose effect had happened already", "{delivery}")
MESSAGES_REFUSED = _count("kit.messages.refused", "received messages that broke their contract", "{message}")
EVENTS_INTERRUPTED = _count(
    "kit.events.interrupted",
    "subscriptions that may have missed events because their connection broke",
    "{subscription}",
)
TELEMETRY_DROPPED = _count("kit.telemetry.dropped", "spans, metrics and logs that no endpoint took", "{item}")

# --- spans ------------------------------------------------------------------------------------------------------


def _span(
    name: str,
    purpose: str,
    kind: str = "CHAIN",
    *,
    counter: Metric | None = None,
    duration: Metric | None = None,
) -> Span:
    component = {"use_case": "api", "api": "api"}.get(name.split(".")[0], name.split(".")[0])
    return Span(name=name, component=component, purpose=purpose, kind=kind, counter=counter, duration=duration)


AGENT_MESSAGE_SEND = _span("agent.message.send", "send to an agent", "AGENT", counter=AGENT_MESSAGES_SENT)
AGENT_MESSAGE_RECEIVE = _span("agent.message.receive", "handle a message", "AGENT", counter=AGENT_MESSAGES_RECEIVED)
AGENT_TASK_SUBMIT = _span("agent.task.submit", "enqueue a task", "AGENT", counter=AGENT_TASKS_PUBLISHED)
AGENT_TASK_EXECUTE = _span(
    "agent.task.execute", "run a task", "AGENT", counter=AGENT_TASKS_EXECUTED, duration=AGENT_TASK_DURATION
)
AGENT_RESULT_PUBLISH = _span("agent.result.publish", "tell a task's result", "AGENT")
AGENT_RESULT_RECEIVE = _span("agent.result.receive", "learn a task's result", "AGENT")
AGENT_STATUS_PUBLISH = _span("agent.status.publish", "tell one's presence", "AGENT")
AGENT_STATUS_RECEIVE = _span("agent.status.receive", "note an agent's presence", "AGENT")
AGENT_MEMORY_UPDATE = _span("agent.memory.update", "hand a memory over", "AGENT", counter=AGENT_MEMORY_UPDATES)
AGENT_MEMORY_STORE = _span("agent.memory.store", "store a memory", "AGENT")
AGENT_MEMORY_RETRIEVE = _span(
    "agent.memory.retrieve",
    "find memories that matter here",
    "RETRIEVER",
    counter=AGENT_MEMORY_RETRIEVALS,
    duration=AGENT_MEMORY_RETRIEVAL_DURATION,
)
AGENT_TOOL_EXECUTE = _span(
    "agent.tool.execute", "call a tool", "TOOL", counter=AGENT_TOOLS_EXECUTED, duration=AGENT_TOOL_DURATION
)
AGENT_TOOL_RUN = _span("agent.tool.run", "run a tool", "TOOL")
AGENT_TOOL_RESULT_PUBLISH = _span("agent.tool-result.publish", "tell a tool's result", "TOOL")
AGENT_TOOL_RESULT_RECEIVE = _span("agent.tool-result.receive", "watch a tool's result", "TOOL")
AGENT_SESSION_CREATE = _span("agent.session.create", "open a session", "AGENT", counter=AGENT_SESSIONS_CREATED)
AGENT_LLM_CALL = _span("agent.llm.call", "ask the gateway for the agent's next step", "CHAIN")

GATEWAY_GENERATE = _span(
    "gateway.generate",
    "send an LLM request and wait for its response",
    counter=GATEWAY_REQUESTS_QUEUED,
    duration=GATEWAY_REQUEST_DURATION,
)
GATEWAY_WORKER_PROCESS = _span("gateway.worker.process", "handle an LLM request", counter=GATEWAY_REQUESTS_COMPLETED)
GATEWAY_CACHE_CHECK = _span("gateway.cache.check", "look the request up in the cache")
GATEWAY_RATE_LIMIT_CHECK = _span(
    "gateway.rate-limit.check", "take from the tenant's allowance", "GUARDRAIL", counter=GATEWAY_RATE_LIMIT_CHECKS
)
GATEWAY_PROVIDER_CALL = _span("gateway.provider.call", "call the model", "LLM", counter=GATEWAY_PROVIDER_CALLS)
GATEWAY_VALIDATE = _span("gateway.validate", "check the response", "GUARDRAIL", counter=GATEWAY_VALIDATION_CHECKS)
GATEWAY_EMBEDDINGS_PROCESS = _span("gateway.embeddings.process", "embed a batch of texts", "EMBEDDING")
GATEWAY_RESPONSE_PUBLISH = _span("gateway.response.publish", "tell that a response was given")
GATEWAY_RESPONSE_RECEIVE = _span("gateway.response.receive", "watch a response")
GATEWAY_RATE_LIMIT_PUBLISH = _span("gateway.rate-limit.publish", "tell a rate limit violation", "GUARDRAIL")
GATEWAY_RATE_LIMIT_RECEIVE = _span("gateway.rate-limit.receive", "watch a rate limit violation", "GUARDRAIL")
GATEWAY_CACHE_INVALIDATE_PUBLISH = _span("gateway.cache.invalidate.publish", "ask every worker to forget")
GATEWAY_CACHE_INVALIDATE_RECEIVE = _span("gateway.cache.invalidate.receive", "forget cached responses")
GATEWAY_HEALTH_PUBLISH = _span("gateway.health.publish", "tell a provider's health")
GATEWAY_HEALTH_RECEIVE = _span("gateway.health.receive", "watch a provider's health")
GATEWAY_COST_ALERT_PUBLISH = _span("gateway.cost-alert.publish", "tell that a request met the budget", "GUARDRAIL")
GATEWAY_COST_ALERT_RECEIVE = _span("gateway.cost-alert.receive", "watch the budget", "GUARDRAIL")

RAG_DOCUMENT_INGEST = _span("rag.document.ingest", "enqueue a document", counter=RAG_DOCUMENTS_QUEUED)
RAG_DOCUMENT_PROCESS = _span(
    "rag.document.process",
    "chunk, embed and index a document",
    counter=RAG_DOCUMENTS_PROCESSED,
    duration=RAG_INGESTION_DURATION,
)
RAG_STATUS_PUBLISH = _span("rag.status.publish", "tell a document's progress")
RAG_STATUS_RECEIVE = _span("rag.status.receive", "watch a document's progress")
RAG_QUERY = _span("rag.query", "ask the documents", counter=RAG_QUERIES_EXECUTED, duration=RAG_QUERY_DURATION)
RAG_QUERY_PROCESS = _span("rag.query.process", "answer from the documents", counter=RAG_QUERIES_COMPLETED)
RAG_EMBEDDING_GENERATE = _span(
    "rag.embedding.generate",
    "ask the gateway for embeddings",
    "EMBEDDING",
    counter=RAG_EMBEDDINGS_GENERATED,
    duration=RAG_EMBEDDING_DURATION,
)
RAG_EMBEDDING_SUBMIT = _span("rag.embedding.submit", "enqueue texts to embed in bulk", "EMBEDDING")
RAG_EMBEDDING_PROCESS = _span("rag.embedding.process", "embed texts in bulk", "EMBEDDING")
RAG_EMBEDDING_RESULT_PUBLISH = _span("rag.embedding-result.publish", "tell that embeddings are ready", "EMBEDDING")
RAG_EMBEDDING_RESULT_RECEIVE = _span("rag.embedding-result.receive", "watch embeddings", "EMBEDDING")
RAG_RESULT_PUBLISH = _span("rag.result.publish", "tell that a query was answered")
RAG_RESULT_RECEIVE = _span("rag.result.receive", "watch answered queries")
RAG_VECTOR_SEARCH = _span(
    "rag.vector.search",
    "search the tenant's index",
    "RETRIEVER",
    counter=RAG_SEARCHES_EXECUTED,
    duration=RAG_SEARCH_DURATION,
)
RAG_RESPONSE_GENERATE = _span(
    "rag.response.generate", "generate a cited answer from context", counter=RAG_RESPONSES_GENERATED
)

LLMOPS_OPERATION_PUBLISH = _span("llmops.operation.publish", "hand an operation to the log")
LLMOPS_OPERATION_LOG = _span("llmops.operation.log", "write an operation down", counter=LLMOPS_OPERATIONS_LOGGED)
LLMOPS_COST_TRACK = _span("llmops.cost.track", "add an operation's cost and look at the thresholds")
LLMOPS_COST_ALERT_PUBLISH = _span("llmops.cost-alert.publish", "tell that spend crossed a threshold", "GUARDRAIL")
LLMOPS_COST_ALERT_RECEIVE = _span("llmops.cost-alert.receive", "watch spend", "GUARDRAIL")
LLMOPS_REPORT_REQUEST = _span("llmops.report.request", "ask for a usage report")
LLMOPS_REPORT_BUILD = _span("llmops.report.build", "build a usage report", counter=LLMOPS_REPORTS_BUILT)

MLOPS_TRAINING_SUBMIT = _span("mlops.training.submit", "enqueue a training job")
MLOPS_TRAINING_JOB = _span(
    "mlops.training.job", "train a model", counter=MLOPS_TRAINING_JOBS, duration=MLOPS_TRAINING_DURATION
)
MLOPS_PREDICTION_REQUEST = _span("mlops.prediction.request", "ask for predictions")
MLOPS_PREDICTION = _span(
    "mlops.prediction", "predict", counter=MLOPS_PREDICTIONS_MADE, duration=MLOPS_PREDICTION_DURATION
)
MLOPS_DEPLOY_PUBLISH = _span("mlops.deploy.publish", "tell which version is champion")
MLOPS_DEPLOY_RECEIVE = _span("mlops.deploy.receive", "follow the champion", counter=MLOPS_DEPLOYMENTS)

PROMPT_TEMPLATE_PUBLISH = _span("prompt.template.publish", "tell that a template changed", "PROMPT")
PROMPT_TEMPLATE_RECEIVE = _span("prompt.template.receive", "refresh a cached template", "PROMPT")
PROMPT_TEMPLATE_RENDER = _span(
    "prompt.template.render",
    "render a template",
    "PROMPT",
    counter=PROMPT_TEMPLATES_RENDERED,
    duration=PROMPT_RENDER_DURATION,
)
PROMPT_CONTEXT_REQUEST = _span("prompt.context.request", "ask for a context", "PROMPT")
PROMPT_CONTEXT_BUILD = _span(
    "prompt.context.build", "build a context within its budget", "PROMPT", counter=PROMPT_CONTEXTS_BUILT
)

USE_CASE_DOCUMENT_QA = _span("use_case.document_qa", "ask a question about documents", duration=API_QUERY_DURATION)
API_QUERY_PROCESS = _span("api.query.process", "route a question to its answer", counter=API_QUERIES_ANSWERED)

# --- operations: the 29 subjects --------------------------------------------------------------------------------

AGENT_MESSAGE = Operation(
    name="AGENT_MESSAGE", prefix="ai.agent.message", mode=Mode.EVENT, component="agents",
    message_type="agent_message", publisher="agent", subscriber="agents", addressed=True,
    purpose="agent-to-agent messages: direct to one agent, or broadcast",
    send_span=AGENT_MESSAGE_SEND, handle_span=AGENT_MESSAGE_RECEIVE, served=True,
)  # fmt: skip
AGENT_TASKS = Operation(
    name="AGENT_TASKS", prefix="ai.agent.tasks", mode=Mode.JOB, component="agents",
    message_type="agent_task", result_type="agent_result", publisher="agent manager", subscriber="worker agents",
    purpose="distribute tasks to available agents",
    send_span=AGENT_TASK_SUBMIT, handle_span=AGENT_TASK_EXECUTE, prioritized=True, addressed=True, served=True,
)  # fmt: skip
AGENT_RESULTS = Operation(
    name="AGENT_RESULTS", prefix="ai.agent.results", mode=Mode.EVENT, component="agents",
    message_type="agent_result", publisher="worker agent", subscriber="agent manager",
    purpose="watch the results of tasks",
    send_span=AGENT_RESULT_PUBLISH, handle_span=AGENT_RESULT_RECEIVE, served=True,
)  # fmt: skip
AGENT_STATUS = Operation(
    name="AGENT_STATUS", prefix="ai.agent.status", mode=Mode.EVENT, component="agents",
    message_type="agent_status", publisher="all agents", subscriber="agent manager",
    purpose="presence and status of agents",
    send_span=AGENT_STATUS_PUBLISH, handle_span=AGENT_STATUS_RECEIVE, served=True,
)  # fmt: skip
AGENT_MEMORY = Operation(
    name="AGENT_MEMORY", prefix="ai.agent.memory", mode=Mode.JOB, component="agents",
    message_type="memory_item", result_type="memory_receipt", publisher="agent", subscriber="memory service",
    purpose="persist memories asynchronously",
    send_span=AGENT_MEMORY_UPDATE, handle_span=AGENT_MEMORY_STORE, served=True,
)  # fmt: skip
AGENT_TOOLS = Operation(
    name="AGENT_TOOLS", prefix="ai.agent.tools", mode=Mode.JOB, component="agents",
    message_type="tool_request", result_type="tool_result", publisher="agent", subscriber="tool executor",
    purpose="execute tools",
    send_span=AGENT_TOOL_EXECUTE, handle_span=AGENT_TOOL_RUN, served=True,
)  # fmt: skip
AGENT_TOOL_RESULTS = Operation(
    name="AGENT_TOOL_RESULTS", prefix="ai.agent.tool-results", mode=Mode.EVENT, component="agents",
    message_type="tool_result", publisher="tool executor", subscriber="agent",
    purpose="watch the results of tools",
    send_span=AGENT_TOOL_RESULT_PUBLISH, handle_span=AGENT_TOOL_RESULT_RECEIVE, served=True,
)  # fmt: skip
GATEWAY_REQUESTS = Operation(
    name="GATEWAY_REQUESTS", prefix="ai.gateway.requests", mode=Mode.JOB, component="gateway",
    message_type="llm_request", result_type="llm_response", publisher="components", subscriber="gateway workers",
    purpose="queue LLM requests",
    send_span=GATEWAY_GENERATE, handle_span=GATEWAY_WORKER_PROCESS, prioritized=True, served=True,
)  # fmt: skip
GATEWAY_RESPONSES = Operation(
    name="GATEWAY_RESPONSES", prefix="ai.gateway.responses", mode=Mode.EVENT, component="gateway",
    message_type="llm_response", publisher="gateway workers", subscriber="anyone",
    purpose="watch LLM responses",
    send_span=GATEWAY_RESPONSE_PUBLISH, handle_span=GATEWAY_RESPONSE_RECEIVE, served=True,
)  # fmt: skip
GATEWAY_RATE_LIMIT = Operation(
    name="GATEWAY_RATE_LIMIT", prefix="ai.gateway.rate-limit", mode=Mode.EVENT, component="gateway",
    message_type="rate_limit_event", publisher="rate limiter", subscriber="monitoring",
    purpose="rate limit violations",
    send_span=GATEWAY_RATE_LIMIT_PUBLISH, handle_span=GATEWAY_RATE_LIMIT_RECEIVE, served=True,
)  # fmt: skip
GATEWAY_CACHE_INVALIDATE = Operation(
    name="GATEWAY_CACHE_INVALIDATE", prefix="ai.gateway.cache.invalidate", mode=Mode.EVENT, component="gateway",
    message_type="cache_invalidation", publisher="anyone", subscriber="gateway workers",
    purpose="forget cached responses",
    send_span=GATEWAY_CACHE_INVALIDATE_PUBLISH, handle_span=GATEWAY_CACHE_INVALIDATE_RECEIVE, served=True,
)  # fmt: skip
GATEWAY_HEALTH = Operation(
    name="GATEWAY_HEALTH", prefix="ai.gateway.health", mode=Mode.EVENT, component="gateway",
    message_type="provider_health", publisher="gateway workers", subscriber="health monitor",
    purpose="health of model providers",
    send_span=GATEWAY_HEALTH_PUBLISH, handle_span=GATEWAY_HEALTH_RECEIVE, served=True,
)  # fmt: skip
GATEWAY_COST_ALERTS = Operation(
    name="GATEWAY_COST_ALERTS", prefix="ai.gateway.cost-alerts", mode=Mode.EVENT, component="gateway",
    message_type="cost_alert", publisher="gateway workers", subscriber="alerting", stored=True,
    purpose="one request refused by, or close to, the tenant's budget",
    send_span=GATEWAY_COST_ALERT_PUBLISH, handle_span=GATEWAY_COST_ALERT_RECEIVE, served=True,
)  # fmt: skip
GATEWAY_EMBEDDINGS = Operation(
    name="GATEWAY_EMBEDDINGS", prefix="ai.gateway.embeddings", mode=Mode.REQUEST, component="gateway",
    message_type="embedding_request", result_type="embedding_response", publisher="RAG, agents",
    subscriber="gateway workers", purpose="embed a batch of texts now",
    send_span=RAG_EMBEDDING_GENERATE, handle_span=GATEWAY_EMBEDDINGS_PROCESS, served=True,
)  # fmt: skip
RAG_INGEST = Operation(
    name="RAG_INGEST", prefix="ai.rag.ingest", mode=Mode.JOB, component="rag",
    message_type="rag_document", result_type="rag_status", publisher="components", subscriber="RAG workers",
    purpose="queue documents for indexing", policy=JobPolicy(ack_wait=30.0),
    send_span=RAG_DOCUMENT_INGEST, handle_span=RAG_DOCUMENT_PROCESS, served=True,
)  # fmt: skip
RAG_STATUS = Operation(
    name="RAG_STATUS", prefix="ai.rag.status", mode=Mode.EVENT, component="rag",
    message_type="rag_status", publisher="RAG workers", subscriber="anyone",
    purpose="watch documents being indexed",
    send_span=RAG_STATUS_PUBLISH, handle_span=RAG_STATUS_RECEIVE, served=True,
)  # fmt: skip
RAG_QUERIES = Operation(
    name="RAG_QUERIES", prefix="ai.rag.queries", mode=Mode.REQUEST, component="rag",
    message_type="rag_query", result_type="rag_result", publisher="components", subscriber="RAG workers",
    purpose="ask the tenant's documents",
    send_span=RAG_QUERY, handle_span=RAG_QUERY_PROCESS, served=True,
)  # fmt: skip
RAG_RESULTS = Operation(
    name="RAG_RESULTS", prefix="ai.rag.results", mode=Mode.EVENT, component="rag",
    message_type="rag_result", publisher="RAG workers", subscriber="anyone",
    purpose="watch answered queries",
    send_span=RAG_RESULT_PUBLISH, handle_span=RAG_RESULT_RECEIVE, served=True,
)  # fmt: skip
RAG_EMBEDDINGS = Operation(
    name="RAG_EMBEDDINGS", prefix="ai.rag.embeddings", mode=Mode.JOB, component="gateway",
    message_type="embedding_request", result_type="embedding_response", publisher="RAG workers",
    subscriber="gateway workers", purpose="embed texts in bulk", policy=JobPolicy(ack_wait=30.0),
    send_span=RAG_EMBEDDING_SUBMIT, handle_span=RAG_EMBEDDING_PROCESS, served=True,
)  # fmt: skip
RAG_EMBEDDING_RESULTS = Operation(
    name="RAG_EMBEDDING_RESULTS", prefix="ai.rag.embedding-results", mode=Mode.EVENT, component="gateway",
    message_type="embedding_response", publisher="gateway workers", subscriber="anyone",
    purpose="watch bulk embeddings", served=True,
    send_span=RAG_EMBEDDING_RESULT_PUBLISH, handle_span=RAG_EMBEDDING_RESULT_RECEIVE,
)  # fmt: skip
LLMOPS_OPERATIONS = Operation(
    name="LLMOPS_OPERATIONS", prefix="ai.llmops.operations", mode=Mode.EVENT, component="llmops",
    message_type="llm_operation", publisher="gateway workers", subscriber="LLMOps", stored=True,
    purpose="log every LLM operation",
    send_span=LLMOPS_OPERATION_PUBLISH, handle_span=LLMOPS_OPERATION_LOG, served=True,
)  # fmt: skip
LLMOPS_COST_ALERTS = Operation(
    name="LLMOPS_COST_ALERTS", prefix="ai.llmops.cost-alerts", mode=Mode.EVENT, component="llmops",
    message_type="cost_alert", publisher="LLMOps", subscriber="alerting", stored=True,
    purpose="aggregated spend crossed a threshold",
    send_span=LLMOPS_COST_ALERT_PUBLISH, handle_span=LLMOPS_COST_ALERT_RECEIVE, served=True,
)  # fmt: skip
LLMOPS_REPORTS = Operation(
    name="LLMOPS_REPORTS", prefix="ai.llmops.reports", mode=Mode.REQUEST, component="llmops",
    message_type="usage_report_request", result_type="usage_report", publisher="anyone", subscriber="LLMOps",
    purpose="usage reports",
    send_span=LLMOPS_REPORT_REQUEST, handle_span=LLMOPS_REPORT_BUILD, served=True,
)  # fmt: skip
MLOPS_TRAINING = Operation(
    name="MLOPS_TRAINING", prefix="ai.mlops.training", mode=Mode.JOB, component="mlops",
    message_type="ml_training_job", result_type="ml_training_result", publisher="components",
    subscriber="training workers", purpose="queue training jobs", policy=JobPolicy(ack_wait=30.0),
    send_span=MLOPS_TRAINING_SUBMIT, handle_span=MLOPS_TRAINING_JOB, served=True,
)  # fmt: skip
MLOPS_PREDICTIONS = Operation(
    name="MLOPS_PREDICTIONS", prefix="ai.mlops.predictions", mode=Mode.REQUEST, component="mlops",
    message_type="ml_prediction_request", result_type="ml_prediction", publisher="components",
    subscriber="prediction workers", purpose="predict with the champion",
    send_span=MLOPS_PREDICTION_REQUEST, handle_span=MLOPS_PREDICTION, served=True,
)  # fmt: skip
MLOPS_DEPLOY = Operation(
    name="MLOPS_DEPLOY", prefix="ai.mlops.deploy", mode=Mode.EVENT, component="mlops",
    message_type="ml_deployment", publisher="MLOps", subscriber="prediction workers", stored=True,
    purpose="which version is champion",
    send_span=MLOPS_DEPLOY_PUBLISH, handle_span=MLOPS_DEPLOY_RECEIVE, served=True,
)  # fmt: skip
PROMPT_TEMPLATES = Operation(
    name="PROMPT_TEMPLATES", prefix="ai.prompt.templates", mode=Mode.EVENT, component="prompts",
    message_type="prompt_template", publisher="prompt store", subscriber="every reader", stored=True,
    purpose="a template or a label changed",
    send_span=PROMPT_TEMPLATE_PUBLISH, handle_span=PROMPT_TEMPLATE_RECEIVE, served=True,
)  # fmt: skip
PROMPT_CONTEXT = Operation(
    name="PROMPT_CONTEXT", prefix="ai.prompt.context", mode=Mode.REQUEST, component="prompts",
    message_type="prompt_context_request", result_type="prompt_context", publisher="components",
    subscriber="prompt service", purpose="build a context within a token budget",
    send_span=PROMPT_CONTEXT_REQUEST, handle_span=PROMPT_CONTEXT_BUILD, served=True,
)  # fmt: skip
API_QUERIES = Operation(
    name="API_QUERIES", prefix="ai.api.queries", mode=Mode.REQUEST, component="document_qa",
    message_type="api_query", result_type="api_answer", publisher="API", subscriber="document Q&A",
    purpose="ask a question end to end",
    send_span=USE_CASE_DOCUMENT_QA, handle_span=API_QUERY_PROCESS, served=True,
)  # fmt: skip

OPERATIONS: tuple[Operation, ...] = tuple(row for row in globals().values() if isinstance(row, Operation))
SPANS: tuple[Span, ...] = tuple(row for row in globals().values() if isinstance(row, Span))
METRICS: tuple[Metric, ...] = tuple(row for row in globals().values() if isinstance(row, Metric))

# What the bus itself sends beside the operations' own messages.
ERROR = "error"  # the typed answer of a handler that failed
DEAD_LETTER = "dead_letter"  # a job that failed for good, with its evidence
LLM_CHUNK = "llm_chunk"  # one piece of a streamed response, on the caller's inbox

# Subjects of the bus's own, within a tenant's account; the tokens that follow are named beside each.
RESULTS_PREFIX = "kit.results"  # .<stream of the job>.<caller>.<job>: a result, remembered; its caller listens there
DEAD_LETTERS_PREFIX = "kit.dead"  # .<stream of the job>.<job>: evidence, and .payload beside it: the job, unchanged
CHUNKS_PREFIX = "kit.chunks"  # .<caller>.<call>: the pieces of one streamed answer

# A key-value store that more than one component reads: every agent's last ``agent_status``, by agent and process.
AGENT_PRESENCE = "agent_presence"
AGENT_PRESENCE_SECONDS = 3600.0  # after which it is forgotten

MESSAGE_TYPES: tuple[str, ...] = tuple(
    sorted(
        {row.message_type for row in OPERATIONS}
        | {row.result_type for row in OPERATIONS if row.result_type is not None}
        | {ERROR, DEAD_LETTER, LLM_CHUNK}
    )
)


def suggest_operation(given: object) -> str:
    """Return a hint at the row that a wrong argument (a subject, a name, a message type) probably meant."""
    from difflib import get_close_matches

    text = given if isinstance(given, str) else type(given).__name__
    for row in OPERATIONS:
        if text == row.prefix or text.startswith(f"{row.prefix}."):
            return f"use kit.catalogue.{row.name}"
    words = re.sub(r"[^a-z0-9]", "_", text[:100].lower()).removeprefix("ai_")
    names = {row.name.lower(): row.name for row in OPERATIONS}
    near = get_close_matches(words, names, n=1, cutoff=0.6)
    if near:
        return f"use kit.catalogue.{names[near[0]]}"
    return "use a row of kit.catalogue, such as kit.catalogue.RAG_QUERIES; `kit catalogue` lists them all"
