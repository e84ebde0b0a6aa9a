"""What may be encoded: strings of valid Unicode."""

from __future__ import annotations

from llm_trainer.config.checks import shown
from llm_trainer.exceptions import TokenizerError


def check_text(text: object, where: str) -> str:
    """Return `text` if it is a string of valid Unicode.

    Raises:
        TokenizerError: no string, or it holds a lone surrogate; `where` names the text.
    """
    if not isinstance(text, str):
        raise TokenizerError(
            f"{where}: must be a string, found {type(text).__name__} ({shown(text)})"
        )
    try:
        # Fast (gigabytes a second), and the engines would fail or replace the character unasked.
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"{where}: lone surrogate U+{ord(text[error.start]):04X} at character {error.start:,}, "
            f"which no encoding can represent; decode its bytes as UTF-8 with errors='replace', or "
            f"leave the text out"
        ) from None
    return text
