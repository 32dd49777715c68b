"""A tool's arguments: the JSON Schema of a function's parameters, from the types to which arguments are converted."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from kit.errors import ConfigurationError

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def describe_arguments(function: Any) -> dict[str, Any]:
    """Return the JSON Schema of an Agno function's arguments, without those that Agno fills itself.

    Agno's own schema allows only ``{}`` for a date, a path, a sequence or any value, although it calls the function
    through pydantic, which converts such arguments: https://github.com/agno-agi/agno/issues/10422

    Raises:
        ConfigurationError: a parameter without a default cannot be given by name as JSON.
    """
    from pydantic import PydanticUserError, TypeAdapter

    entrypoint, own = inspect.unwrap(function.entrypoint), function.parameters.get("properties", {})
    injected = function._framework_params or ()
    parameters = {name: one for name, one in inspect.signature(entrypoint).parameters.items() if name not in injected}
    try:
        hints = get_type_hints(entrypoint, include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigurationError(f"tool {function.name}: cannot resolve the types of its parameters: {error}") from None
    adapters: dict[str, Any] = {}
    for name, parameter in parameters.items():
        try:
            if parameter.kind not in (*_BY_NAME, inspect.Parameter.VAR_KEYWORD):
                raise TypeError("arguments are passed by name; use a list or a named parameter")
            adapter = TypeAdapter(hints.get(name, Any))
            adapter.json_schema()
            adapters[name] = adapter
        except (PydanticUserError, TypeError) as error:
            if parameter.default is parameter.empty:
                reason = str(error).splitlines()[0]
                raise ConfigurationError(
                    f"tool {function.name} cannot be called with its parameter {parameter}: {reason}"
                ) from None
    found, shared = TypeAdapter.json_schemas([(name, "validation", adapter) for name, adapter in adapters.items()])
    schemas = {name: _described(schema, own.get(name, {})) for (name, _), schema in found.items()}
    rest = next((name for name in schemas if parameters[name].kind is inspect.Parameter.VAR_KEYWORD), None)
    return {
        "type": "object", "additionalProperties": False if rest is None else schemas.pop(rest), "properties": schemas,
        "required": [name for name in schemas if parameters[name].default is inspect.Parameter.empty], **shared,
    }  # fmt: skip


def check_callable(function: Any) -> None:
    """Raise ConfigurationError unless one of Agno's functions can be called with what its schema lets be given."""
    given = function.parameters.get("properties", {})
    for name, parameter in inspect.signature(function.entrypoint).parameters.items():
        if parameter.kind in _BY_NAME and parameter.default is parameter.empty and name not in given:
            raise ConfigurationError(
                f"tool {function.name} cannot be served: Agno fills its parameter {name!r} only within a run"
            )


def _described(schema: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    return schema | ({"description": own["description"]} if "description" in own else {})
