"""Answers are held against what they cite: every sentence, every number, every block of code."""

from __future__ import annotations

from kit.components.rag import check_citations
from kit.components.rag.citations import check, claims, support

SHUTIL = "Intro here. The shutil module has copyfile(). It copies 30 files."
REFUNDS = "Refunds are given within 14 days. Ask the desk."
SOURCES = [
    {"document_id": "a", "chunk_id": "a#0", "content": SHUTIL, "start": 100},
    {"document_id": "b", "chunk_id": "b#0", "content": REFUNDS, "start": 0},
]


def test_a_sentence_belongs_to_the_numbers_behind_it() -> None:
    found = list(claims("First one. [1] Second one [2][1]. Third.\n\n```\ncode = 1\n```\n[2]"))
    assert found == [("First one.", (1,)), ("Second one", (2, 1)), ("Third.", ()), ("code = 1", (2,))]
    assert list(claims("")) == []
    assert list(claims("[1]")) == []


def test_an_index_in_code_is_no_citation() -> None:
    assert list(claims("Take a_list[1] or `x [2]` of it. [3]")) == [("Take a_list[1] or `x [2]` of it.", (3,))]
    assert list(claims("```\nx = squares [1]\n```")) == [("x = squares [1]", ())]
    assert list(claims("Call squares[2](). Within 14 days[1]. Or so [2], [3].")) == [
        ("Call squares[2]().", ()), ("Within 14 days", (1,)), ("Or so", (2, 3)),
    ]  # fmt: skip
    assert list(claims("a_tuple[0] is 1 [0].")) == [("a_tuple[0] is 1 [0].", ())]


def test_quoted_words_are_found_where_they_stand() -> None:
    checked = check("The shutil module has copyfile(). [1]", SOURCES)
    (claim,) = checked.claims
    assert claim.quote is not None
    assert claim.supported
    assert checked.valid
    assert (claim.quote.start, claim.quote.end) == (112, 145)
    assert claim.quote.text == "The shutil module has copyfile()."
    assert claim.quote.document_id == "a"
    assert claim.quote.chunk_id == "a#0"


def test_reworded_claims_are_supported_as_far_as_their_words_are() -> None:
    assert support("Within 14 days you are given refunds", "Refunds are given within 14 days.") == 1.0
    assert support("Penguins live in Antarctica", "Refunds are given within 14 days.") == 0.0
    assert support("...", "x") == 0.0


def test_a_wrong_number_is_no_support() -> None:
    assert support("Refunds are given within 30 days.", "Refunds are given within 14 days.") <= 0.4
    checked = check("Refunds are given within 30 days. [2]", SOURCES)
    assert not checked.valid
    assert checked.supported_share == 0


def test_a_citation_of_nothing_is_unknown() -> None:
    checked = check("Refunds are given within 14 days. [7]", SOURCES)
    assert checked.claims[0].unknown == (7,)
    assert not checked.valid


def test_a_claim_without_citation_may_rest_on_what_the_answer_cites() -> None:
    checked = check("Ask the desk. Refunds are given within 14 days. [2]", SOURCES)
    assert [claim.citations for claim in checked.claims] == [(), (2,)]
    assert checked.valid
    assert checked.support == 1.0


def test_nothing_cited_is_not_valid() -> None:
    checked = check("Refunds are given within 14 days.", SOURCES)
    assert not checked.valid
    assert checked.support == 0.0
    assert check("", SOURCES).support == 0.0 == check("", SOURCES).supported_share


def test_the_table_shows_each_claim_beside_its_words() -> None:
    table = check_citations({"answer": "Ask the desk. [2]", "sources": SOURCES}).table()
    assert table.loc[0, "document"] == "b"
    assert table.loc[0, "quote"] == "Ask the desk."
    assert next(iter(check_citations({"answer": None, "sources": []}).table().columns)) == "claim"


def test_numbers_come_from_the_sources_where_they_have_them() -> None:
    renumbered = [SOURCES[1] | {"citation": 5}]
    assert check("Ask the desk. [5]", renumbered).valid
