"""Numbers of features, as they are typed."""

from __future__ import annotations

from vlm_edit.ground.errors import BadArgument


def numbers(text: str, option: str) -> list[int]:
    """Return the numbers that an option names.

    Args:
        text: As typed, with commas between.
        option: Its name.

    Raises:
        BadArgument: Something else than numbers.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise BadArgument(
            f"{option} takes numbers of features, such as 3,17, got {text!r}"
        ) from error
