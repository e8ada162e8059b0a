"""The one exception of this library, and what of a stranger's text a terminal may show."""


class VlmEditError(ValueError):
    """Something the caller can mend: the message names the thing, its value and the mend.

    Example:
        >>> from vlm_edit import Ablate, VlmEditError
        >>> try:
        ...     Ablate([])
        ... except VlmEditError as error:
        ...     print(error)
        Ablate needs at least one feature: features is empty
    """


def printable(value: object) -> str:
    r"""Text without control characters, which a file may hold to fool a terminal.

    Example:
        >>> printable("a\x1b[2J cat\n")
        'a [2J cat '
    """
    return "".join(c if c.isprintable() else " " for c in str(value))


def line(value: object) -> str:
    r"""The same on one line, with single spaces.

    Example:
        >>> line("a\x1b[2J\n cat")
        'a [2J cat'
    """
    return " ".join(printable(value).split())
