"""Files become text whose characters offsets count; what cannot be read is refused by a named error."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from kit.components.rag import BadEncoding, Document, DocumentRefused, Folder, UnreadableDocument, UnsupportedType
from kit.components.rag.readers import (
    HTML,
    MARKDOWN,
    PDF,
    media_type_of,
    page_of,
    read,
    read_file,
    read_json_lines,
    shortened,
    title_from,
)
from kit.errors import ConfigurationError

PAGE = """<!doctype html><html><head><meta charset="utf-8"><title>Shop &amp; Co</title><style>p{}</style></head>
<body><nav>Home</nav><h1>Refunds</h1><p>Within <b>30</b>
days.</p><script>alert(1)</script><ul><li>bring it</li><li>or send it</li></ul>
<pre>x = 1

y = 2</pre><table><tr><td>a</td><td>b</td></tr></table></body></html>"""


def pdf(*pages: str, title: str | None = None) -> bytes:
    """A PDF with a line of text on each page."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    def _named(**values: str) -> DictionaryObject:
        return DictionaryObject({NameObject(f"/{key}"): NameObject(f"/{value}") for key, value in values.items()})

    writer = PdfWriter()
    font = _named(Type="Font", Subtype="Type1", BaseFont="Helvetica")
    for text in pages:
        page = writer.add_blank_page(300, 300)
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
    if title:
        writer.add_metadata({"/Title": title})
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_html_keeps_headings_lists_and_code_and_leaves_out_the_rest() -> None:
    reading = read("page", PAGE.encode(), HTML)
    assert reading.title == "Shop & Co"
    assert reading.text.startswith("# Refunds\n\nWithin 30 days.")
    assert "- bring it\n- or send it" in reading.text
    assert "```\nx = 1\n\ny = 2\n```" in reading.text
    assert "a | b" in reading.text
    assert "Home" not in reading.text
    assert "alert" not in reading.text


def test_html_is_decoded_as_it_declares_itself() -> None:
    page = "<meta charset=iso-8859-1><p>caf\xe9</p>".encode("latin-1")
    assert read("p", page, HTML).text == "café"


def test_a_pdf_gives_its_pages_and_its_title() -> None:
    reading = read("doc", pdf("First page here.", "Second page."), PDF)
    assert reading.text == "First page here.\n\nSecond page."
    assert [page_of(reading.pages, reading.text.index(word)) for word in ("First", "Second")] == [1, 2]
    assert read("doc", pdf("x", title="Manual"), PDF).title == "Manual"
    assert page_of((), 5) is None


def test_a_damaged_or_encrypted_pdf_is_unreadable() -> None:
    from pypdf import PdfReader, PdfWriter

    with pytest.raises(UnreadableDocument, match="damaged"):
        read("doc", b"%PDF-1.7 nonsense", PDF)
    with pytest.raises(UnreadableDocument, match="claim check"):
        read("doc", "text", PDF)
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("secret"))))
    writer.encrypt("password", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    with pytest.raises(UnreadableDocument, match="encrypted"):
        read("doc", out.getvalue(), PDF)


@pytest.mark.parametrize(
    ("content", "kind", "error"),
    [
        (b"caf\xe9", "text/plain", BadEncoding),
        (b"x", "text/plain; charset=nonsense", BadEncoding),
        ("a\x00b", "text/plain", BadEncoding),
        (b"PK", "application/zip", UnsupportedType),
    ],
)
def test_what_is_not_text_is_refused_by_name(content: Any, kind: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="'doc'"):
        read("doc", content, kind)


def test_other_encodings_and_marks_are_understood() -> None:
    assert read("d", "héllo".encode("utf-16"), "text/plain").text == "héllo"
    assert read("d", b"caf\xe9", "text/plain; charset=latin-1").text == "café"
    assert read("d", b"\xef\xbb\xbfhi", "text/plain").text == "hi"
    assert read("d", "x", "text/csv").text == "x"


def test_markdown_knows_its_title() -> None:
    assert read("d", "---\ntitle: 'Front'\n---\n# Heading\n", MARKDOWN).title == "Front"
    assert read("d", "intro\n\n# Heading #\n", MARKDOWN).title == "Heading"
    assert read("d", "no heading", MARKDOWN).title is None


def test_json_lines_give_documents_and_go_on_after_a_bad_line() -> None:
    raw = (
        b'{"document_id": "a", "content": "text a", "section": "s", "title": "T", "url": "u"}\n'
        b"not json\n[1]\n\n"
        b'{"id": 7, "text": "text b", "metadata": {"k": 1}}\n{"content": 5}\n{"body": "c"}'
    )
    first, *rest = read_json_lines(raw, name="f")
    assert first == Document(document_id="a", content="text a", metadata={"section": "s"}, title="T", source="u")
    assert [type(entry).__name__ for entry in rest] == [
        "UnreadableDocument", "UnreadableDocument", "Document", "UnreadableDocument", "Document",
    ]  # fmt: skip
    numbered = [entry.document_id for entry in rest]
    assert numbered == ["f:2", "f:3", "7", "f:6", "f:7"]
    reasons = [entry.reason for entry in rest if isinstance(entry, UnreadableDocument)]
    assert reasons[0].startswith("not JSON: invalid literal")
    assert reasons[1:] == ["a line must be a JSON object", "it has no text in 'content' or 'text' or 'body'"]
    (named,) = read_json_lines(b'{"q": "id", "a": "answer"}', content="a", document_id="q")
    assert isinstance(named, Document)
    assert (named.document_id, named.content) == ("id", "answer")


def test_a_folder_tells_what_it_reads_and_what_it_skips(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a.md").write_text("# A")
    (tmp_path / "sub" / "b.txt").write_text("b")
    (tmp_path / "c.bin").write_bytes(b"\x00")
    (tmp_path / ".hidden" / "d.md").write_text("d")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "lines.jsonl").write_text('{"id": "one", "text": "1"}\n')
    folder = Folder.of(tmp_path)
    found = list(folder.documents())
    assert folder.skipped == ["c.bin"]
    assert [entry.document_id for entry in found] == ["a.md", "bad.txt", "one", "sub/b.txt"]
    assert isinstance(found[1], BadEncoding)
    assert isinstance(found[0], Document)
    assert found[0].modified_at is not None
    assert found[0].media_type == MARKDOWN
    assert [entry.document_id for entry in Folder.of(tmp_path / "a.md").documents()] == ["a.md"]
    with pytest.raises(ConfigurationError):
        Folder.of(tmp_path / "nowhere")


def test_a_file_that_cannot_be_opened_or_has_no_reader_is_refused(tmp_path: Path) -> None:
    for name, error in (("gone.md", UnreadableDocument), ("x.zip", UnsupportedType)):
        (refusal,) = read_file(tmp_path / name)
        assert isinstance(refusal, error)
        assert isinstance(refusal, DocumentRefused)
    with pytest.raises(UnsupportedType, match="known are"):
        media_type_of(Path("Makefile"))


def test_names_become_ids_and_titles() -> None:
    assert shortened("short") == "short"
    long = shortened("x" * 300 + "/end.md")
    assert len(long) == 200
    assert long.endswith("/end.md")
    assert long != shortened("y" * 300 + "/end.md")
    assert title_from("docs/refund_policy-2024.txt") == "refund policy 2024"
    assert title_from("docs.python.org/3/faq.html#anchor") == ""
