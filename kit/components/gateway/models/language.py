"""Plain text as the extractive model reads it: units (sentences, list items, code) and words with light stems."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace

_WORD = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]+(?:['’][^\W\d_]{1,2}\b)?")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|approx|ca|no|nos|fig|eq|vol|pp?|mr|mrs|ms|dr|prof|st|jr|sr|u\.s"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)|^\W*\d{1,2})\.$",
    re.IGNORECASE,
)
_LONGEST = 40  # characters in which an abbreviation stands out
_INITIAL = re.compile(r"(?:^|[\s(\"“'])[A-Z]\.$")
# A sentence may also begin with a call or a dotted name: "eval() also has ...", "os.makedirs(path) will ...".
_BOUNDARY = re.compile(r"[.!?…][\"'”’)\]]*\s+(?=[\"'“‘(\[`*_]*[A-Z0-9À-ÖØ-Þ>]|[\w.]+\()")
_ITEM = re.compile(r"^\s*(?:[-*•‣–]|\(?\d{1,2}[.)]|\(?[a-z][.)])\s+(?=\S)")
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+")
_CODE_LINE = re.compile(
    r"^\s*+(?:>>>|\.\.\.(?:\s|$)|\$ |#!|@\w+"
    r"|(?:def|class|import|from|return|raise|try:|except|else:|elif|for|while|with)\b.*[:)\w]$|if .+:$|print\("
    r"|[\w.\[\]'\", ]+ ?(?:[+*/|-]|//|\*\*)?= ?\S.*[^.]$|[\w.]+\(.*\)[;:]?(?:\s+#.*)?$|[{}();\[\]]+$)"
)
_STOPWORDS_TEXT = """
a about actually also am an and any anyone are as at be been being but by can could did do does doing done
exactly for from give had has have having he her here him his how i if in into is it its just let like may me
might must my no not of on or our out over please shall she should so some such tell than that the their them
then there these they this those through to too under up upon us very was we were what what's when where which
while who whom whose why will with would you your there's isn't doesn't don't can't aren't didn't won't i've i'm
it's explain describe know want need get us
"""
STOPWORDS = frozenset(_STOPWORDS_TEXT.split())


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """The smallest piece that may be quoted: a sentence, a list item, a table row or a block of code.

    Attributes:
        text: as it stands, on one line unless it is code.
        kind: ``sentence``, ``item``, ``code`` or ``heading``.
        whole: False for a sentence that the passage cuts off.
        paragraph: number of the paragraph it stands in.
    """

    text: str
    kind: str
    whole: bool = True
    paragraph: int = 0


def words(text: str) -> list[str]:
    """Return the words and numbers of a text, as written."""
    return _WORD.findall(text)


# Words for one thing in everyday documents that the trained vectors do not bring together by themselves.
_SYNONYMS_TEXT = """
vacation leave holiday | fee price cost charge fare | warranty guarantee | phone telephone call | wifi wireless wlan |
begin start commence open | close shut end | buy purchase order | salary pay wage | doctor physician |
note certificate | email mail | ceo chief | join register signup enrol | inhabitant population resident people |
food meal | length long character | heavy weight weigh | hot warm cold temperature | brew make prepare |
amount volume quantity | error exception failure bug | delete remove erase | copy duplicate clone |
convert cast transform | speed fast slow performance | document documentation manual | install setup |
run execute launch | show display print | picture image photo | fix repair solve | forbid prohibit ban |
allow permit | require need must | employee staff worker | firm company
"""
_SYNONYMS = [frozenset(group.split()) for group in _SYNONYMS_TEXT.split("|")]


@functools.lru_cache(maxsize=1)
def _synonyms() -> dict[str, frozenset[str]]:
    table: dict[str, frozenset[str]] = {}
    for group in _SYNONYMS:
        stems = frozenset(stem(word) for word in group)
        for root in stems:
            table[root] = table.get(root, frozenset()) | stems
    return table


def synonyms(root: str) -> frozenset[str]:
    """Return the stems of other everyday words for the same thing; empty for most."""
    return _synonyms().get(root, frozenset())


@functools.lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """Return a light English stem in lower case: enough to join "copies", "copied" and "copying"."""
    word = word.casefold().replace("’", "'")
    word = word.removesuffix("'s").removesuffix("'")
    if len(word) <= 3 or not word.isalpha():
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "i"
    if (word.endswith("es") and word[-3] in "sxz") or word.endswith(("ches", "shes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for suffix in ("ingly", "edly", "ing", "ed", "ly"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and re.search("[aeiouy]", word[: -len(suffix)]):
            word = word[: -len(suffix)]
            if word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    if word.endswith("y") and len(word) > 3:
        return word[:-1] + "i"
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def split_units(text: str) -> list[Unit]:
    """Split a passage into units in their order; what a chunk border cut off is marked as not whole."""
    units: list[Unit] = []
    fenced = False
    for number, block in enumerate(re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip("\n"))):
        lines = block.split("\n")
        fences = sum(line.lstrip().startswith("```") for line in lines)
        if fenced or fences:
            units += _fenced(lines, number, fenced)
            fenced ^= fences % 2 == 1
        elif _is_code(lines):
            units.append(Unit(text=block.strip("\n").rstrip(), kind="code", paragraph=number))
        else:
            units += _prose(lines, number)
    return _mark_cut(units)


def _fenced(lines: list[str], number: int, fenced: bool) -> list[Unit]:
    """Units of a block with Markdown code fences in it."""
    units: list[Unit] = []
    pending: list[str] = []

    def flush() -> None:
        if any(line.strip() for line in pending):
            if fenced:
                units.append(Unit(text="\n".join(pending).strip("\n"), kind="code", paragraph=number))
            else:
                units.extend(_prose(pending, number))
        pending.clear()

    for line in lines:
        if line.lstrip().startswith("```"):
            flush()
            fenced = not fenced
        else:
            pending.append(line)
    flush()
    return units


def _is_code(lines: list[str]) -> bool:
    filled = [line for line in lines if line.strip()]
    if not filled or any(_HEADING.match(line) or _ITEM.match(line) for line in filled[:1]):
        return False
    indented = sum(line.startswith(("    ", "\t")) for line in filled)
    marked = sum(bool(_CODE_LINE.match(line)) for line in filled)
    if filled[0].lstrip().startswith(">>>"):
        return True
    return marked + (indented if marked or indented == len(filled) else 0) >= max(1, 0.6 * len(filled))


def _prose(lines: list[str], number: int) -> list[Unit]:
    """Join hard-wrapped lines; keep headings, list items and table rows apart."""
    units: list[Unit] = []
    run: list[str] = []

    def flush() -> None:
        if run:
            item = bool(_ITEM.match(run[0]))
            joined = " ".join(line.strip() for line in run)
            kind = "item" if item else "sentence"
            sentences = _sentences(_ITEM.sub("", joined) if item else joined)
            units.extend(Unit(text=sentence, kind=kind, paragraph=number) for sentence in sentences)
            run.clear()

    for line in lines:
        if _HEADING.match(line):
            flush()
            units.append(Unit(text=_HEADING.sub("", line).strip(" #"), kind="heading", paragraph=number))
        elif line.lstrip().startswith("|"):
            flush()
            if not re.fullmatch(r"[\s|:=-]+", line):
                row = ", ".join(cell.strip() for cell in line.strip().strip("|").split("|"))
                units.append(Unit(text=row, kind="item", paragraph=number))
        else:
            if _ITEM.match(line) or (run and _ends_line(run[-1], line)):
                flush()
            run.append(line)
    flush()
    return [unit for unit in units if unit.text]


def _ends_line(previous: str, line: str) -> bool:
    """Whether a new line begins a new unit: the one before is short and complete, as in "Opening hours: 9 to 5"."""
    short = len(previous) < 60 and not previous.rstrip().endswith((",", ";", "-", "–"))
    return short and bool(re.match(r"[\"“'(]?[A-Z0-9].*", line.lstrip()))


def _sentences(text: str) -> list[str]:
    pieces: list[str] = []
    begin = 0
    for match in _BOUNDARY.finditer(text):
        end = match.start() + len(match.group().rstrip())
        tail = text[max(begin, end - _LONGEST) : end]
        if text[match.start()] == "." and (_ABBREVIATION.search(tail) or _INITIAL.search(tail)):
            continue
        pieces.append(text[begin:end])
        begin = match.end()
    pieces.append(text[begin:].strip())
    return [piece for piece in pieces if piece]


def _mark_cut(units: list[Unit]) -> list[Unit]:
    """Mark units that begin in the middle, and a last one that ends there; join code that only a blank line parts."""
    marked: list[Unit] = []
    for index, unit in enumerate(units):
        if unit.kind == "code" and marked and marked[-1].kind == "code":
            marked[-1] = replace(marked[-1], text=f"{marked[-1].text}\n\n{unit.text}")
        elif unit.kind == "sentence" and _is_cut(unit.text, last=index == len(units) - 1):
            marked.append(replace(unit, whole=False))
        else:
            marked.append(unit)
    return marked


def _is_cut(sentence: str, *, last: bool) -> bool:
    if re.match(r"[a-z,;:.)]", sentence) and not re.match(r"\A\.?[\w.]+[(_.]\w*", sentence):
        return True
    return last and len(sentence) > 60 and not re.search(r"[.!?:…][\"'”’)\]]*$", sentence)


_NUMBER_WORDS = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred|thousand|million"
    "|billion|dozen|half|twice|once|double|none|zero"
)
_ANSWERS: dict[str, re.Pattern[str]] = {
    "number": re.compile(rf"\d|\b(?:{_NUMBER_WORDS})\b", re.IGNORECASE),
    "time": re.compile(
        r"\b\d{3,4}\b|\b(?:January|February|March|April|May|June|July|August|September|October|November|December)\b"
        r"|century|\b(?:day|week|month|year|hour|minute|second)s?\b|\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
        r"|\b\d+(?::\d\d)? ?(?:am|pm|a\.m|p\.m)|\bduring\b|\bafter\b|\bbefore\b|\buntil\b|\bwhen\b|\bimmediately\b",
    ),
    "person": re.compile(r"(?<![.!?] )(?<!^)\b[A-Z][a-zß-ÿ]+|\b(?:he|she|they|team|manager|department)\b"),
    "place": re.compile(r"\b(?:in|at|on|near|from|to|under|inside|located|https?://|www\.)\b"),
    "reason": re.compile(
        r"\b(?:because|since|therefore|thus|hence|due to|reason|so that|in order to|caused? by|means? that|allows?"
        r"|to avoid|result|otherwise|as a consequence|led to)\b",
        re.IGNORECASE,
    ),
    "manner": re.compile(
        r"\b(?:use|using|call|run|by \w+ing|you can|you may|try|set|click|press|add|create|write|open|go to|enter"
        r"|install|select|follow|first|then|must|should|to \w+,)\b|\w\(\)|`",
        re.IGNORECASE,
    ),
}
_ASKED: tuple[tuple[str, str], ...] = (
    (
        "number",
        r"\bhow (?:many|much|long|old|far|fast|often|tall|high|deep|large|big|heavy)\b"
        r"|\bwhat (?:percent\w*|number|amount|share|fraction|price|age|height|length|weight)\b",
    ),
    (
        "time",
        r"\bwhen (?:is|was|were|are|did|does|do|will|can|should|must)\b|\bhow (?:soon|late|early)\b"
        r"|\bsince when\b|^when\b|\b(?:what|which) (?:year|date|day|month|time|century|decade)\b",
    ),
    ("person", r"\bwho(?:se|m)?\b|\bwhich (?:person|player|author|king|queen|president)\b"),
    ("place", r"\bwhere\b|\b(?:what|which) (?:city|country|place|state|region|town|location)\b"),
    ("reason", r"\bwhy\b|\bwhat (?:is the reason|causes?|caused)\b|\bhow come\b"),
    (
        "manner",
        r"\bhow (?:do|can|to|does|should|could|would|might|must)\b|\bis it possible\b"
        r"|\bis there (?:a|an|any) (?:way|tool|equivalent)\b",
    ),
)
_KINDS = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _ASKED)


def question_kind(question: str) -> str | None:
    """Return what kind of answer a question asks for (number, time, person, place, reason, manner), or None."""
    return next((kind for kind, pattern in _KINDS if pattern.search(question)), None)


def without_kind(question: str) -> str:
    """Return a question without the words that only say what kind of answer it asks for, such as "how many"."""
    return re.sub(
        r"\bhow (?:many|much|long|old|often)\b|\b(?:what|which) (?:year|date|time|kind"
        r"|type|sort)s?(?: of)?\b",
        " ", question, flags=re.IGNORECASE,
    )  # fmt: skip


def answers_kind(kind: str, text: str) -> bool:
    """Return whether a text holds something of the kind that a question asks for."""
    if kind != "place":
        return bool(_ANSWERS[kind].search(text))
    # The first such word of a line has the most behind it in which a place may be named.
    leads = ((line, _ANSWERS[kind].search(line)) for line in text.split("\n"))
    return any(lead is not None and _NAMED_PLACE.search(line, lead.end()) for line, lead in leads)


_NAMED_PLACE = re.compile(r"[A-Z]|/|\\|\bthe\b")


_ELSEWHERE = re.compile(
    r"^\W*+(?:(?:please|also|but|and|you (?:can|may|should)(?: also)?|for (?:\([^()]*+\)|[^,;:])*+,)\W++)*+"
    r"(?:see|refer to|consult|visit|read|check out|turn to|look at|(?:have|take) a look at)\b"
    r"|\bsee (?:also|below|above|the (?:next|following|previous|\S+ (?:section|chapter|page|documentation|manual)))\b"
    r"|\b(?:described|documented|discussed|explained|covered|listed|answered) (?:\w+ )?(?:below|above|elsewhere|later"
    r"|(?:in|at|on|under|by) (?:the|this|that|its|another|section|chapter|page|https?:))",
    re.IGNORECASE,
)


def points_elsewhere(text: str) -> bool:
    """Return whether a sentence mainly says where to read on: "For details, see ...", "... is described below"."""
    return bool(_ELSEWHERE.search(text))


def defines(question: str) -> bool:
    """Return whether a question asks what something is."""
    return bool(
        re.match(r"\A\W*+(?:what(?:'s| is| are| does)|who (?:is|was|are)|define|explain)\b", question, re.IGNORECASE)
    )


def names_a_thing(question: str) -> bool:
    """Return whether a question asks of one thing, named by a name or with "a", what it is: not for a value of it."""
    return bool(re.match(r"\A\W*+(?i:what(?:'s|’s| is)|define|explain) (?:(?i:an?) \w+|[A-Z]\w*)\W*$", question))
