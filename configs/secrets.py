"""Secrets stay in the process: what leaves it is redacted, and what would be stored for good is refused.

A text holds a secret if it holds the value of an environment variable whose name says so, or something of a well-known
form: passwords in URLs, signatures of presigned URLs, authorization headers, access keys, private keys. Every error of
ntkpipe redacts its own message (see :mod:`ntkpipe.configs.errors`), and so do the records that keep what went wrong.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Annotated, Any, Final
from urllib.parse import quote

from pydantic import AfterValidator

TOKEN_VARIABLE: Final = "NTKPIPE_TOKEN"
"""Environment variable with the token of a query service: for the service, and for those who ask it."""

MIN_LENGTH = 8
"""Shorter values of variables do not count: they would be found in many harmless texts."""

PREFIX_LENGTH = 16
"""Long values are cut short in messages: so many characters that a secret begins with are taken for the secret."""

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:\w*(?:KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL)S?"
    r"|PASSWD|PASSPHRASE|CONNECTION_STRING|SAS|PAT|(?<=_)PWD)(?:_|$)",
    re.IGNORECASE,
)

Needles = tuple[tuple[str, str], ...]
"""Texts to look for, and the variables whose values they are."""

_SIGNED = r"x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid"
_NAME = (
    r"[\w-]{0,40}(?:password|passwd|passphrase|secret|token|credential|"
    r"(?:api|access|account|secret|shared)[_-]?key(?:[_-]?id)?)"
)
_MARK = "<redacted>"
_NEW = "(?!<redacted)"
"""What is redacted already is left as it is, so that redacting twice changes nothing."""

_FORMS: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (what, re.compile(pattern, re.IGNORECASE | re.DOTALL), replacement)
    for what, pattern, replacement in (
        ("a PEM block", r"-----BEGIN [A-Z0-9 ]{1,40}-----.*?(?:-----END [A-Z0-9 ]{1,40}-----|\Z)", _MARK),
        ("a password in a URL", rf"\b([a-z][a-z0-9+.-]{{0,20}}://){_NEW}[^\s/?#:@]*:[^\s/?#]*@", rf"\1{_MARK}@"),
        ("a user name or token in a URL", rf"\b(https?://){_NEW}[^\s/?#@]+@", rf"\1{_MARK}@"),
        ("a presigned URL", rf"(\b(?:{_SIGNED})[\"']?+\s*+[=:]\s*+[\"']?+){_NEW}[^&\s\"'<>]+", rf"\1{_MARK}"),
        ("a signed URL", rf"([?&](?:sig|signature)=){_NEW}[^&\s\"'<>]+", rf"\1{_MARK}"),
        ("an authorization header", rf"(\bauthorization[\"']?+\s*+[=:]\s*+b?+[\"']?+){_NEW}[^\r\n\"']+", rf"\1{_MARK}"),
        ("a bearer token", rf"(\bbearer\s++){_NEW}[a-z0-9._~+/=-]{{8,}}", rf"\1{_MARK}"),
        ("an AWS access key", r"\b(?-i:AKIA|ASIA)(?-i:[A-Z0-9]{16})\b", _MARK),
        (
            "a password, key or token",
            rf"(\b{_NAME}(?:=[\"']?+|[\"']\s*+:\s*+b?+[\"'])){_NEW}(?!\d+\b)[^\s\"'&,;<>)}}\]]{{{MIN_LENGTH},}}",
            rf"\1{_MARK}",
        ),
    )
)


_HINTS = (
    "://",
    "sig",
    "x-amz-",
    "x-goog-",
    "access",
    "auth",
    "bearer",
    "asia",
    "akia",
    "-----",
    "pass",
    "secret",
    "token",
    "cred",
    "key",
)
"""One of these is in every text that has one of the forms."""


def redacted(text: str) -> str:
    """Return a text without the secrets that it holds; what takes their place names the variable they are in."""
    return _redacted(text, _needles(_secret_variables()))


def redacted_values(value: Any) -> Any:
    """Return JSON values, in which every text is redacted."""
    return _redacted_values(value, _needles(_secret_variables()))


RedactedText = Annotated[str, AfterValidator(redacted)]
"""A text of a stored document, such as the message of an error."""


def secret_in(text: str) -> str | None:
    """Say what secret a text of a configuration is or holds, without repeating it; None if it holds none.

    Short values of variables count only as a whole, because a configuration that is refused in error cannot be used.
    """
    for secret, name in _needles(_secret_variables()):
        if text == secret or (len(secret) > PREFIX_LENGTH and secret in text):
            return f"the value of the environment variable {name}"
    return next((what for what, form, _ in _FORMS if form.search(text)), None)


def secrets_in(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield (where, what) for every text of a document of JSON values that holds a secret."""
    if isinstance(value, str):
        found = secret_in(value)
        if found is not None:
            yield place, found
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str) and secret_in(key) is not None:
                yield f"a key of {place or 'the configuration'}", str(secret_in(key))
            else:
                yield from secrets_in(item, f"{place}.{key}".removeprefix("."))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from secrets_in(item, f"{place}.{position}")


def _redacted(text: str, needles: Needles) -> str:
    for secret, name in needles:
        if secret in text:
            text = text.replace(secret, f"<redacted:{name}>")
        if len(secret) > PREFIX_LENGTH and secret[:PREFIX_LENGTH] in text:
            text = _without_beginnings(text, secret, f"<redacted:{name}>")
    lowered = text.lower()
    if any(hint in lowered for hint in _HINTS):
        for _, form, replacement in _FORMS:
            text = form.sub(replacement, text)
    return text


def _redacted_values(value: Any, needles: Needles) -> Any:
    if isinstance(value, str):
        return _redacted(value, needles)
    if isinstance(value, Mapping):
        return {_redacted_values(key, needles): _redacted_values(item, needles) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted_values(item, needles) for item in value]
    return value


@cache
def _says_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _secret_variables() -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in os.environ.items() if len(value) >= MIN_LENGTH and _says_secret(name))


@lru_cache(maxsize=8)
def _needles(variables: tuple[tuple[str, str], ...]) -> Needles:
    """Return (text, variable) of all ways in which values are commonly written, longest first."""
    found: dict[str, str] = {}
    for name, value in variables:
        # Where credentials are is no secret, and neither is a number.
        if value.isdigit() or (os.path.isabs(value) and os.path.exists(value)):
            continue
        once = repr(value)[1:-1]
        forms = (
            value,
            value.strip(),
            quote(value, safe=""),
            quote(value),
            json.dumps(value)[1:-1],
            once,
            repr(once)[1:-1],
        )
        for text in forms:
            if len(text) >= MIN_LENGTH:
                found.setdefault(text, name)
    return tuple(sorted(found.items(), key=lambda item: (-len(item[0]), item)))


def _without_beginnings(text: str, secret: str, replacement: str) -> str:
    """Replace what a secret begins with, as far as the text follows it."""
    parts, rest, beginning = [], text, secret[:PREFIX_LENGTH]
    while beginning in rest:
        before, _, after = rest.partition(beginning)
        parts += [before, replacement]
        following = secret[PREFIX_LENGTH:]
        num = max(size for size in range(len(following) + 1) if after.startswith(following[:size]))
        rest = after[num:]
    return "".join([*parts, rest])
