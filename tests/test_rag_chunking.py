"""Documents are cut along their structure into exact slices; sentences and words are found as a reader would."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.components.rag.chunking import Chunking, blocks, chunk, lead
from kit.components.rag.text import content_words, sentences, stem, stems, words
from kit.errors import ConfigurationError

HANDBOOK = """---
title: Handbook
---
# Handbook

Intro.

## Refunds

Refunds within 30 days.

## Shipping

We ship on Mondays.

### Abroad

It takes two weeks.
"""
EACH = Chunking(min_share=0)


def headings(text: str, chunking: Chunking | None = None) -> list[tuple[str, str]]:
    return [(part.heading, part.content) for part in chunk(text, chunking)]


def test_each_section_is_a_passage_under_its_headings() -> None:
    assert headings(HANDBOOK, EACH) == [
        ("Handbook", "Intro."),
        ("Handbook › Refunds", "Refunds within 30 days."),
        ("Handbook › Shipping", "We ship on Mondays."),
        ("Handbook › Shipping › Abroad", "It takes two weeks."),
    ]


def test_short_sections_join_under_what_stands_above_all_of_them() -> None:
    (whole,) = chunk(HANDBOOK)
    assert whole.heading == "Handbook"
    assert whole.content.startswith("Intro.")
    assert "### Abroad" in whole.content


def test_siblings_that_join_keep_their_own_headings_in_the_text() -> None:
    text = "# A\n\n## One\n\nFirst.\n\n## Two\n\nSecond.\n"
    (joined,) = chunk(text)
    assert joined.heading == "A"
    assert "## One" in joined.content
    assert "## Two" in joined.content


def test_a_heading_without_text_is_not_lost() -> None:
    assert [part.content for part in chunk("# Only a heading\n", EACH)] == ["# Only a heading"]
    assert "# End" in chunk("text\n\n# End\n")[0].content


def test_code_stays_whole_and_its_comments_are_no_headings() -> None:
    code = "```python\n# not a heading\nx = 1\n\n\ny = 2\n```"
    (part,) = chunk(f"# Title\n\nBefore.\n\n{code}\n\nAfter.", EACH)
    assert code in part.content
    assert part.heading == "Title"
    long = "```\n" + "\n".join(f"line = {n}" for n in range(400)) + "\n```"
    assert any(part.content == long for part in chunk(f"Before.\n\n{long}", EACH))


def test_a_fence_that_is_never_closed_runs_to_the_end() -> None:
    (block,) = blocks("```\nx = 1\n\n# still code")
    assert block.kind == "code"
    assert block.end == len("```\nx = 1\n\n# still code")


def test_plain_text_has_no_hash_headings_but_underlined_ones() -> None:
    text = "# a comment\nx = 1\n\nTitle\n=====\n\nBody."
    assert [part.heading for part in chunk(text, EACH, markdown=False)] == ["", "Title"]


def test_long_prose_is_cut_at_sentences_and_overlaps() -> None:
    text = " ".join(f"Sentence number {n} says something." for n in range(200))
    paragraphs = "\n\n".join(text[i : i + 700] for i in range(0, len(text), 700))
    parts = chunk(paragraphs, Chunking(max_chars=1500))
    assert len(parts) > 3
    assert all(len(part.content) <= 1500 for part in parts)
    assert any(later.start < earlier.end for earlier, later in itertools.pairwise(parts))


def test_one_endless_word_is_cut_too() -> None:
    assert [len(part.content) for part in chunk("x" * 5000, Chunking(max_chars=2000))] == [2000, 2000, 1000]


@pytest.mark.parametrize("text", ["", "   \n\n \t", "\n"])
def test_nothing_gives_nothing(text: str) -> None:
    assert chunk(text) == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["# A", "## B", "text. More text!", "```", "x = 1", "- item", "", "====", "    code", "é\r"])
    )
)
def test_every_passage_is_an_exact_slice_and_every_word_is_kept(lines: list[str]) -> None:
    text = "\n".join(lines)
    parts = chunk(text, Chunking(max_chars=100, min_share=0.2, overlap_share=0.2))
    assert all(text[part.start : part.end] == part.content for part in parts)
    assert [part.index for part in parts] == list(range(len(parts)))
    found = set(words(" ".join(f"{part.heading} {part.content}" for part in parts)))
    assert set(words(text)) == found


def test_the_corpus_is_cut_exactly() -> None:
    for line in Path("data/python_faq.jsonl").read_text(encoding="utf-8").splitlines():
        content = json.loads(line)["content"]
        parts = chunk(content, markdown=False)
        assert parts
        assert all(content[part.start : part.end] == part.content for part in parts)


@pytest.mark.parametrize(
    "wrong", [{"max_chars": 50}, {"min_share": 2}, {"overlap_share": 0.6}, {"lead_sentences": 0}, {"min_share": -1}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Chunking(**wrong)


def test_a_lead_is_the_first_sentences() -> None:
    assert lead("One is here. Two is there. Three is gone.") == "One is here. Two is there."


def test_sentences_end_where_a_reader_ends_them() -> None:
    assert sentences("See e.g. Dr. Smith. He knows. Is it v1.2? Yes!") == [
        "See e.g. Dr. Smith.",
        "He knows.",
        "Is it v1.2?",
        "Yes!",
    ]
    assert sentences("One\n\ntwo") == ["One", "two"]


def test_words_of_asking_carry_no_meaning() -> None:
    assert content_words("How do I copy a file?") == ["copy", "file"]
    assert stems("copies copied copying") == {"cop"} == {stem("copy")}
    assert stem("is") == "is"
