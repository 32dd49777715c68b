"""Every attribute name that the kit writes, pinned in one table.

Standard names equal the constants of the installed ``opentelemetry-semantic-conventions`` and
``openinference-semantic-conventions`` (a test compares them). They are written out, because the first keeps most of
them in modules that are marked as moving, and the second is a package of its own for a few strings.

Names of spans and metrics are not here but in ``kit.catalogue``.

Source: OpenTelemetry semantic conventions 1.41; OpenInference semantic conventions; the integration story's tables.
"""

from __future__ import annotations

from typing import Final

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.41.0"

# --- resource ---------------------------------------------------------------------------------------------------
SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_NAMESPACE: Final = "service.namespace"
SERVICE_INSTANCE_ID: Final = "service.instance.id"

# --- everywhere -------------------------------------------------------------------------------------------------
TENANT_ID: Final = "tenant.id"  # the kit's own: the conventions have no name for it
USER_ID: Final = "user.id"
SESSION_ID: Final = "session.id"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
EXCEPTION: Final = "exception"  # the event's name
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"
CODE_FILE_PATH: Final = "code.file.path"
CODE_FUNCTION_NAME: Final = "code.function.name"
CODE_LINE_NUMBER: Final = "code.line.number"
OTEL_METRIC_OVERFLOW: Final = "otel.metric.overflow"

# --- messaging --------------------------------------------------------------------------------------------------
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_DESTINATION_NAME: Final = "messaging.destination.name"
MESSAGING_DESTINATION_TEMPLATE: Final = "messaging.destination.template"
MESSAGING_DESTINATION_TEMPORARY: Final = "messaging.destination.temporary"
MESSAGING_DESTINATION_SUBSCRIPTION_NAME: Final = "messaging.destination.subscription.name"
MESSAGING_CONSUMER_GROUP_NAME: Final = "messaging.consumer.group.name"
MESSAGING_CLIENT_ID: Final = "messaging.client.id"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
MESSAGING_MESSAGE_CONVERSATION_ID: Final = "messaging.message.conversation_id"
MESSAGING_MESSAGE_BODY_SIZE: Final = "messaging.message.body.size"
MESSAGING_MESSAGE_ENVELOPE_SIZE: Final = "messaging.message.envelope.size"
MESSAGING_BATCH_MESSAGE_COUNT: Final = "messaging.batch.message_count"
# Values. The conventions list no NATS among the systems; its name in lower case is what they ask for then.
MESSAGING_SYSTEM_NATS: Final = "nats"
MESSAGING_OPERATION_TYPE_SEND: Final = "send"
MESSAGING_OPERATION_TYPE_RECEIVE: Final = "receive"
MESSAGING_OPERATION_TYPE_PROCESS: Final = "process"
MESSAGING_OPERATION_TYPE_SETTLE: Final = "settle"
# Nothing in the conventions counts attempts of any broker but one.
MESSAGE_ATTEMPT: Final = "message.attempt"
MESSAGE_TYPE: Final = "message.type"
MESSAGE_SCHEMA_VERSION: Final = "message.schema_version"

