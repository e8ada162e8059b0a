"""Errors and warnings of this library, and what of a stranger's text a terminal may show."""

from __future__ import annotations


class VlmEditError(ValueError):
    """Say what the caller can mend: the message names the thing, its value and the mend.

    Its kinds are for a caller that goes on by itself, such as a server: ``BadArgument``,
    ``UnknownName``, ``WrongHost``, ``DamagedFile`` and ``CannotKnow``.

    Example:
        >>> from vlm_edit import Ablate, VlmEditError
        >>> try:
        ...     Ablate([])
        ... except VlmEditError as error:
        ...     print(error)
        Ablate needs at least one feature: features is empty
    """


class BadArgument(VlmEditError):
    """Refuse what was passed: another kind of thing, or a value that is not possible."""


class UnknownName(VlmEditError):
    """Refuse a name that nothing goes by: of a site, a rule, a format, a kind of host."""


class WrongHost(VlmEditError):
    """Refuse a model that is not the one a patch, a dictionary or a run was made for."""


class DamagedFile(VlmEditError):
    """Refuse a file that is not what was written, or not of the kind it should be."""


class CannotKnow(VlmEditError):
    """Refuse to guess what a call does not show: the message says what to pass."""


class VlmEditWarning(UserWarning):
    """Warn of what may surprise, and went on."""


def expect_kind(name: str, value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """Refuse an argument of another kind.

    Args:
        name: The argument's.
        value: What was passed.
        kind: What it must be an instance of.
        wanted: What that is and how to come by one, in words.

    Raises:
        BadArgument: It is not.

    Example:
        >>> expect_kind("site", 3, str, "a site's name, such as 'joint'")
        Traceback (most recent call last):
        vlm_edit.ground.errors.BadArgument: site is 3 (int); give a site's name, such as 'joint'
    """
    if not isinstance(value, kind):
        text = line(repr(value))
        text = text if len(text) <= 80 else f"{text[:77]}..."
        raise BadArgument(f"{name} is {text} ({type(value).__name__}); give {wanted}")


def printable(value: object) -> str:
    r"""Return text without control characters, which a file may hold to fool a terminal.

    Example:
        >>> printable("a\x1b[2J cat\n")
        'a [2J cat '
    """
    return "".join(c if c.isprintable() else " " for c in str(value))


def line(value: object) -> str:
    r"""Return the same on one line, with single spaces.

    Example:
        >>> line("a\x1b[2J\n cat")
        'a [2J cat'
    """
    return " ".join(printable(value).split())
