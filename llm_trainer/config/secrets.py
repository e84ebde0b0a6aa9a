"""Passwords and tokens, struck out of whatever is shown or written."""

from __future__ import annotations

import re

# a scheme has an end, or a long word would be searched from each of its letters to its last
_CREDENTIALS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,40}://)[^/\s@]+@")
_SECRET_QUERY = re.compile(
    r"(?i)(?P<name>[?&](?:password|passwd|token|access_token|api_?key|secret|sig|signature"
    r"|x-(?:amz|goog)-(?:signature|credential|security-token))=)[^&\s]+"
)
_KNOWN_TOKENS = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b")


def strip_secrets(text: str) -> str:
    """Remove user and password from addresses, and what looks like an access token."""
    text = _CREDENTIALS.sub(r"\g<scheme>", text)
    text = _SECRET_QUERY.sub(r"\g<name>***", text)
    return _KNOWN_TOKENS.sub("***", text)