# --- generative AI ----------------------------------------------------------------------------------------------
GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_CONVERSATION_ID: Final = "gen_ai.conversation.id"
GEN_AI_OUTPUT_TYPE: Final = "gen_ai.output.type"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P: Final = "gen_ai.request.top_p"
GEN_AI_REQUEST_TOP_K: Final = "gen_ai.request.top_k"
GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_FREQUENCY_PENALTY: Final = "gen_ai.request.frequency_penalty"
GEN_AI_REQUEST_PRESENCE_PENALTY: Final = "gen_ai.request.presence_penalty"
GEN_AI_REQUEST_STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
GEN_AI_REQUEST_SEED: Final = "gen_ai.request.seed"
GEN_AI_REQUEST_CHOICE_COUNT: Final = "gen_ai.request.choice.count"
GEN_AI_REQUEST_STREAM: Final = "gen_ai.request.stream"
GEN_AI_REQUEST_ENCODING_FORMATS: Final = "gen_ai.request.encoding_formats"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
GEN_AI_INPUT_MESSAGES: Final = "gen_ai.input.messages"  # content
GEN_AI_OUTPUT_MESSAGES: Final = "gen_ai.output.messages"  # content
GEN_AI_SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"  # content
GEN_AI_AGENT_ID: Final = "gen_ai.agent.id"
GEN_AI_AGENT_NAME: Final = "gen_ai.agent.name"
GEN_AI_AGENT_DESCRIPTION: Final = "gen_ai.agent.description"
GEN_AI_AGENT_VERSION: Final = "gen_ai.agent.version"
GEN_AI_DATA_SOURCE_ID: Final = "gen_ai.data_source.id"
GEN_AI_EMBEDDINGS_DIMENSION_COUNT: Final = "gen_ai.embeddings.dimension.count"
GEN_AI_PROMPT_NAME: Final = "gen_ai.prompt.name"
GEN_AI_TOKEN_TYPE: Final = "gen_ai.token.type"
GEN_AI_TOOL_NAME: Final = "gen_ai.tool.name"
GEN_AI_TOOL_TYPE: Final = "gen_ai.tool.type"
GEN_AI_TOOL_DESCRIPTION: Final = "gen_ai.tool.description"
GEN_AI_TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
GEN_AI_TOOL_CALL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"  # content
GEN_AI_TOOL_CALL_RESULT: Final = "gen_ai.tool.call.result"  # content
GEN_AI_RETRIEVAL_QUERY_TEXT: Final = "gen_ai.retrieval.query.text"  # content
# Newer than 1.41: from the conventions' own repository for generative AI, written only on request.
GEN_AI_USAGE_TEXT_INPUT_TOKENS: Final = "gen_ai.usage.text.input_tokens"
GEN_AI_USAGE_TEXT_OUTPUT_TOKENS: Final = "gen_ai.usage.text.output_tokens"

# --- OpenInference ----------------------------------------------------------------------------------------------
OPENINFERENCE_SPAN_KIND: Final = "openinference.span.kind"
LLM_MODEL_NAME: Final = "llm.model_name"
LLM_PROVIDER: Final = "llm.provider"
LLM_INVOCATION_PARAMETERS: Final = "llm.invocation_parameters"
LLM_TOKEN_COUNT_PROMPT: Final = "llm.token_count.prompt"
LLM_TOKEN_COUNT_COMPLETION: Final = "llm.token_count.completion"
LLM_TOKEN_COUNT_TOTAL: Final = "llm.token_count.total"
LLM_COST_TOTAL: Final = "llm.cost.total"
EMBEDDING_MODEL_NAME: Final = "embedding.model_name"
INPUT_VALUE: Final = "input.value"  # content
INPUT_MIME_TYPE: Final = "input.mime_type"
OUTPUT_VALUE: Final = "output.value"  # content
OUTPUT_MIME_TYPE: Final = "output.mime_type"
OPENINFERENCE_TOOL_NAME: Final = "tool.name"
PROMPT_ID: Final = "prompt.id"
RETRIEVAL_DOCUMENTS: Final = "retrieval.documents"  # a prefix: .0.document.id, .0.document.score, …

