"""The extractive model answers in whole sentences of its context, cites them, and says when nothing supports one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import extractive_questions as questions
import numpy as np
import pytest

from kit.components.gateway.models.extractive import NO_CONTEXT, NOT_SUPPORTED, Completion, complete
from kit.components.gateway.models.language import points_elsewhere, question_kind, split_units, stem, words
from kit.components.gateway.models.prompt import ToolResult, read_context, read_messages, read_result
from kit.components.gateway.models.static import DIMENSION, StaticEmbeddings, static_embeddings

FAQ = Path(__file__).parent.parent / "data" / "python_faq.jsonl"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["city"],
        },
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}
SEARCH = {
    "type": "function",
    "function": {
        "name": "search_documents",
        "description": "Search the documents for passages about a question",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
COPYING = "The shutil module contains a copyfile() function. It does not copy permissions."
DELETING = "Use os.remove(filename) to delete a file. To remove a directory, use os.rmdir()."
RAG = f"[1] Copying files\n{COPYING}\n\n[2] Deleting files\n{DELETING}"


@pytest.fixture(scope="module")
def model() -> StaticEmbeddings:
    return static_embeddings()


def ask(model: StaticEmbeddings, text: str, **options: Any) -> Completion:
    return complete([{"role": "user", "content": text}], model, **options)


def rag_prompt(question: str, passages: list[tuple[str, str]]) -> list[dict[str, Any]]:
    context = "\n\n".join(f"[{i}] {title}\n{text}" for i, (title, text) in enumerate(passages, start=1))
    return [
        {"role": "system", "content": "Answer from the passages only, and cite them."},
        {"role": "user", "content": f"{context}\n\nQuestion: {question}"},
    ]


class Retrieval:
    """Nearest passages by words and by vectors, fused by rank: what a RAG system would hand to the model."""

    def __init__(self, passages: list[tuple[str, str]], model: StaticEmbeddings) -> None:
        self.passages, self._model = passages, model
        self._stems = [{stem(w) for w in words(text)} for _, text in passages]
        counts = {s: sum(s in row for row in self._stems) for row in self._stems for s in row}
        self._idf = {s: np.log(1 + len(passages) / count) for s, count in counts.items()}
        self._vectors = model.embed([text for _, text in passages])

    def nearest(self, question: str, k: int = 5, without: str | None = None) -> list[tuple[str, str]]:
        asked = {stem(w) for w in words(question)}
        overlap = np.array([sum(self._idf[s] for s in asked & row) / (5 + len(row)) ** 0.5 for row in self._stems])
        likeness = self._vectors @ self._model.embed([question])[0]
        ranks = sum(1 / (60 + np.argsort(np.argsort(-scores))) for scores in (overlap, likeness))
        order = [i for i in np.argsort(-ranks) if self.passages[i][0] != without]
        return [self.passages[i] for i in order[:k]]


# --- quality ----------------------------------------------------------------------------------------------------


def test_answers_questions_over_corpora_it_was_not_fitted_on_and_refuses_what_they_do_not_tell(
    model: StaticEmbeddings,
) -> None:
    right = answered = asked = wrong = refusable = 0
    for corpus in questions.CORPORA:
        retrieval = Retrieval(list(corpus.passages), model)
        for question, piece in corpus.answerable:
            completion = complete(rag_prompt(question, retrieval.nearest(question)), model)
            asked += 1
            answered += completion.supported
            right += piece.lower() in completion.text.lower()
        for question in corpus.unanswerable:
            refusable += 1
            wrong += complete(rag_prompt(question, retrieval.nearest(question)), model).supported
    assert answered / asked >= 0.88, f"answered {answered} of {asked}"
    assert right / asked >= 0.80, f"right {right} of {asked}"
    assert wrong / refusable <= 0.12, f"answered {wrong} of {refusable} questions without an answer"


def test_answers_the_faq_from_the_right_document_and_refuses_what_is_beside_the_point(model: StaticEmbeddings) -> None:
    rows = [json.loads(line) for line in FAQ.read_text().splitlines()]
    retrieval = Retrieval([(row["question"], row["content"][:1500]) for row in rows], model)
    right = found = 0
    for row in rows[::2]:
        hits = retrieval.nearest(row["question"])
        place = next((i for i, (title, _) in enumerate(hits, start=1) if title == row["question"]), None)
        if place is not None:
            found += 1
            right += f"[{place}]" in complete(rag_prompt(row["question"], hits), model).text
    assert found > 60
    assert right / found >= 0.88, f"{right} of {found}"
    off = [q for q in questions.OFF_TOPIC if complete(rag_prompt(q, retrieval.nearest(q)), model).supported]
    assert len(off) <= 2, off
    for question in ("What is the refund policy?", "Who won the 1998 world cup?", "How do I bake sourdough bread?"):
        assert complete(rag_prompt(question, retrieval.nearest(question)), model).text == NOT_SUPPORTED


def test_every_sentence_of_an_answer_stands_in_the_passage_that_it_cites(model: StaticEmbeddings) -> None:
    for corpus in questions.CORPORA:
        retrieval = Retrieval(list(corpus.passages), model)
        for question, _ in corpus.answerable:
            hits = retrieval.nearest(question)
            completion = complete(rag_prompt(question, hits), model)
            if completion.supported:
                quoted = re.findall(r"(.+?) \[(\d+)\](?:\s|$)", completion.text)
                assert 1 <= len(quoted) <= 7
                for sentence, number in quoted:
                    flat = " ".join(hits[int(number) - 1][1].split())
                    assert sentence.strip().rstrip(".") in flat, (question, sentence)


def test_the_same_messages_give_the_same_answer(model: StaticEmbeddings) -> None:
    asked = rag_prompt("How do I delete a file?", [("Copying", COPYING), ("Deleting", DELETING)])
    assert complete(asked, model) == complete(asked, model)


# --- what is answered -------------------------------------------------------------------------------------------


def test_cites_the_passage_by_its_number(model: StaticEmbeddings) -> None:
    completion = ask(model, f"{RAG}\n\nQuestion: How do I delete a file?")
    assert completion.text.startswith("Use os.remove(filename) to delete a file. [2]")
    assert completion.finish_reason == "stop"


def test_reads_a_plain_context_which_has_no_number_to_cite(model: StaticEmbeddings) -> None:
    completion = ask(model, f"Context: {COPYING}\n\nQuestion: How do I copy a file?")
    assert completion.text.startswith("The shutil module contains a copyfile() function.")
    assert "[" not in completion.text


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        (
            "How do I prune tomatoes?",
            "See also the video on pruning tomatoes. Tomatoes are pruned by pinching out their side shoots.",
            "Tomatoes are pruned by pinching out their side shoots. [1]",
        ),
        (
            "What tyre pressure do I need?",
            "Tyre pressure is listed in the table below. Road tyres need a pressure of 6 to 8 bar.",
            "Road tyres need a pressure of 6 to 8 bar. [1]",
        ),
        (
            "Does bread need a hot oven?",
            "Yes, a hot oven. Bread is baked at 240 degrees for 45 minutes.",
            "Yes, a hot oven. [1] Bread is baked at 240 degrees for 45 minutes. [1]",
        ),
        (
            "Where are the opening hours of the museum listed?",
            "See https://museum.example for the opening hours of the museum.",
            "See https://museum.example for the opening hours of the museum. [1]",
        ),
        (
            "How long does the train take?",
            "The train takes 38 minutes. The nearest city is Arlau, to the north.",
            "The train takes 38 minutes. [1]",
        ),
    ],
    ids=["points away", "listed elsewhere", "an opening", "nothing but a pointer", "a whole answer"],
)
def test_says_something_rather_than_where_to_read_it(
    model: StaticEmbeddings, question: str, text: str, answer: str
) -> None:
    assert complete(rag_prompt(question, [("", text)]), model).text == answer


def test_tells_what_points_elsewhere_from_what_says_something() -> None:
    away = (
        "For more details on crusts, please refer to the troubleshooting page.",
        "For a fuller explanation, please see the section on scopes.",
        "See also the FAQ.",
        "The formula is explained below.",
        "This is described in another chapter.",
        "You can also visit our website.",
    )
    here = (
        "The store can see the order.",
        "Readings are taken every hour.",
        "You will see a green light.",
        "He discussed it with the board.",
        "For a lost card, call 0800 123 456.",
        "Books are listed by author.",
    )
    assert [text for text in away if not points_elsewhere(text)] == []
    assert [text for text in here if points_elsewhere(text)] == []


SNAKES = [
    ("Feeding", "This is one of the questions that keepers of a python ask most. A python eats every ten days."),
    ("Snakes of the house", "Rats are what a python eats. A python is a large snake that kills by squeezing."),
    ("Kaa", "It is a rock python."),
]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is a python?", "A python is a large snake that kills by squeezing. [2]"),
        ("What's a keeper?", NOT_SUPPORTED),
        ("What is Kaa?", "It is a rock python. [3]"),
        ("Define python", "A python is a large snake that kills by squeezing. [2]"),
    ],
)
def test_says_what_a_thing_is_by_a_sentence_that_does(model: StaticEmbeddings, question: str, answer: str) -> None:
    assert complete(rag_prompt(question, SNAKES), model).text.startswith(answer)


def test_does_not_take_a_mention_of_a_thing_for_what_it_is(model: StaticEmbeddings) -> None:
    mentions = [("Feeding", "Keepers of a python ask this."), ("Heating", "This is one of a Python’s strongest needs.")]
    for question in ("What is Python?", "What is a python?"):
        assert complete(rag_prompt(question, mentions), model).text == NOT_SUPPORTED


def test_says_that_it_does_not_know(model: StaticEmbeddings) -> None:
    assert ask(model, f"{RAG}\n\nQuestion: What is the refund policy?").text == NOT_SUPPORTED
    assert ask(model, "What is the capital of France?").text == NO_CONTEXT
    assert ask(model, "").text == NO_CONTEXT


def test_says_it_in_the_words_that_the_instructions_ask_for(model: StaticEmbeddings) -> None:
    told = {"role": "system", "content": 'If the passages do not tell, reply with "NOT IN THE DOCUMENTS".'}
    asked = {"role": "user", "content": f"{RAG}\n\nQuestion: Who won the 1998 world cup?"}
    assert complete([told, asked], model).text == "NOT IN THE DOCUMENTS"


def test_never_quotes_its_instructions(model: StaticEmbeddings) -> None:
    told = {"role": "system", "content": "The refund policy must be answered politely. Refunds are a sore point."}
    assert not complete([told, {"role": "user", "content": "What is the refund policy?"}], model).supported


def test_remembers_what_the_user_said_before(model: StaticEmbeddings) -> None:
    talk = [
        {"role": "user", "content": "My favourite colour is green."},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "What is my favourite colour?"},
    ]
    assert complete(talk, model).text == "My favourite colour is green."


def test_takes_what_refers_back_together_with_what_it_refers_to(model: StaticEmbeddings) -> None:
    completion = ask(model, f"{RAG}\n\nQuestion: Does copying a file copy its permissions?")
    assert completion.text.startswith("The shutil module contains a copyfile() function. [1] It does not copy")


def test_quotes_code_after_the_sentence_that_announces_it(model: StaticEmbeddings) -> None:
    text = "To reverse a list, write:\n\n    items = [1, 2]\n    items.reverse()\n\nNothing else is needed."
    completion = ask(model, f"[1] Reversing\n{text}\n\nQuestion: How do I reverse a list?")
    assert "To reverse a list, write: [1]" in completion.text
    assert "```\n    items = [1, 2]\n    items.reverse()\n```" in completion.text


def test_honours_max_tokens_and_counts_tokens(model: StaticEmbeddings) -> None:
    whole = ask(model, f"{RAG}\n\nQuestion: How do I delete a file?")
    assert whole.completion_tokens == model.count_tokens(whole.text) > 5
    assert whole.prompt_tokens > 40
    short = ask(model, f"{RAG}\n\nQuestion: How do I delete a file?", max_tokens=5)
    assert short.finish_reason == "length"
    assert model.count_tokens(short.text) <= 5
    assert whole.text.startswith(short.text)


def test_summarises_with_the_context_own_sentences(model: StaticEmbeddings) -> None:
    completion = ask(model, f"{RAG}\n\nQuestion: Summarise the passages.")
    assert "[1]" in completion.text
    assert "[2]" in completion.text


def test_writes_the_json_that_is_asked_for(model: StaticEmbeddings) -> None:
    plain = ask(model, f"{RAG}\n\nQuestion: How do I copy a file?", response_format={"type": "json_object"})
    assert json.loads(plain.text)["citations"] == [1]
    schema = {
        "properties": {
            "text": {"type": "string"},
            "sources": {"type": "array", "items": {"type": "integer"}},
            "known": {"type": "boolean"},
            "count": {"type": "integer"},
            "kind": {"enum": ["file", "folder"]},
            "more": {"type": "object", "properties": {"note": {"type": "string"}}},
        }
    }
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    value = json.loads(ask(model, f"{RAG}\n\nQuestion: How do I delete a file?", response_format=asked).text)
    assert value["text"].startswith("Use os.remove(filename)")
    assert (value["sources"], value["known"], value["kind"]) == ([2], True, "file")


# --- tools ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "name", "arguments"),
    [
        ("What is the weather in Paris?", "get_weather", {"city": "Paris"}),
        ("What's the weather like in New York in celsius?", "get_weather", {"city": "New York", "unit": "celsius"}),
        ("Please add 17 and 25.5.", "add", {"a": 17, "b": 25.5}),
        ("What is 2 + 3?", "add", {"a": 2, "b": 3}),
        ("How do I copy a file?", "search_documents", {"query": "How do I copy a file?"}),
    ],
)
def test_calls_the_tool_that_fits(model: StaticEmbeddings, question: str, name: str, arguments: dict[str, Any]) -> None:
    completion = ask(model, question, tools=[WEATHER, ADD, SEARCH])
    assert completion.tool_call is not None
    assert completion.finish_reason == "tool_calls"
    assert (completion.tool_call.name, json.loads(completion.tool_call.arguments)) == (name, arguments)


def test_calls_no_tool_that_does_not_fit_or_must_not_be_called(model: StaticEmbeddings) -> None:
    assert ask(model, "Hello there!", tools=[WEATHER, ADD, SEARCH]).tool_call is None
    assert ask(model, "What is the weather in Paris?", tools=[ADD]).tool_call is None
    assert ask(model, "What is the weather in Paris?", tools=[WEATHER], tool_choice="none").tool_call is None
    assert ask(model, f"{RAG}\n\nQuestion: How do I delete a file?", tools=[SEARCH]).tool_call is None


def test_calls_the_tool_that_it_is_told_to(model: StaticEmbeddings) -> None:
    chosen = {"type": "function", "function": {"name": "search_documents"}}
    completion = ask(model, "Hello there!", tools=[WEATHER, SEARCH], tool_choice=chosen)
    assert completion.tool_call is not None
    assert completion.tool_call.name == "search_documents"


def after_tool(question: str, name: str, result: str) -> list[dict[str, Any]]:
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": "{}"}}
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": result},
    ]


def test_answers_from_what_a_tool_returned(model: StaticEmbeddings) -> None:
    tools = [WEATHER, ADD, SEARCH]
    assert complete(after_tool("What is 2 + 3?", "add", "5"), model, tools=tools).text == "The result of add is 5."
    weather = complete(after_tool("Weather in Paris?", "get_weather", '{"sky": "clear"}'), model, tools=tools)
    assert weather.text == "sky: clear"
    found = json.dumps([{"document_id": "d1", "text": DELETING}, {"document_id": "d2", "text": COPYING}])
    cited = complete(after_tool("How do I copy a file?", "search_documents", found), model, tools=tools)
    assert cited.text.startswith("The shutil module contains a copyfile() function. [2]")


def test_a_search_that_found_nothing_to_the_point_is_no_answer(model: StaticEmbeddings) -> None:
    found = json.dumps([{"document_id": "d1", "text": DELETING}])
    completion = complete(after_tool("Who won the 1998 world cup?", "search_documents", found), model, tools=[SEARCH])
    assert completion.text == NOT_SUPPORTED


# --- reading ----------------------------------------------------------------------------------------------------


def test_numbers_in_the_text_of_a_passage_do_not_begin_another(model: StaticEmbeddings) -> None:
    passages, question = read_context("[1] Lists\n>>> x\n[2]\n[1]\nmore\n\n[2] Sets\ntext\n\nQuestion: what?")
    assert [(p.number, p.title) for p in passages] == [(1, "Lists"), (2, "Sets")]
    assert passages[0].text.startswith(">>> x\n[2]\n[1]")
    assert question == "what?"


@pytest.mark.parametrize(
    "text",
    [
        "[1] A\nfoo bar.\n\n[2] B\nbaz.\n\nQuestion: What is it?\n\nAnswer:",
        "What is it?\n\n[1] A\nfoo bar.\n\n[2] B\nbaz.",
        "Question: What is it?\n\nContext:\n[1] A\nfoo bar.\n[2] B\nbaz.",
        "Use these:\n[1] A\nfoo bar.\n\n[2] B\nbaz.\n\nWhat is it?",
        "Question: What is it?\n\n[1] A\nfoo bar.\n\n[2] B\nbaz.",
    ],
)
def test_finds_passages_and_question_wherever_they_stand(text: str) -> None:
    passages, question = read_context(text)
    assert [(p.number, p.title, p.text) for p in passages] == [(1, "A", "foo bar."), (2, "B", "baz.")]
    assert question == "What is it?"


def test_reads_tagged_context_and_parts() -> None:
    told = {"role": "system", "content": "Be kind. <memories>\n[1] The user likes tea.\n</memories>"}
    asked = {"role": "user", "content": [{"type": "text", "text": "What do I like?"}, {"type": "image_url"}]}
    talk = read_messages([told, asked])
    assert [p.text for p in talk.passages] == ["The user likes tea."]
    assert talk.question == "What do I like?"


def test_reads_results_of_any_shape() -> None:
    def read(content: str) -> list[str]:
        return [p.text for p in read_result(ToolResult(name="t", arguments="", content=content), 1)]

    assert read("[1] T\nbody") == ["body"]
    assert read('{"results": [{"text": "a"}, {"content": "b"}]}') == ["a", "b"]
    assert read('{"temp_c": 21, "days": ["mon", "tue"]}') == ["temp c: 21\ndays: mon\ndays: tue"]
    assert read("") == []


def test_splits_text_into_units_that_can_be_quoted() -> None:
    text = (
        "# Leave\n\n- Annual leave: 25 days\n- Sick leave: 10 days. Bring a note.\n\nOpening hours: 9 to 5\n"
        "Phone: 555-1234\n\n| Plan | Price |\n|---|---|\n| Basic | $9 |\n\n"
        "Dr. Smith met J. K. Rowling, e.g. in May. It is open until 4 p.m. All are\nwelcome.\n\n"
        "```python\nx = 1\n\nprint(x)\n```\nDone."
    )
    assert [(unit.kind, unit.text) for unit in split_units(text)] == [
        ("heading", "Leave"),
        ("item", "Annual leave: 25 days"),
        ("item", "Sick leave: 10 days."),
        ("item", "Bring a note."),
        ("sentence", "Opening hours: 9 to 5"),
        ("sentence", "Phone: 555-1234"),
        ("item", "Plan, Price"),
        ("item", "Basic, $9"),
        ("sentence", "Dr. Smith met J. K. Rowling, e.g. in May."),
        ("sentence", "It is open until 4 p.m."),
        ("sentence", "All are welcome."),
        ("code", "x = 1\n\nprint(x)"),
        ("sentence", "Done."),
    ]
    cut = split_units(
        "and so the first one is cut. The second is whole. "
        "The third sentence is rather long, and then it is cut off in the mid"
    )
    assert [unit.whole for unit in cut] == [False, True, False]


def test_stems_join_forms_of_a_word_and_kinds_of_questions_are_told_apart() -> None:
    assert len({stem(word) for word in ("copy", "copies", "copied", "copying")}) == 1
    assert len({stem(word) for word in ("install", "installs", "installed", "installing")}) == 1
    assert stem("class") != stem("clas")
    kinds = {"How many are there?": "number", "When was it?": "time", "Who did it?": "person", "Where is it?": "place"}
    kinds |= {"Why is that?": "reason", "How do I do it?": "manner"}
    assert {question: question_kind(question) for question in kinds} == kinds
    assert question_kind("What is a class?") is None


# --- embeddings -------------------------------------------------------------------------------------------------


def test_embeddings_are_wordllamas_own(model: StaticEmbeddings) -> None:
    import wordllama

    texts = ["How do I copy a file?", "Ein Wort, naïve café ☕", "x" * 3000, "the"]
    own = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    vectors = model.embed(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, DIMENSION)
    np.testing.assert_allclose(vectors, own.embed(texts, norm=True), atol=1e-6)


def test_embedding_nothing_is_zero_and_large_batches_are_the_same_as_small_ones(model: StaticEmbeddings) -> None:
    assert not model.embed(["", ""]).any()
    assert model.embed([]).shape == (0, DIMENSION)
    texts = [f"text number {i} " * (i % 50) for i in range(2000)]
    np.testing.assert_allclose(model.embed(texts)[::333], model.embed(texts[::333]), atol=1e-6)


def test_loading_the_model_leaves_logging_as_it_was() -> None:
    import logging

    assert not [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]
