"""`kit ask` answers from documents that the project has never seen, cites them, and says when they say nothing."""

from __future__ import annotations

import io
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.errors import ConfigurationError
from kit.lab import asking
from kit.lab.asking import Answer, Question, as_text, ask, collection
from kit.lab.cli import main
from kit.lab.cli.console import Shown, complain, say
from kit.lab.quantities import shown
from kit.lab.session import start

PAGES = {
    "leave.md": "# Leave\n\n## Parental leave\n\nParental leave is sixteen weeks at full pay. Ask your manager first.",
    "travel.md": "# Travel\n\n## Trains\n\nTrain tickets are booked in second class. First class needs an approval.",
    "notes/coffee.txt": "The coffee machine on the third floor is cleaned every Monday.",
    ".hidden.md": "# Hidden\n\nNobody reads this.",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handbook")
    for name, text in PAGES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


async def _ask(text: str, corpus: Path, store: Path, *, trace: bool = False) -> tuple[Answer, str]:
    said = io.StringIO()
    answer = await ask(Question(text=text, corpus=corpus, store=store), trace=trace, progress=said)
    return answer, said.getvalue()


async def test_a_question_is_answered_with_its_source_and_its_trace(corpus: Path, store: Path) -> None:
    answer, said = await _ask("How long is parental leave?", corpus, store, trace=True)
    assert "sixteen weeks" in answer.data["answer"]
    assert answer.data["supported"] is True
    assert answer.data["sources"][0]["document_id"] == "leave.md"
    assert said.startswith("indexed ")
    assert "of 3 documents" in said
    assert "rag.vector.search" in answer.trace
    text = as_text(answer)
    assert "sixteen weeks at full pay. [1]" in text
    assert "\n  [1] " in text
    assert "leave.md" in text


async def test_the_second_question_indexes_nothing_and_a_changed_corpus_is_indexed_again(
    corpus: Path, store: Path
) -> None:
    first, _ = await _ask("When is the coffee machine cleaned?", corpus, store)
    assert "Monday" in first.data["answer"]
    again, said = await _ask("When is the coffee machine cleaned?", corpus, store)
    assert said == ""
    assert again.data["answer"] == first.data["answer"]
    (corpus / "bicycles.md").write_text("# Bicycles\n\nBicycles are stored in the basement beside the archive.")
    changed, said = await _ask("Where are bicycles stored?", corpus, store)
    assert "of 4 documents" in said
    assert "basement" in changed.data["answer"]


async def test_what_cannot_be_read_is_told_once_and_keeps_nothing_from_being_asked(tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "leave.md").write_text(PAGES["leave.md"])
    (folder / "picture.png").write_bytes(b"\x89PNG")
    for number in range(11):
        (folder / f"empty-{number:02}.txt").write_text(" ")
    answer, said = await _ask("How long is parental leave?", folder, tmp_path)
    assert answer.data["supported"] is True
    assert said.startswith("indexed 1 passages of 1 documents")
    assert "  not read: document 'empty-00.txt': there is no text in it\n" in said
    assert said.endswith("  … and 2 more\n")
    again, said = await _ask("How long is parental leave?", folder, tmp_path)
    assert said == ""
    assert again.data["answer"] == answer.data["answer"]


async def test_what_the_documents_do_not_support_is_not_answered(corpus: Path, store: Path) -> None:
    answer, _ = await _ask("Who won the chess world championship in 1972?", corpus, store)
    assert answer.data["supported"] is False
    assert as_text(answer).startswith("The documents do not support an answer")


async def test_while_another_process_has_the_store_questions_are_answered_all_the_same(
    corpus: Path, store: Path
) -> None:
    from kit.nats.server import Server

    async with Server(store / "nats"):
        answer, _ = await _ask("How long is parental leave?", corpus, store)
    assert answer.data["supported"] is True


def test_the_command_prints_json_and_ends_with_0(corpus: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--corpus", str(corpus), "--store", str(store)]
    assert main(["ask", "Which class are train tickets booked in?", *options, "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert "second class" in body["answer"]
    assert main(["ask", "What is the melting point of iron?", *options]) == 0
    assert capsys.readouterr().out.startswith("The documents do not support an answer")
    assert logging.getLogger("kit.nats").level == logging.NOTSET  # nothing of the process is left changed


def test_a_corpus_or_a_question_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "What?", "--corpus", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith(f"kit ask: there is no {tmp_path / 'nowhere'}: say where")
    assert main(["ask", "  "]) == 2
    assert "there is no question" in capsys.readouterr().err


async def test_a_corpus_with_nothing_to_read_is_said(tmp_path: Path, store: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(ConfigurationError, match=r"nothing in .* can be read"):
        await _ask("What?", tmp_path, store)


async def test_on_a_cluster_a_corpus_is_indexed_and_asked_there(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await start(tenant_id="acme") as there:
        credentials = there.server.credentials("acme")
        monkeypatch.setenv("NATS_URL", there.server.url)
        monkeypatch.setenv("NATS_USER", credentials.user)
        monkeypatch.setenv("NATS_PASSWORD", credentials.password)
        question = Question(text="How long is parental leave?", store=tmp_path)
        with pytest.raises(ConfigurationError, match="kit worker gateway rag document_qa --tenant acme"):
            await ask(question)
        await there.serve(*asking.NEEDED)
        assert (await ask(question)).data["supported"] is False, "no documents yet"
        answer = await ask(replace(question, corpus=corpus), progress=io.StringIO())
        assert answer.data["sources"][0]["document_id"] == "leave.md"
        assert (await ask(question)).data["supported"] is False, "another collection"
    assert not (tmp_path / "corpora").exists()


# --- what is shown ----------------------------------------------------------------------------------------------


def _answer(**data: Any) -> Answer:
    return Answer(data={"answer": "It is so. [1]", "supported": True, "sources": [], **data})


def test_sources_are_numbered_as_the_answer_cites_them() -> None:
    sources = [
        {"document_id": "a", "citation": 1, "cited": True, "title": "A", "source": "a.md", "quote": "It is so."},
        {"document_id": "b", "citation": 2, "cited": False, "content": "x " * 500},
        {"document_id": "c", "citation": 3, "cited": True, "metadata": {"question": "Why c?"}},
    ]
    metadata = {"model": "openai/x", "cost": 0.00012, "currency": "USD"}
    text = as_text(_answer(sources=sources, duration=0.5, metadata=metadata), 60)
    assert text == (
        "It is so. [1]\n\n"
        "Sources\n  [1] A (a)\n      a.md\n      It is so.\n  [3] Why c? (c)\n\n"
        "answered in 0.5 s · openai/x · cost 0.000120 USD\n"
    )


def test_an_unsupported_answer_shows_its_reason_and_the_closest_passages() -> None:
    sources = [{"document_id": name, "rank": rank} for rank, name in enumerate("abcd", start=1)]
    text = as_text(_answer(answer=None, supported=False, reason="no passage is close enough", sources=sources))
    assert text.startswith("The documents do not support an answer (no passage is close enough).\n")
    assert text.count("\n  [") == 3
    same = as_text(_answer(answer=None, supported=False, reason="the documents do not support an answer."))
    assert same.startswith("The documents do not support an answer.\n")


CONTROLS = {
    "clipboard": "\x1b]52;c;cm0=\x07",
    "clear": "\x1b[2J",
    "of the second set": "\x9b2J\x9d0;title\x9c",
    "carriage return": "good\rbad",
    "backspace": "bad\x08\x08\x08good",
    "delete": "\x7f",
    "turned around": "\u202etxt.exe\u2066",
    "a lone surrogate": "\ud83d",
}


@pytest.mark.parametrize("name", CONTROLS)
def test_what_would_steer_a_terminal_is_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    odd = CONTROLS[name]
    source = {"rank": 1, "document_id": odd, "title": odd, "source": odd, "content": odd, "metadata": {}}
    texts = [
        as_text(_answer(answer=odd, supported=True, sources=[source])),
        as_text(_answer(answer=None, supported=False, reason=odd, sources=[source])),
        as_text(Answer(data=_answer(answer=odd, supported=True, sources=[]).data, trace=odd)),
        shown(json.dumps({"a": odd}, ensure_ascii=False)),
    ]
    say(odd)
    complain(odd)
    log = logging.Logger("kit.test")  # of no other: what pytest records of a log has to be sendable, this is not
    log.addHandler(handler := logging.StreamHandler())
    handler.setFormatter(Shown())
    log.warning("job %s died", odd)
    texts += [*capsys.readouterr()]
    for text in texts:
        text.encode()
        assert not {character for character in text if not character.isprintable()} - {"\n"}, ascii(text)
    assert json.loads(texts[3]) == {"a": odd}


def test_an_id_of_two_lines_stays_on_one() -> None:
    source = {"rank": 1, "document_id": "a\n  [2] b", "title": "c\nd", "source": "e\nf", "metadata": {}}
    text = as_text(_answer(answer="x [1]", supported=True, sources=[source]))
    assert "  [1] c d (a [2] b)\n      e f\n" in text
    assert shown("one\ntwo", line=True) == "one two"


async def test_files_with_odd_names_are_asked_too(tmp_path: Path, store: Path) -> None:
    folder = tmp_path / os.fsdecode(b"b\xfccher")
    folder.mkdir()
    (folder / os.fsdecode(b"men\xfc.txt")).write_text("The soup is lentil soup.")
    (folder / "hours.txt").write_text("The kitchen closes at ten.")
    (folder / "page\x1b[2J.html").write_text("<h1></h1>")
    told = io.StringIO()
    answer = await ask(Question(text="When does the kitchen close?", corpus=folder, store=store), progress=told)
    assert answer.data["answer"] == "The kitchen closes at ten. [1]"
    assert "indexed 2 passages of 2 documents" in told.getvalue()
    assert "page\\u001b[2J.html" in told.getvalue() or "page\\x1b[2J.html" in told.getvalue()


def test_two_corpora_of_one_name_do_not_mix(tmp_path: Path) -> None:
    names = {collection(tmp_path / folder / "Hand Book.d") for folder in ("a", "b")}
    assert len(names) == 2
    assert all(name.startswith("hand-book-") for name in names)
    assert asking.default_corpus().is_file()


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_it_is() -> None:
    class State:
        done, total = 3, 10

    terminal = _Terminal()
    line = asking._Line(terminal)
    line.show("starting …")
    line.end()
    line.documents(State())
    line.end("indexed")
    assert terminal.getvalue().startswith("\rstarting …\r          \r\rindexing 3 of 10 documents")
    assert terminal.getvalue().endswith("\rindexed\n")
