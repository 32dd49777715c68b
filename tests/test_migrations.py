"""Steps lead from version to version and back; one that would lose something is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kit.codec import (
    ContractViolation,
    Envelope,
    MigrationError,
    UnknownContract,
    decode,
    encode,
    message_types,
    migrate,
    versions,
)
from kit.codec import migrations as registered

FIXTURES = Path(__file__).resolve().parent.parent / "data" / "contracts"
OLD: dict[str, Any] = {
    "request_id": "r",
    "prompt": "How do I copy a file?",
    "model": "kit/extractive",
    "tenant_id": "acme",
    "timestamp": "2025-06-01T12:00:00.000000Z",
    "parameters": {"temperature": 0.5, "max_tokens": 20},
}
COMMON = {key: value for key, value in OLD.items() if key != "prompt"}
USER = {"role": "user", "content": "How do I copy a file?"}


def request(version: str, **data: Any) -> Envelope:
    return decode(encode("llm_request", data, version))


def test_every_pair_of_neighbouring_versions_has_a_step_up_and_down() -> None:
    for name in message_types():
        for older, newer in zip(versions(name), versions(name)[1:], strict=False):
            if older.split(".")[0] == newer.split(".")[0]:
                assert (name, older, newer) in registered.STEPS
                assert (name, newer, older) in registered.STEPS


def test_a_prompt_becomes_a_user_message_and_again_a_prompt() -> None:
    old = request("1.0", **OLD)
    new = migrate(old, "1.1")
    assert new == Envelope("llm_request", "1.1", {**COMMON, "messages": [USER]})
    assert migrate(new, "1.0") == old
    assert old.data == OLD


def test_a_prompt_written_in_1_1_goes_down_as_it_is() -> None:
    assert migrate(request("1.1", **OLD), "1.0") == Envelope("llm_request", "1.0", OLD)


def test_the_same_version_is_the_same_envelope() -> None:
    old = request("1.0", **OLD)
    assert migrate(old, "1.0") is old


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"tools": [{"type": "function", "function": {"name": "search"}}]}, "/data/tools"),
        ({"stream": True}, "/data/stream"),
        ({"metadata": {}}, "/data/metadata"),
        ({"parameters": {"top_p": 0.5}}, "/data/parameters/top_p"),
        ({"messages": [{"role": "system", "content": "Be brief."}, USER]}, "/data/messages"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "/data/messages/0/role"),
        ({"messages": [{**USER, "name": "ada"}]}, "/data/messages/0/name"),
        ({"messages": [{"role": "user", "content": None}]}, "/data/messages/0/content"),
        ({"messages": [{"role": "user"}]}, "/data/messages/0/content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "/data/messages/0/content"),
    ],
)
def test_a_step_that_would_lose_something_is_refused_by_name(changed: dict[str, Any], path: str) -> None:
    envelope = request("1.1", **{**COMMON, "messages": [USER], **changed})
    before = json.dumps(envelope.data)
    with pytest.raises(MigrationError) as caught:
        migrate(envelope, "1.0")
    assert caught.value.path == path
    assert "copy a file" not in str(caught.value)
    assert json.dumps(envelope.data) == before


def test_a_newer_minor_is_brought_to_the_newest_known_and_keeps_what_is_unknown() -> None:
    data = {**COMMON, "messages": [USER], "mood": "curious"}
    payload = json.dumps({"schema_version": "1.9", "message_type": "llm_request", "data": data}).encode()
    envelope = decode(payload)
    assert migrate(envelope, "1.2") == Envelope("llm_request", "1.2", data)
    with pytest.raises(MigrationError) as caught:
        migrate(envelope, "1.0")
    assert caught.value.path == "/data/mood"


@pytest.mark.parametrize("target", ["1.3", "2.0", "", "latest"])
def test_an_unknown_target_is_refused(target: str) -> None:
    with pytest.raises(UnknownContract):
        migrate(request("1.0", **OLD), target)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(UnknownContract):
        migrate(Envelope("llm_request", "2.0", OLD), "1.1")
    with pytest.raises(UnknownContract):
        migrate(Envelope("nobody", "1.0", OLD), "1.1")


def test_a_missing_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registered.STEPS, ("llm_request", "1.0", "1.1"))
    with pytest.raises(MigrationError, match=r"from 1\.0 to 1\.1"):
        migrate(request("1.0", **OLD), "1.1")


def test_what_a_step_brings_out_is_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registered.STEPS, ("llm_request", "1.0", "1.1"), lambda data: {**data, "stream": "yes"})
    with pytest.raises(ContractViolation) as caught:
        migrate(request("1.0", **OLD), "1.1")
    assert caught.value.path == "/data/stream"


def test_parameters_that_an_older_minor_has_no_field_for_go_where_it_has_its_others() -> None:
    new = request("1.2", **OLD | {"parameters": {"temperature": 0.5, "n": 2, "user": "ada", "extra": {"top_k": 1}}})
    old = migrate(new, "1.1")
    assert old.data["parameters"] == {"temperature": 0.5, "extra": {"top_k": 1, "n": 2, "user": "ada"}}
    assert migrate(old, "1.2").data == old.data
    with pytest.raises(MigrationError):
        migrate(new, "1.0")


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("llm_request/1.0/valid/*")), ids=lambda file: file.stem)
def test_every_older_fixture_goes_up_and_comes_back(file: Path) -> None:
    envelope = decode(file.read_bytes())
    assert migrate(migrate(envelope, "1.1"), "1.0") == envelope
