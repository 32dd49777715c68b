"""Templates are rendered with the variables they declare, in the sandbox, within time, size and memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kit.components.prompts import rendering, sandbox
from kit.components.prompts.errors import (
    ForbiddenInTemplate,
    MissingVariable,
    RenderFailed,
    RenderTooLarge,
    RenderTooLong,
    SuperfluousVariable,
    TemplateRefused,
    WrongVariableType,
)
from kit.components.prompts.rendering import Renderer, check_values, declare

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    made = Renderer(seconds=0.4, max_chars=1000, processes=1)
    yield made
    await made.close()


async def render(renderer: Renderer, source: str, **values: Any) -> str:
    return await renderer.render("t", "1", source, values)


async def test_renders_with_values(renderer: Renderer) -> None:
    source = "Hello {{ name }}:\n{% for item in items %}\n- {{ item.title | upper }}\n{% endfor %}\n"
    text = await render(renderer, source, name="Ada", items=[{"title": "a"}, {"title": "b"}])
    assert text == "Hello Ada:\n- A\n- B\n"


async def test_inspect_names_every_variable(renderer: Renderer) -> None:
    assert await renderer.inspect("t", "{{ b }}{% for x in xs %}{{ x }}{{ a.b }}{% endfor %}") == ("a", "b", "xs")


@pytest.mark.parametrize(
    ("source", "reason", "line"),
    [
        ("fine\n{{ broken", "end of print statement", 2),
        ("{% include 'other' %}", "include has no place", 1),
        ("\n{% extends 'other' %}", "extends has no place", 2),
        ("x" * (rendering.MAX_TEMPLATE + 1), "exceed the limit", None),
        ("{{ a | random }}", "random", 1),
    ],
)
async def test_inspect_refuses(renderer: Renderer, source: str, reason: str, line: int | None) -> None:
    with pytest.raises(TemplateRefused, match=reason) as refused:
        await renderer.inspect("t", source)
    assert refused.value.line == line


async def test_an_endless_template_is_stopped_and_the_next_one_is_rendered(renderer: Renderer) -> None:
    await render(renderer, "warm")
    started = time.monotonic()
    with pytest.raises(RenderTooLong, match=r"0\.4 s"):
        await render(renderer, LOOP)
    assert time.monotonic() - started < 2.0
    assert await render(renderer, "{{ a }}", a=1) == "1"


@pytest.mark.parametrize(
    "source", ["{{ 'x' * 10**10 }}", "{{ 'x' | center(10**10) }}", "{% for i in range(9999) %}xxxx{% endfor %}"]
)
async def test_too_large_is_refused(renderer: Renderer, source: str) -> None:
    with pytest.raises(RenderTooLarge):
        await render(renderer, source)


async def test_values_that_are_too_large_are_refused_before_they_are_sent(renderer: Renderer) -> None:
    with pytest.raises(RenderTooLarge, match="bytes"):
        await render(renderer, "{{ a }}", a="x" * rendering.MAX_INPUT)


@pytest.mark.parametrize("source", ["{{ ''.__class__.__mro__ }}", "{{ a.append(1) }}", "{{ a.__init__.__globals__ }}"])
async def test_what_the_sandbox_denies_is_refused_with_its_line(renderer: Renderer, source: str) -> None:
    with pytest.raises(ForbiddenInTemplate) as refused:
        await render(renderer, "\n" + source, a=[1])
    assert refused.value.line == 2


async def test_no_error_tells_a_value(renderer: Renderer) -> None:
    for source in ("{{ a[key] }}", "{{ (a | list) + key }}", "{{ key | int + a }}", "{{ a[key].x }}"):
        with pytest.raises(RenderFailed) as failed:
            await render(renderer, source, a={}, key="s3cret-canary")
        assert "s3cret" not in str(failed.value)
    with pytest.raises(RenderFailed, match="'nope' is undefined"):
        await render(renderer, "{{ nope }}")


async def test_what_is_not_json_is_refused_by_name(renderer: Renderer) -> None:
    with pytest.raises(WrongVariableType, match="'a' must be JSON data"):
        await render(renderer, "{{ a }}", a=[object()])


async def test_a_process_that_died_is_replaced(renderer: Renderer) -> None:
    await render(renderer, "one")
    for child in list(renderer._children):
        child.process.kill()
        child.process.wait()
    assert await render(renderer, "two") == "two"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
async def test_the_process_knows_no_credentials(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_PASSWORD", "s3cret-canary")
    await render(renderer, "one")
    (child,) = renderer._children
    assert b"s3cret" not in await asyncio.to_thread(Path(f"/proc/{child.process.pid}/environ").read_bytes)


async def test_close_ends_the_processes() -> None:
    renderer = Renderer()
    await render(renderer, "one")
    (child,) = renderer._children
    await renderer.close()
    assert child.process.poll() is not None


@pytest.mark.parametrize("given", ["string", str, {"type": "string"}, {"type": "string", "default": "x"}])
def test_declarations(given: Any) -> None:
    variable = declare("t", {"a": given})["a"]
    assert variable.type == "string"
    assert declare("t", {"a": variable.document()})["a"] == variable


@pytest.mark.parametrize(
    "given", ["text", 5, {"type": "string", "default": 1}, {"type": "string", "else": 1}, {"required": True}, None]
)
def test_a_declaration_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(TemplateRefused, match="'a'"):
        declare("t", {"a": given})


def test_values_are_checked_by_name() -> None:
    declared = declare("t", {"a": str, "n": int, "x": {"type": "array", "default": []}})
    assert check_values("t", "1", declared, {"a": "x", "n": 1}) == {"a": "x", "n": 1, "x": []}
    with pytest.raises(MissingVariable, match=r"missing 'a', 'n'") as missing:
        check_values("t", "1", declared, {})
    assert missing.value.names == ("a", "n")
    with pytest.raises(SuperfluousVariable, match=r"not declared: 'z'"):
        check_values("t", "1", declared, {"a": "x", "n": 1, "z": 1})


@pytest.mark.parametrize(
    ("kind", "value", "actual"),
    [
        ("string", 1, "integer"),
        ("integer", True, "boolean"),
        ("integer", 1.5, "number"),
        ("number", "1", "string"),
        ("boolean", 1, "integer"),
        ("array", {}, "object"),
        ("object", None, "null"),
    ],
)
def test_a_wrong_type_is_refused_by_name(kind: str, value: Any, actual: str) -> None:
    with pytest.raises(WrongVariableType, match=f"'a' must be {kind}, not {actual}"):
        check_values("t", "1", declare("t", {"a": kind}), {"a": value})


def test_the_sandbox_answers_every_request() -> None:
    box = sandbox.Sandbox()
    assert box.answer({"do": "inspect", "source": "{{ a }}"}) == {"variables": ["a"]}
    assert box.answer({"do": "render", "source": "{{ a }}", "variables": {"a": 1}, "max_chars": 9}) == {"text": "1"}
    faults = {
        "{{ a": "syntax",
        "{% import 'x' as y %}": "syntax",
        "{{ a.__class__ }}": "forbidden",
        "{{ b }}": "undefined",
        "0123456789": "large",
        "{{ a / 0 }}": "failed",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "failed",
    }
    for source, fault in faults.items():
        do = "inspect" if "import" in source else "render"
        answer = box.answer({"do": do, "source": source, "variables": {"a": 1}, "max_chars": 9})
        assert answer["fault"] == fault, source


def test_templates_kept_compiled_are_bounded() -> None:
    box = sandbox.Sandbox()
    for number in range(sandbox.COMPILED + 5):
        box.answer({"do": "render", "source": str(number), "variables": {}, "max_chars": 9})
    assert len(box.compiled) == sandbox.COMPILED


def test_the_process_ends_with_its_input() -> None:
    request = b'{"do": "render", "source": "hi", "variables": {}, "max_chars": 9, "seconds": 1}\n'
    ended = subprocess.run(
        [sys.executable, "-P", sandbox.__file__], input=request, capture_output=True, timeout=30, check=True
    )
    assert ended.stdout == b'{"ready":true}\n{"text":"hi"}\n'


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("Hello {{ name }}!", "Hello !"),
        ("{{ 'Hello ' ~ name }}", "Hello "),
        ("{{ name | upper }}{{ name | trim }}{{ name | join(', ') }}{{ [1, name] | join('-') }}", "1-"),
        ("{{ name | default('you') }}{{ name or ' there' }}", "you there"),
        ("{% if name %}{{ name }}{% else %}nobody{% endif %}{{ name is defined }}", "nobodyFalse"),
        ("{% for one in name %}{{ one }}{% endfor %}{{ name | length }}", "0"),
        ("{{ user.name }}{{ user['name'] }}.", "."),
    ],
)
async def test_what_has_no_value_says_nothing(renderer: Renderer, source: str, text: str) -> None:
    declared = declare("t", {"name": {"type": "string", "required": False}, "user": "object"})
    values = check_values("t", "1", declared, {"user": {"name": None}})
    assert await renderer.render("t", "1", source, values) == text


async def test_templates_that_hang_hold_up_each_other_and_hardly_the_rest() -> None:
    renderer = Renderer(seconds=3.0, processes=2)
    try:
        assert await render(renderer, "warm") == "warm"
        hanging = [asyncio.ensure_future(render(renderer, LOOP + str(n))) for n in range(8)]
        await asyncio.sleep(0)  # they are in the queue
        assert await render(renderer, "Hello {{ name }}!", name="Ada") == "Hello Ada!"
        assert not any(task.done() for task in hanging[1:])  # the rest did not wait for the second's 3 s
        for task in hanging[2:]:
            task.cancel()
        ended = await asyncio.gather(*hanging[:1], return_exceptions=True)
        assert isinstance(ended[0], RenderTooLong)
    finally:
        await renderer.close()
