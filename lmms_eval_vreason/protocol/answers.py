"""From a split response to a bare answer: pure functions, the same for every model.

In this order the answer is the last statement of the form ``answer: B``; the ``<answer>`` block, where there is one;
the text itself or its last line, where that is an answer and nothing more. A letter or number that a chain merely
mentions is never an answer: such a response has none.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from lmms_eval_vreason.prompts.split import Split

T = TypeVar("T")

_SHORT_ANSWER_WORDS = 12  # an untagged line of more words is reasoning, not an answer

_STATEMENT = re.compile(
    r"(?:\banswer|\b(?:correct|best|right|final)\s+(?:option|choice)|答案)[*_]*\s*"
    r"(?:(?:is|would be|should be|must be|是|为)[*_]*\s*:?|[:=])[*_]*\s*(?=([^\n]*))",
    re.IGNORECASE,
)
_BOXED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}]*)\}+")
_WRAPPERS = "*_`\"'“”‘’$ \t\r\n"
_PREFIX = re.compile(r"^(?:option|choice|caption|sentence|description)\s+(?=[(\[]?\w\b)", re.IGNORECASE)
_KEY = re.compile(r"^(?P<open>[(\[])?(?P<key>\w)(?(open)[)\]])(?P<mark>[.:,)*]*)(?P<rest>.*)\Z", re.DOTALL)
_SECOND_KEY = re.compile(r"^\s*(?:and\b|or\b|/|&|,)?\s*[(\[]?[A-Z0-9](?:[)\].,:/&]|\s*\Z|\s+(?:and|or)\b)")
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+,\d{1,2}(?![\d,])|\d*\.\d+|\d+)(?:e[+-]?\d+)?")
_FRACTION = re.compile(r"(?<![\w.])(-?)(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)(?![\d/])")
_YES_NO = re.compile(r"^(yes|no)\b(?!-|\s*(?:/|(?:or|and)\b))", re.IGNORECASE)
_DASHES = str.maketrans({"−": "-", "–": "-", "﹣": "-", "⁄": "/"})


def parse_choice(response: Split, options: Mapping[str, str]) -> str | None:
    """The chosen key of ``options`` (key → text, one character a key), or None. Two keys at once are no answer."""
    return _parse(_folded(response), lambda text, loose: _choice(text, options, loose))


def parse_yes_no(response: Split) -> str | None:
    """``yes``, ``no`` or None."""
    return _parse(_folded(response), lambda text, loose: _yes_no(text))


def parse_number(response: Split) -> float | None:
    """A finite number, or None.

    Reads minus signs, fractions, thousands separators, decimal commas, units after the number, any script's digits.
    In a marked answer or a statement the first number counts, as in VSI-Bench's own rule; elsewhere it must be the
    only one.
    """
    return _parse(_folded(response), _number)


def parse_open(response: Split) -> str | None:
    """A free answer as a string, its characters left as they are, or None."""
    return _parse(response, lambda text, loose: text if loose or _is_short(text) else None)


def format_number(number: float) -> str:
    """Plain digits, without an exponent: the stock rule would stop reading at it."""
    return f"{number:.10f}".rstrip("0").rstrip(".")


def _folded(response: Split) -> Split:
    """With plain characters for compatibility ones and dashes."""
    return replace(response, answer=unicodedata.normalize("NFKC", response.answer).translate(_DASHES))


def _bare(text: str) -> str:
    """Without the markup or the box around it."""
    boxed = _BOXED.findall(text)
    return (boxed[-1] if boxed else text).strip(_WRAPPERS)


def _is_short(text: str) -> bool:
    return bool(text) and "\n" not in text and len(text.split()) <= _SHORT_ANSWER_WORDS


def _parse(response: Split, read: Callable[[str, bool], T | None]) -> T | None:
    """Tries ``read(text, loose)`` where an answer may stand; ``loose`` tells that the text is marked as the answer."""
    text = _bare(response.answer)
    if not text:
        return None
    statements = [found[1] for found in _STATEMENT.finditer(text)]
    stated = read(_bare(statements[-1]), True) if statements else None
    if response.tagged:
        return read(text, True) if stated is None else stated
    if statements:
        return stated
    answer = read(text, False)
    return read(_bare(text.splitlines()[-1]), False) if answer is None else answer


def _choice(text: str, options: Mapping[str, str], loose: bool) -> str | None:
    texts = {key: _plain(option) for key, option in options.items()}
    same = [key for key, option in texts.items() if option and option == _plain(text)]
    if len(same) == 1:
        return same[0]
    found = _KEY.match(_PREFIX.sub("", text))
    if found is None:
        return None
    key, rest = found["key"].upper(), found["rest"].strip()
    marked = bool(found["open"] or found["mark"])
    if key not in options or (rest and found["rest"][0].isalnum()):
        return None
    if not rest:
        return key
    if texts[key] and _plain(rest) == texts[key]:
        return key
    if not loose or _SECOND_KEY.match(found["mark"].lstrip(".:)*") + rest):
        return None
    return key if marked or found["key"].isupper() else None


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s.+\-/]", " ", unicodedata.normalize("NFKC", text)).casefold().split()).strip(". ")


def _yes_no(text: str) -> str | None:
    found = _YES_NO.match(text)
    return found[1].lower() if found and _is_short(text) else None


def _number(text: str, loose: bool) -> float | None:
    if not loose and not _is_short(text):
        return None
    values = _numbers(text)
    if not values or (not loose and len(set(values)) > 1):
        return None
    return values[0]


def _numbers(text: str) -> list[float]:
    """All numbers of a cleaned text in order, fractions as one."""
    values, position = [], 0
    while found := _NUMBER.search(text, position):
        fraction = _FRACTION.match(text, found.start())
        if fraction and int(fraction[4]):
            sign, whole, above, below = fraction.groups()
            value = int(whole or 0) + int(above) / int(below)
            values.append(-value if sign else value)
            position = fraction.end()
        else:
            values.append(float(_plain_number(found[0])))
            position = found.end()
    return [value for value in values if math.isfinite(value)]


def _plain_number(text: str) -> str:
    decimal_comma = re.fullmatch(r"-?\d+,\d{1,2}", text)
    return text.replace(",", "." if decimal_comma else "")
