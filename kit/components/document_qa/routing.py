"""A fixed rule for questions that are not for the documents: calculations, and commands that name a tool.

A **calculation** can be written as an expression of numbers, ``+ - * / // %`` and brackets, and asks for nothing else:
"What is 15 % of twelve?" is one; "Why does 0.1 + 0.2 differ from 0.3?", "What changed in Python 3.11?", and a problem
told in sentences are not. A **command** begins with the verb of a tool's name, or with "use", and has its other words:
"Count the words in …" is one for ``count_words``; "How do I count words?" is not. Both are read in English.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence

CALCULATOR = "calculate"  # the tool that calculations need
_LONGEST = 200  # characters of a calculation, and of a question's beginning that may name a tool
_UNITS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
""".split()  # noqa: SIM905
_TENS = {
    f"{word}ty": 10 * n for n, word in enumerate(("twen", "thir", "for", "fif", "six", "seven", "eigh", "nine"), 2)
}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6}
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_UNITS[1:10])}))?|{'|'.join(_UNITS)})\b"
_SCALED = rf"[- ](?:{'|'.join(_SCALES)})\b(?:(?: and)?[- ]{_BELOW_100})?"
_IN_WORDS = re.compile(rf"\b(?:an?(?={_SCALED})|{_BELOW_100})(?:{_SCALED})*")
_N = r"\d++(?:\.\d++)?"
_FOLDS = {
    "add": "+", "sum": "+", "total": "+", "average": "+", "mean": "+", "multiply": "*", "product": "*", "divide": "/",
    "quotient": "/", "subtract": "-", "difference": "-",
}  # fmt: skip
_FOLD = re.compile(
    rf"\b({'|'.join(_FOLDS)})(?: up)?(?: of| between)?(?: the)?(?: numbers)?"
    rf" (-?{_N}(?:(?:,? and|,| by| to| from| with) -?{_N})+)"
)
_POWER = re.compile(
    rf"(?<![\d.])({_N})(?: (squared|cubed)\b|(?:(?: raised)? to the power of | ?(?:\^|\*\*) ?)(\d\d?)\b)"
)
_SIGNS = {
    "plus": "+", "added to": "+", "minus": "-", "less": "-", "negative": "-", "times": "*", "multiplied by": "*",
    "divided by": "/", "over": "/", "modulo": "%", "mod": "%", "percent of": "/ 100 *", "half of": "0.5 *",
    "twice": "2 *", "double": "2 *", "triple": "3 *", "a third of": "1 / 3 *", "a quarter of": "0.25 *",
}  # fmt: skip
_SIGN = re.compile(rf"\b(?:{'|'.join(_SIGNS)})\b")
_TIMES = re.compile(r"(?<=\d) ?x ?(?=\d)")
_NONE = re.compile(r"\b\d{1,4}([-/])\d{1,2}\1\d{1,4}\b|\d%(?!\d)")  # a date, or a percentage without a base
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}\b)")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[^\W\d_]+")
_ASKING = frozenset(
    """
    what s is are how much many do does you i we get got can could would will please kindly tell me give show us
    compute calculate evaluate work out figure solve find know need want to the a result answer value sum total of
    for equal equals make makes come be when if hi hey hello thanks thank now just quick quickly ok okay so it that
    expression calculation arithmetic determine d like there altogether
    """.split()  # noqa: SIM905
)
_ARITHMETIC = re.compile(r"[\d\s.()+*/%-]+")
_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.USub, ast.UAdd, ast.Add, ast.Sub, ast.Mult,
          ast.Div, ast.FloorDiv, ast.Mod)  # fmt: skip
_POLITE = re.compile(
    r"(?:(?:please|kindly|now|just|then|ok|okay|hi|hey|hello|so|(?:can|could|would|will) you|i want you to)[,!:]? )*"
)
_QUESTIONS = frozenset(
    """
    what which who whom whose when where why how is are was were am do does did can could should would will may
    might must has have had in on at for of if
    """.split()  # noqa: SIM905
)


def read_calculation(question: str) -> str | None:
    """Return the expression that a question asks to calculate, or None when it asks anything else."""
    if len(question) > _LONGEST:
        return None
    text = _POWER.sub(_multiplied, _FOLD.sub(_folded, _plain(question).replace("% of", " percent of")))
    text = _TIMES.sub(" * ", _SIGN.sub(lambda sign: _SIGNS[sign.group()], text))
    if _NONE.search(text):
        return None
    text = _WORD.sub(lambda word: "" if word.group() in _ASKING else word.group(), text.replace("'", " "))
    text = " ".join(text.strip(' =?!.,:;`"').split())
    return text if len(text) <= _LONGEST and _ARITHMETIC.fullmatch(text) and _is_sum(text) else None


def read_command(question: str) -> list[str]:
    """Return the words of a possible command; empty if it begins like a question."""
    words = _words(question[:_LONGEST])
    return [] if words[:1] and words[0] in _QUESTIONS else words


def find_tool(command: Sequence[str], tools: Iterable[str]) -> str | None:
    """Return the tool that a command names, or None; a calculator has to be given a number, too."""
    said = {_singular(word) for word in command}
    for tool in sorted(tools, key=lambda name: (-len(name), name)):
        parts = [_singular(part) for part in _words(_CAMEL.sub(" ", tool))]
        begins = command[:1] == ["use"] or [*map(_singular, command[:1])] == parts[:1]
        if begins and said.issuperset(parts) and (tool != CALCULATOR or any(word.isdigit() for word in command)):
            return tool
    return None


def _plain(text: str) -> str:
    """Return a text in small letters, with single spaces, ASCII's signs, and numbers in digits."""
    text = text.lower().translate(str.maketrans("×·÷−’", "**/-'"))
    return _IN_WORDS.sub(_in_digits, _GROUPED.sub("", " ".join(text.split())))


def _words(text: str) -> list[str]:
    """Return the words of a text or of a name in small letters, without what politeness puts before them."""
    return re.findall(r"[^\W_]+", _POLITE.sub("", _plain(text), count=1))


def _in_digits(match: re.Match[str]) -> str:
    total = current = 0
    for word in re.split("[- ]", match.group()):
        if word in ("a", "an", "and"):
            current = current or int(word != "and")
        elif word == "hundred":
            current *= 100
        elif word in _SCALES:
            total, current = total + current * _SCALES[word], 0
        else:
            current += _TENS[word] if word in _TENS else _UNITS.index(word)
    return str(total + current)


def _folded(match: re.Match[str]) -> str:
    name, numbers = match.group(1), re.findall(rf"-?{_N}", match.group(2))
    if name == "subtract" and " from " in match.group(2):
        numbers.reverse()
    whole = f"({f' {_FOLDS[name]} '.join(numbers)})"
    return f"{whole} / {len(numbers)}" if name in ("average", "mean") else whole


def _multiplied(match: re.Match[str]) -> str:
    number, word, exponent = match.groups()
    return f"({' * '.join([number] * ({'squared': 2, 'cubed': 3}.get(word) or int(exponent)))})"


def _is_sum(text: str) -> bool:
    """Return whether a text is an expression that has something to calculate."""
    try:
        parsed = ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    return isinstance(parsed.body, ast.BinOp) and all(
        isinstance(node, _NODES) and getattr(node, "value", 0) is not ... for node in ast.walk(parsed)
    )


def _singular(word: str) -> str:
    return word.removesuffix("s")
