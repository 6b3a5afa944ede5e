"""Shell words: quotes, escapes and variables in the arguments of a Dockerfile's instructions.

As the builder of docker reads them: ``'…'`` as it is, ``"…"`` with variables, ``$NAME``, ``${NAME}``, and ``${NAME:-word}``,
``${NAME:+word}``, ``${NAME:?word}``, each also without the colon. Source: buildkit ``frontend/dockerfile/shell/lex.go``.
"""

from __future__ import annotations

from collections.abc import Mapping

from imgstore.errors import InvalidError

ESCAPE = "\\"
_SPECIAL_NAMES = "@*#?-$!0"


def expand_word(text: str, variables: Mapping[str, str], *, escape: str = ESCAPE) -> str:
    """The text with quotes taken away and variables replaced; those that are not set are empty.

    Raises:
        InvalidError: a quote or brace without its end, or an expansion that is not known.
    """
    return _expand(text, variables, escape)[0]


def expand_words(text: str, variables: Mapping[str, str], *, escape: str = ESCAPE) -> list[str]:
    """As `expand_word`, and split at spaces that are not quoted, those of variables included."""
    return _expand(text, variables, escape)[1]


def _expand(text: str, variables: Mapping[str, str], escape: str) -> tuple[str, list[str]]:
    try:
        return _Expansion(text, variables, escape).until("")
    except _SyntaxError as error:
        raise InvalidError(f'failed to process "{text[:200]}": {error}') from None


class _SyntaxError(Exception):
    """What is wrong with the text."""


class _Words:
    """The result so far, split into words."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._word = ""

    def add(self, text: str) -> None:
        """Adds text whose spaces split words."""
        for character in text:
            if not character.isspace():
                self._word += character
            else:
                self.finish()

    def add_quoted(self, text: str) -> None:
        """Adds text that splits nothing."""
        self._word += text

    def finish(self) -> list[str]:
        """Ends the word, if one has begun."""
        if self._word:
            self.words.append(self._word)
            self._word = ""
        return self.words


class _Expansion:
    def __init__(self, text: str, variables: Mapping[str, str], escape: str) -> None:
        self._text = text
        self._variables = variables
        self._escape = escape
        self._position = 0

    def until(self, stop: str) -> tuple[str, list[str]]:
        """What stands before the character ``stop``, or before the end where that is empty: as one text, and as words."""
        result = ""
        words = _Words()
        while character := self._peek():
            if character == stop:
                self._position += 1
                return result, words.finish()
            if character == "$":
                value = self._dollar()
                words.add(value)
            elif character == "'":
                value = self._single_quoted()
                words.add_quoted(value)
            elif character == '"':
                value = self._double_quoted()
                words.add_quoted(value)
            elif character == self._escape:
                self._position += 1
                value = self._next()  # nothing at the end of the text
                words.add_quoted(value)
            else:
                value = self._next()
                words.add(value)
            result += value
        if stop:
            raise _SyntaxError(f"unexpected end of statement while looking for matching {stop}")
        return result, words.finish()

    def _peek(self) -> str:
        return self._text[self._position : self._position + 1]

    def _next(self) -> str:
        character = self._peek()
        self._position += len(character)
        return character

    def _single_quoted(self) -> str:
        start = self._position + 1
        end = self._text.find("'", start)
        if end < 0:
            raise _SyntaxError("unexpected end of statement while looking for matching single-quote")
        self._position = end + 1
        return self._text[start:end]

    def _double_quoted(self) -> str:
        self._position += 1
        result = ""
        while character := self._peek():
            if character == "$":
                result += self._dollar()
                continue
            self._position += 1
            if character == '"':
                return result
            if character == self._escape:
                if not self._peek():
                    break
                if self._peek() in ('"', "$", self._escape):
                    character = self._next()
            result += character
        raise _SyntaxError("unexpected end of statement while looking for matching double-quote")

    def _dollar(self) -> str:
        self._position += 1
        if self._peek() != "{":
            name = self._name()
            return self._variables.get(name, "") if name else "$"
        self._position += 1
        if not self._peek():
            raise _SyntaxError("syntax error: missing '}'")
        if self._peek() in "{}:":
            raise _SyntaxError("syntax error: bad substitution")
        name = self._name()
        modifier = self._next()
        if modifier == "}":
            return self._variables.get(name, "")
        if modifier == ":":
            modifier += self._next()
        if modifier.removeprefix(":") not in ("-", "+", "?"):
            raise _SyntaxError(f"unsupported modifier ({modifier}) in substitution" if modifier else "syntax error: missing '}'")
        return self._substitute(name, modifier)

    def _substitute(self, name: str, modifier: str) -> str:
        try:
            word, _ = self.until("}")
        except _SyntaxError:
            if not self._peek():
                raise _SyntaxError("syntax error: missing '}'") from None
            raise
        value = self._variables.get(name)
        missing = value is None or (modifier.startswith(":") and not value)
        match modifier[-1]:
            case "-":
                return word if missing else value or ""
            case "+":
                return "" if missing else word
        if missing:
            state = "unset" if value is None else "empty"
            raise _SyntaxError(f"{name}: {word or f'is not allowed to be {state}'}")
        return value or ""

    def _name(self) -> str:
        start = self._position
        first = self._peek()
        if first.isdigit():
            while self._peek().isdigit():
                self._position += 1
        elif first and first in _SPECIAL_NAMES:
            self._position += 1
        else:
            while self._peek() == "_" or self._peek().isalnum():
                self._position += 1
        return self._text[start : self._position]
