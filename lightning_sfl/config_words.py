"""Values, types and chains of errors in the words of a config, for errors of one line."""

from __future__ import annotations

import re

from lightning_sfl.core.errors import SFLError

_NUMBER = re.compile(r"-?(\d[\d_]*\.?\d*(e[-+]?\d+)?|inf|nan)|None|True|False", re.IGNORECASE)
_WORDS = {"int": "an integer", "float": "a finite number", "bool": "true or false", "str": "text", "NoneType": "null"}
_WORDS["collections.abc.Sequence"] = "a list in brackets"
_LISTS = {"list[float]": "a list of numbers in brackets", "list[int]": "a list of integers in brackets"}
_TYPE = re.compile(
    r"<class '([\w.]+)'>|Literal\[([^\]]*)\]|((?:list|dict|tuple|set)\[[^\[\]]*(?:\[[^\[\]]*\])?[^\[\]]*\])"
)
_LONGEST_VALUE = 80


def one_line(error: BaseException) -> str:
    """The message of an error with its line breaks and runs of blanks taken out."""
    return " ".join(str(error).split())


def causes(error: BaseException | None) -> list[BaseException]:
    """The error and what it came from, outermost first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain


def original(error: BaseException) -> BaseException:
    """The first of our own errors in the chain, or else where the chain began."""
    chain = causes(error)
    return next((link for link in chain if isinstance(link, SFLError)), chain[-1])


def readable(types: str) -> str:
    """Types of Python in the words of a config: `an integer or null`."""
    words = []
    for name, choices, container in _TYPE.findall(types):
        if choices:
            words += [choice.strip().strip("'") for choice in choices.split(",")]
        elif container:
            plain = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", container)
            words.append(_LISTS.get(plain, plain))
        elif name != "torch.Tensor":
            words.append(_WORDS.get(name, f"a {name.rpartition('.')[2]}"))
    unique = list(dict.fromkeys(words)) or [types]
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"


def shown(value: object) -> str:
    """A value as one would write it, shortened."""
    text = " ".join(str(value).split())
    return shortened(text if _NUMBER.fullmatch(text) or text.startswith(("[", "{")) else repr(text), _LONGEST_VALUE)


def shortened(text: str, longest: int) -> str:
    """The text, or its beginning and dots."""
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."