# --- the integration story's own names --------------------------------------------------------------------------
AGENT_ID: Final = "agent.id"
SOURCE_AGENT_ID: Final = "source.agent.id"
TARGET_AGENT_ID: Final = "target.agent.id"
TASK_ID: Final = "task.id"
TASK_TYPE: Final = "task.type"
MESSAGE_ID: Final = "message.id"
MEMORY_TYPE: Final = "memory.type"
MEMORY_COUNT: Final = "memory.count"
TOOL_NAME: Final = "tool.name"
TOOLS_COUNT: Final = "tools.count"
LLM_MODEL: Final = "llm.model"
LLM_TOKENS: Final = "llm.tokens"
LLM_COST: Final = "llm.cost"
GATEWAY_MODEL: Final = "gateway.model"
GATEWAY_TENANT_ID: Final = "gateway.tenant_id"
GATEWAY_PROMPT_LENGTH: Final = "gateway.prompt.length"
REQUEST_ID: Final = "request.id"
MODEL: Final = "model"
PROVIDER: Final = "provider"
CACHE_HIT: Final = "cache.hit"
CACHE_KEY: Final = "cache.key"
RATE_LIMIT_ALLOWED: Final = "rate-limit.allowed"
TOKENS_PROMPT: Final = "tokens.prompt"
TOKENS_COMPLETION: Final = "tokens.completion"
TOKENS_TOTAL: Final = "tokens.total"
COST_USD: Final = "cost.usd"
VALIDATION_LEVEL: Final = "validation.level"
VALIDATION_PASSED: Final = "validation.passed"
RAG_TENANT_ID: Final = "rag.tenant_id"
RAG_DOCUMENT_ID: Final = "rag.document.id"
RAG_QUERY_ID: Final = "rag.query.id"
RAG_QUERY_LENGTH: Final = "rag.query.length"
CHUNKS_COUNT: Final = "chunks.count"
EMBEDDING_MODEL: Final = "embedding.model"
EMBEDDING_DIMENSION: Final = "embedding.dimension"
RESULTS_COUNT: Final = "results.count"
QUERY: Final = "query"  # content
RESPONSE_RECEIVED: Final = "response.received"
RESPONSE_TOKENS: Final = "response.tokens"

# --- what the kit adds, since the story says "track" and names nothing ------------------------------------------
COST_CURRENCY: Final = "cost.currency"
PROMPT_NAME: Final = "prompt.name"
PROMPT_VERSION: Final = "prompt.version"
PROMPT_LABEL: Final = "prompt.label"
PROMPT_CHARACTERS: Final = "prompt.characters"
PROMPT_TOKENS: Final = "prompt.tokens"
PROMPT_TOKEN_BUDGET: Final = "prompt.token_budget"
PROMPT_TOKEN_ESTIMATOR: Final = "prompt.token_estimator"
PROMPT_ITEMS_INCLUDED: Final = "prompt.items.included"
PROMPT_ITEMS_TRUNCATED: Final = "prompt.items.truncated"
PROMPT_ITEMS_LEFT_OUT: Final = "prompt.items.left_out"
MODEL_VERSION: Final = "model.version"
MODEL_SCORE: Final = "model.score"
TRAINING_ROWS: Final = "training.rows"
PREDICTION_ROWS: Final = "prediction.rows"
COST_AMOUNT: Final = "cost.amount"
RAG_MODE: Final = "rag.mode"
RAG_SUPPORT: Final = "rag.support"
RAG_SUPPORTED: Final = "rag.supported"
RAG_TOP_SIMILARITY: Final = "rag.top_similarity"
OPERATION_TYPE: Final = "operation.type"
OPERATION_REPEATED: Final = "operation.repeated"
ALERTS_RAISED: Final = "alerts.raised"
MODEL_NAME: Final = "model.name"
MODEL_TYPE: Final = "model.type"
TRAINING_DATA: Final = "training.data"
TRAINING_RUN_ID: Final = "training.run.id"
TRAINING_STAGE: Final = "training.stage"
TRAINING_PROGRESS: Final = "training.progress"
DEPLOYMENT_REVISION: Final = "deployment.revision"

# Attributes that hold what people and models wrote: never set unless asked for (``kit.otel.genai``).
CONTENT: Final = frozenset(
    {
        GEN_AI_INPUT_MESSAGES,
        GEN_AI_OUTPUT_MESSAGES,
        GEN_AI_SYSTEM_INSTRUCTIONS,
        GEN_AI_TOOL_CALL_ARGUMENTS,
        GEN_AI_TOOL_CALL_RESULT,
        GEN_AI_RETRIEVAL_QUERY_TEXT,
        INPUT_VALUE,
        OUTPUT_VALUE,
        QUERY,
    }
)
