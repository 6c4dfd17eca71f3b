"""Which numbers a text claims, and whether they were printed.

A number counts as claimed if it has a decimal point, an exponent (`3e-7`, `3 × 10⁻⁷`) or a percent sign.
Plain integers, years and the numbers of chapters, sections, figures or versions do not; nor does anything
in formulas, code, roles, citations, directive options and link targets. It is supported if a printed
number, rounded to as many digits as the prose gives, is the same; signs are left out of it ("falls by
0.6" is -0.6), and a percentage may have been printed as a fraction.
"""

import re
from dataclasses import dataclass
from decimal import Decimal

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")

# Digits, then at most one of the two notations of a power of ten, then perhaps a percent sign.
NUMBER = re.compile(
    r"(?<![\w.])(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:[eE](?P<exp>[+-]?\d+)|\s?[×x·]\s?10(?P<times>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+))?"
    r"(?P<power>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)?"
    r"(?P<percent>\s?(?:%|per ?cent\b))?"
)

NOT_PROSE = [
    re.compile(pattern, flags=re.DOTALL | re.MULTILINE | re.IGNORECASE)
    for pattern in (
        r"\$\$.*?\$\$",  # formulas
        r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}",
        r"(?<![\\\w])\$[^$\n](?:[^$]*?[^$\s\\])?\$",
        r"\{[\w:-]+\}(`+).+?\1",  # roles: references, citations, inline maths
        r"(`+)[^`].*?\1",  # code
        r"^[ \t]*:[\w-]+:.*?$",  # directive options
        r"^\([\w-]+\)=[ \t]*$",  # targets
        r"^%.*?$",
        r"<!--.*?-->",
        r"\]\([^)]*\)",  # where links lead
        r"<[^>\n]*>",
        r"^#+[ \t]+\d+(?:\.\d+)*\.?(?=\s)",  # numbered headings
        r"\b(?:parts?|chapters?|ch|sections?|sec|figures?|figs?|tables?|equations?|eqs?|exercises?|versions?|python|jax)"
        r"\.?\s+\d+(?:\.\d+)*(?:\s*(?:,|and|to|-|–)\s*\d+(?:\.\d+)+)*",
    )
]

FENCED = re.compile(r"^[ \t]*(?P<fence>`{3,}|~{3,}|:{3,})[ \t]*(?P<what>[^\n]*)$")
CODE_DIRECTIVES = ("math", "code", "code-block", "code-cell", "literalinclude", "bibliography")


@dataclass(frozen=True)
class Number:
    """A number as written: its absolute value, half a unit of its last digit, whether it is a percentage."""

    text: str
    value: Decimal
    half_digit: Decimal
    percent: bool

    @property
    def is_claim(self) -> bool:
        """Whether it is more than a plain integer."""
        return self.percent or not re.fullmatch(r"[\d,]+", self.text)


def parse(text: str) -> list[Number]:
    """Every number in a text, plain integers included."""
    return [_number(match) for match in NUMBER.finditer(text)]


def claimed(markdown: str) -> list[Number]:
    """The numbers that a piece of prose claims."""
    return [number for number in parse(prose(markdown)) if number.is_claim]


def supported(written: Number, printed: list[Number]) -> bool:
    """Whether some printed number, rounded as the prose rounds it, is the one written."""
    candidates = (
        value
        for number in printed
        for value in ((number.value, number.value * 100) if written.percent and not number.percent else (number.value,))
    )
    return any(abs(value - written.value) <= written.half_digit for value in candidates)


def prose(markdown: str) -> str:
    """The markdown without formulas, code, references and the like."""
    text = _without_code_blocks(markdown)
    for pattern in NOT_PROSE:
        text = pattern.sub(" ", text)
    return text


def _without_code_blocks(markdown: str) -> str:
    """Drop fenced code and formulas with their content; of other directives drop the fence lines only."""
    kept = []
    open_fences: list[tuple[str, bool]] = []  # each with whether its content is prose
    for line in markdown.splitlines():
        fence = FENCED.match(line)
        reads_as_prose = not open_fences or open_fences[-1][1]
        if fence is None:
            if reads_as_prose:
                kept.append(line)
        elif open_fences and fence["fence"] == open_fences[-1][0] and not fence["what"].strip():
            open_fences.pop()
        elif reads_as_prose:
            directive = re.match(r"\{([\w:-]+)\}", fence["what"])
            open_fences.append((fence["fence"], directive is not None and directive[1] not in CODE_DIRECTIVES))
    return "\n".join(kept)


def _number(match: re.Match[str]) -> Number:
    digits = Decimal(match["digits"].replace(",", ""))
    exponent = match["exp"] or (match["times"] or "").translate(SUPERSCRIPTS)
    if match["power"] and not exponent:  # 10⁻⁶: a power of whatever stands before it
        value = digits ** int(match["power"].translate(SUPERSCRIPTS))
        half = Decimal(0)
    else:
        scale = Decimal(10) ** int(exponent or 0)
        value = digits * scale
        half = scale * Decimal(10) ** int(digits.as_tuple().exponent) / 2
    return Number(match[0].strip(), value, half, bool(match["percent"]))
