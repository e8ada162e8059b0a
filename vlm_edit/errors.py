"""The one exception of this library."""


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
