"""What fires where: the codes of single tokens, kept for the examples of a run."""

from vlm_edit.measuring.firing.tokens import TokenCodes as TokenCodes
from vlm_edit.measuring.firing.tokens import token_codes as token_codes
