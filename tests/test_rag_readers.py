"""Files become text whose characters offsets count; what cannot be read is refused by a named error."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kit.components.rag import BadEncoding, Document, DocumentRefused, Folder, UnreadableDocument, UnsupportedType
from kit.components.rag.chunking import blocks
from kit.components.rag.errors import DocumentTooLarge, EmptyDocument
from kit.components.rag.readers import (
    HTML,
    MARKDOWN,
    PDF,
    PLAIN,
    Reader,
    media_type_of,
    page_of,
    read,
    read_file,
    read_json_lines,
    shortened,
    title_from,
)
from kit.components.rag.text import heading_of
from kit.errors import ConfigurationError

PAGE = """<!doctype html><html><head><meta charset="utf-8"><title>Shop &amp; Co</title><style>p{}</style></head>
<body><nav>Home</nav><h1>Refunds</h1><p>Within <b>30</b>
days.</p><script>alert(1)</script><ul><li>bring it</li><li>or send it</li></ul>
<pre>x = 1

y = 2</pre><table><tr><td>a</td><td>b</td></tr></table></body></html>"""


def pdf(*pages: str, title: str | None = None, picture: int = 0) -> bytes:
    """A PDF with a line of text on each page, and a picture on one."""
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
    if picture:
        image = DecodedStreamObject()
        image.set_data(b"\x00\xff")
        image[NameObject("/Subtype")] = NameObject("/Image")
        shown = DictionaryObject({NameObject("/I"): writer._add_object(image)})
        writer.pages[picture - 1][NameObject("/Resources")][NameObject("/XObject")] = shown  # type: ignore[index]
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


TEXT = "The pool opens at seven."
PAGES = {
    "a form": f"<body><form id=aspnetForm><h1>Hours</h1><p>{TEXT}</p></form></body>",
    "navigation without an end": f"<body><nav><a href=/>Home</a><main><h1>Hours</h1><p>{TEXT}</p></main></body>",
    "two navigations, one without an end": f"<nav><a>x</a><nav><a>y</a></nav><article>{TEXT}</article><nav>z</nav>",
    "navigation without an end, and divisions": f"<body><nav><ul><li><a>Home</a></ul><div>{TEXT}</div></body>",
    "a list of choices without an end": f"<body><select><option>a<p>{TEXT}</p></body>",
    "a button without an end": f"<button>Send<div>{TEXT}</div>",
    "a menu, header and aside without an end": f"<header>x<menu>y<aside>z<div>{TEXT}</div>",
    "noscript": f"<body><noscript><p>{TEXT}</p></noscript></body>",
    "hidden": f"<div hidden style='display:none' aria-hidden=true>{TEXT}</div>",
    "a template": f"<x-page><template shadowrootmode=open><p>{TEXT}</p></template></x-page>",
    "a title without an end": f"<head><title>Hours<body><p>{TEXT}</p>",
    "a picture's title": f"<title>Hours</title><svg><title>{TEXT}</title></svg>",
    "a picture's words": f'<img alt="{TEXT}">',
    "a comment without an end": f"<p>{TEXT}</p><!-- never",
    "CDATA": f"<div><![CDATA[{TEXT}]]></div>",
    "an end too many": f"</form></nav></script><p>{TEXT}</p>",
}


@pytest.mark.parametrize("name", PAGES)
def test_whatever_stands_around_it_the_text_of_a_page_is_read(name: str) -> None:
    assert TEXT in read("page", PAGES[name], HTML).text


def test_what_is_left_out_of_a_page_is_told() -> None:
    assert read("page", PAGE, HTML).notes == ("1 words of navigation are left out",)
    cut = read("page", f"<p>{TEXT}</p><script>var x = 1; <p>And more.</p>", HTML)
    assert (cut.text, cut.notes) == (TEXT, ("an unclosed <script> hides what follows it",))
    assert read("page", f"<p>{TEXT}</p><script>1</script>", HTML).notes == ()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("<h1></h1><h2> </h2>", HTML),
        ("<ul><li><li></ul><table><tr><td></table>", HTML),
        ("<nav>Home</nav><h1></h1>", HTML),
        ("<pre> </pre>", HTML),
        ("<script>text</script>", HTML),
        ("# \n\n## #\n- \n> \n***\n", MARKDOWN),
        ("", MARKDOWN),
    ],
)
def test_marks_alone_are_no_text(content: str, kind: str) -> None:
    assert read("page", content, kind).text == ""


def test_html_is_decoded_as_it_declares_itself() -> None:
    page = "<meta charset=iso-8859-1><p>caf\xe9</p>".encode("latin-1")
    assert read("p", page, HTML).text == "café"


def test_a_pdf_gives_its_pages_and_its_title() -> None:
    reading = read("doc", pdf("First page here.", "Second page."), PDF)
    assert reading.text == "First page here.\n\nSecond page."
    assert [page_of(reading.pages, reading.text.index(word)) for word in ("First", "Second")] == [1, 2]
    assert read("doc", pdf("x", title="Manual"), PDF).title == "Manual"
    assert page_of((), 5) is None


def test_pages_without_text_are_named() -> None:
    reading = read("doc", pdf("First.", "", "", "Last."), PDF)
    assert reading.text.split() == ["First.", "Last."]
    assert reading.notes == ("pages 2, 3 of 4 have little or no text: scanned text is not read",)
    assert read("doc", pdf("Only.", ""), PDF).notes[0].startswith("page 2 of 2 has little or no text")
    assert read("doc", pdf("First.", "Last."), PDF).notes == ()
    many = read("doc", pdf("First.", *[""] * 30), PDF).notes[0]
    assert many.startswith("pages 2, 3, ")
    assert " 21 and 10 more of 31 have" in many


def test_a_page_that_cannot_be_read_is_named_and_the_others_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from pypdf import PageObject

    extract = PageObject.extract_text

    def fail_second(self: Any, *args: Any, **more: Any) -> str:
        text = extract(self, *args, **more)
        assert text != "Second."
        return text

    monkeypatch.setattr(PageObject, "extract_text", fail_second)
    reading = read("doc", pdf("First.", "Second.", "Third."), PDF)
    assert reading.text.split() == ["First.", "Third."]
    assert reading.notes == ("page 2 of 3 has damage and could not be read",)
    assert page_of(reading.pages, reading.text.index("Third")) == 3
    with pytest.raises(UnreadableDocument, match="no page of it can be read"):
        read("doc", pdf("Second."), PDF)


def test_a_page_that_is_a_picture_with_a_number_is_named() -> None:
    assert read("doc", pdf("First.", "- 2 -", picture=2), PDF).notes[0].startswith("page 2 of 2 has little or no text")


def bomb() -> bytes:
    """A PDF of some kilobytes whose pages share one long text."""
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import DecodedStreamObject, NameObject

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf(*["x"] * 200))))
    stream = DecodedStreamObject()
    stream.set_data(b"BT /F1 12 Tf 20 200 Td " + b"(words and more words, on and on) Tj " * 5000 + b"ET")
    shared = writer._add_object(stream.flate_encode())
    for page in writer.pages:
        page[NameObject("/Contents")] = shared
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (bomb, PDF, "reading it takes more than 1.5 s"),
        (lambda: "<p>" * 300 + "x" * 5_000_001, HTML, "its text exceeds the limit of 5,000,000 characters"),
        (lambda: "x" * 5_000_001, PLAIN, "5,000,001 characters exceed the limit of 5,000,000"),
    ],
    ids=["a bomb", "a long page", "a long text"],
)
async def test_what_takes_too_much_is_refused_by_name(content: Any, kind: str, reason: str) -> None:
    reader = Reader(seconds=1.5)
    await reader.read("warm", "<p>x</p>", HTML)
    made = content()
    assert len(made) < 100_000 or kind != PDF
    with pytest.raises(DocumentTooLarge, match=reason):
        await reader.read("doc", made, kind)
    reader.seconds = 30.0
    assert (await reader.read("doc", "<p>And on.</p>", HTML)).text == "And on."  # in a process of its own
    await reader.close()


async def test_a_reading_process_that_dies_names_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    await reader.read("warm", "<p>x</p>", HTML)
    process = reader._child._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    reading = asyncio.ensure_future(reader.read("doc", "<p>x</p>", HTML))
    await asyncio.sleep(0)
    process.kill()
    with pytest.raises(DocumentTooLarge, match="crashed on it"):
        await reading
    assert (await reader.read("doc", pdf("Again."), PDF)).text == "Again."
    await reader.close()


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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-be"])
def test_json_lines_are_read_in_any_encoding_of_unicode(encoding: str) -> None:
    raw = '{"id": "1", "text": "Lämp öne"}\r\n{"id": "2", "text": "Lamp two 灯"}\r\n'.encode(encoding)
    documents = list(read_json_lines(raw, name="lamps"))
    assert [entry.content for entry in documents if isinstance(entry, Document)] == ["Lämp öne", "Lamp two 灯"]
    first, *rest = read_json_lines(raw + raw[-3:], name="lamps")  # cut in the middle of a character
    assert isinstance(first, Document)
    assert isinstance(rest[0], Document)


@pytest.mark.parametrize("kind", ["text/plain", MARKDOWN, HTML, "text/csv; charset=ascii"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_of_its_encoding_counts_for_every_text(encoding: str, kind: str) -> None:
    assert read("d", "Grüße 灯".encode(encoding), kind).text == "Grüße 灯"


def test_a_file_of_no_lines_is_told() -> None:
    assert [type(entry) for entry in read_json_lines(b"\n\n", name="empty")] == [EmptyDocument]


def test_markdown_knows_its_title() -> None:
    assert read("d", "---\ntitle: 'Front'\n---\n# Heading\n", MARKDOWN).title == "Front"
    assert read("d", "intro\n\n# Heading #\n", MARKDOWN).title == "Heading"
    assert read("d", "no heading", MARKDOWN).title is None
    assert read("d", "## Second\n\n#No blank\n\n    # Code\n\n# C#\n", MARKDOWN).title == "C#"


@pytest.mark.parametrize(
    ("line", "known"),
    [
        ("# C#", (1, "C#")),
        ("## F# and C# ##", (2, "F# and C#")),
        ("# C# #", (1, "C#")),
        ("# C## ###   ", (1, "C##")),
        ("   ###### Six\t", (6, "Six")),
        ("####### Seven", None),
        ("    # Code", None),
        ("#Tag", None),
        ("# ", None),
        ("# ##", None),
        ("Text # 1", None),
    ],
)
def test_a_heading_ends_as_commonmark_says(line: str, known: Any) -> None:
    assert heading_of(line) == known
    kinds = [(block.level, block.title) for block in blocks(line) if block.kind == "heading"]
    assert kinds == ([known] if known else [])


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


def test_links_do_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    docs, outside = tmp_path / "docs", tmp_path / "outside"
    for folder in (docs / "sub", outside):
        folder.mkdir(parents=True)
    (outside / "secret.txt").write_text("secret")
    (docs / "real.txt").write_text("real")
    (docs / "absolute.txt").symlink_to(outside / "secret.txt")
    (docs / "sub" / "relative.txt").symlink_to("../../outside/secret.txt")
    (docs / "twice.txt").symlink_to(docs / "absolute.txt")
    (docs / "within.txt").symlink_to("real.txt")
    (docs / "folder").symlink_to(outside)
    (docs / "nowhere.txt").symlink_to("gone.txt")
    (docs / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "alias").symlink_to(docs)
    for root in (docs, tmp_path / "alias"):
        found = {entry.document_id: entry for entry in Folder.of(root).documents()}
        assert {name for name, entry in found.items() if isinstance(entry, Document)} == {"real.txt", "within.txt"}
        refused = {name for name, entry in found.items() if isinstance(entry, DocumentRefused)}
        assert refused == {"absolute.txt", "sub/relative.txt", "twice.txt", "folder", "loop.txt", "nowhere.txt"}
        linked = Folder.of(root, "*/*.txt").documents()
        assert not [entry for entry in linked if isinstance(entry, Document)]
    followed = Folder.of(docs, follow_links=True).documents()
    assert "absolute.txt" in {entry.document_id for entry in followed if isinstance(entry, Document)}
    (named,) = Folder.of(docs / "absolute.txt").documents()  # asked for by name
    assert isinstance(named, Document)


def test_names_that_are_not_utf_8_and_odd_files_are_read_or_told(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"men\xfc.txt")).write_text("The soup is lentil soup.")
    (tmp_path / os.fsdecode(b"list\xfc.bin")).write_text("x")
    (tmp_path / "hours.txt").write_text("The kitchen closes at ten.")
    (tmp_path / "old.txt").write_text("Of another age.")
    os.utime(tmp_path / "old.txt", (-1e12, -1e12))
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(2**28 + 1)
    folder = Folder.of(tmp_path)
    found = {entry.document_id: entry for entry in folder.documents()}
    assert set(found) == {"men\\xfc.txt", "hours.txt", "old.txt", "huge.txt"}
    assert isinstance(found["huge.txt"], DocumentTooLarge)
    assert all(isinstance(found[name], Document) for name in ("men\\xfc.txt", "hours.txt", "old.txt"))
    assert folder.skipped == ["list\\xfc.bin"]


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


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# C#\n\nA language.\n", "C#"), ("# A title ##\n", "A title"),
        ("#\tA title\n", "A title"), ("   # Deep\n", "Deep"),
        ("    # code\n", None), ("#no heading\n", None), ("#\n", None), ("####### seven\n", None),
        ("## second\n", None),
        ("---\ntitle: 'Front'\n---\n# Body\n", "Front"), ("---\ntitle: never closed\n# Body\n", "Body"),
        ("# Release notes" + " " * 2000 + "v2\n", "Release notes" + " " * 2000 + "v2"),
    ],
)  # fmt: skip
def test_the_title_of_a_markdown_document(text: str, title: str | None) -> None:
    assert read("d", text, "text/markdown").title == title
