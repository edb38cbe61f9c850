"""Secrets that can be recognised by how they look: known key formats, values with a telling label,
and, for logs only, text that is too random to be words. Pure.

Each finder gives spans of its text. A format is looked for only where its fixed part occurs, a
label where its last word does; no expression here can start over and over on the same run of
characters, so that the time is linear whatever the text is.
"""

from __future__ import annotations

import errno
import math
import os
import re
import string
from collections import Counter
from collections.abc import Iterator

Span = tuple[int, int]

# ------------------------------------------------------------------------------------ key formats

# The fixed part, and the whole: what the vendors document, or what their keys have in common.
_FORMATS: tuple[tuple[str, str], ...] = (
    ("sk-", r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,}+"),  # OpenAI, Anthropic, OpenRouter, DeepSeek
    ("sk_", r"(?<![A-Za-z0-9])sk_(?:live|test)_[A-Za-z0-9]{16,}+"),  # Stripe
    ("rk_", r"(?<![A-Za-z0-9])rk_(?:live|test)_[A-Za-z0-9]{16,}+"),
    ("AKIA", r"(?<![A-Za-z0-9])AKIA[A-Z0-9]{16}(?![A-Za-z0-9])"),  # AWS
    ("ASIA", r"(?<![A-Za-z0-9])ASIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    ("gh", r"(?<![A-Za-z0-9])gh[oprsu]_[A-Za-z0-9]{36,}+"),  # GitHub
    ("github_pat_", r"(?<![A-Za-z0-9])github_pat_[A-Za-z0-9_]{22,}+"),
    ("glpat-", r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,}+"),  # GitLab
    ("xox", r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,}+"),  # Slack
    ("xapp-", r"(?<![A-Za-z0-9])xapp-[A-Za-z0-9-]{10,}+"),
    ("hooks.slack.com/", r"(?<=hooks\.slack\.com/)(?:services|workflows)/[A-Za-z0-9/_-]{20,}+"),
    ("AIza", r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}"),  # Google
    ("GOCSPX-", r"(?<![A-Za-z0-9])GOCSPX-[A-Za-z0-9_-]{20,}+"),
    ("ya29.", r"(?<![A-Za-z0-9])ya29\.[A-Za-z0-9_-]{20,}+"),
    ("hf_", r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}+"),  # Hugging Face
    ("npm_", r"(?<![A-Za-z0-9])npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    ("pypi-", r"(?<![A-Za-z0-9])pypi-[A-Za-z0-9_-]{50,}+"),
    ("xai-", r"(?<![A-Za-z0-9])xai-[A-Za-z0-9]{40,}+"),
    ("gsk_", r"(?<![A-Za-z0-9])gsk_[A-Za-z0-9]{40,}+"),  # Groq
    ("oxydra_", r"(?<![A-Za-z0-9])oxydra_[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"),  # our own
    (":AA", r"(?<![A-Za-z0-9])[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])"),  # Telegram
    # JSON Web Token, RFC 7519: the header begins with {" in base64
    ("eyJ", r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]*+"),
    # RFC 7468; up to its end, or to whatever comes in the place of it
    (
        "PRIVATE KEY",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----))*+"
        r"(?:-----END [A-Z0-9 ]{0,40}-----)?",
    ),
)
# RFC 3986 section 3.2.1: the password in scheme://user:password@host
_USERINFO = re.compile(r"(?<=://)[^\s/:@\"'<>?#\\]{0,256}:([^\s/@\"'<>?#\\]{1,1024})@")
_BY_FORMAT = tuple((part, re.compile(pattern)) for part, pattern in _FORMATS)


def formats(text: str) -> Iterator[Span]:
    """Keys of known formats, and passwords in URLs."""
    for part, pattern in _BY_FORMAT:
        if part in text:
            for match in pattern.finditer(text):
                yield match.span()
    if "://" in text and "@" in text:
        for match in _USERINFO.finditer(text):
            yield match.span(1)


# --------------------------------------------------------------------------------------- labels

# The last word of a label; what comes before it (DB_, openai_, client_) does not matter.
_WORDS = (
    *("password", "passwd", "passphrase", "passwort", "pwd", "secret", "token", "credential"),
    *("credentials", "authorization", "cookie", "apikey", "api_key", "api-key", "api key"),
    *("access_key", "access-key", "access key", "secret_key", "secret-key", "secret key"),
    *("private_key", "private-key", "private key", "signing_key", "encryption_key"),
    *("accesskey", "secretkey", "privatekey", "auth_key", "auth-key", "account_key"),
)
_STEMS = ("pass", "pwd", "secret", "token", "credential", "authorization", "cookie", "key")
_LABEL = re.compile("(?:" + "|".join(sorted(map(re.escape, _WORDS), key=len, reverse=True)) + ")")
_SEPARATOR = re.compile(r"\\{0,3}[\"']?[ \t]{0,8}(?::=|=>|[:=])[ \t]{0,8}")
_SCHEME = re.compile(r"(?:bearer|basic|token|digest|negotiate)[ \t]{1,8}", re.IGNORECASE)
_QUOTED = re.compile(r"\\{0,3}([\"'])((?:[^\"'\\\r\n]|\\(?![\"'])){4,4096}+)")
_BARE = re.compile(r"[^\s\"'\\,;&<>(){}\[\]$`|*]{4,4096}+(?![(\[{])")
_COOKIES = re.compile(r"[^\r\n\"'\\]{4,8192}+")
_SCHEMES = ("bearer ", "basic ")
# `cat: /etc/passwd: Permission denied`: what the system says of a file so named is no secret.
_ERRORS = re.compile(
    rf"(?:{'|'.join(re.escape(os.strerror(number)) for number in sorted(errno.errorcode))})(?!\S)"
)
_TO_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
# What stands where a secret would, in code, help texts and forms.
_NO_SECRETS = frozenset(
    (
        *("none", "null", "true", "false", "undefined", "string", "bytes", "bool", "int", "float"),
        *("object", "any", "self", "env", "required", "optional", "secret", "password", "token"),
        *("your-key", "your_key", "changeme", "example"),
    )
)


def labelled(text: str) -> Iterator[Span]:
    """Values that are said to be secret: `password=…`, `"api_key": "…"`, `Authorization: …`."""
    lower = text.lower() if text.isascii() else text.translate(_TO_LOWER)
    if any(stem in lower for stem in _STEMS):
        for match in _LABEL.finditer(lower):
            if separator := _SEPARATOR.match(lower, match.end()):
                yield from _value(text, separator.end(), match.group())
    for scheme in _SCHEMES:
        at = lower.find(scheme)
        while at >= 0:
            yield from _scheme_value(text, at + len(scheme))
            at = lower.find(scheme, at + 1)


def _value(text: str, at: int, label: str) -> Iterator[Span]:
    if quoted := _QUOTED.match(text, at):
        start, end = quoted.span(2)
        if scheme := _SCHEME.match(text, start):
            start = scheme.end()
        if start < end and _may_be_secret(text[start:end]):
            yield start, end
        return
    if _ERRORS.match(text, at):
        return
    if label == "cookie" and (cookies := _COOKIES.match(text, at)):
        yield cookies.span()
        return
    if scheme := _SCHEME.match(text, at):
        at = scheme.end()
    if bare := _BARE.match(text, at):
        start, end = bare.span()
        if label == "pwd" and text[start] == "/":
            return  # the shell's working directory
        while end > start and text[end - 1] in ".:":  # the end of a sentence
            end -= 1
        if _may_be_secret(text[start:end]):
            yield start, end


def _scheme_value(text: str, at: int) -> Iterator[Span]:
    """A credential right after its scheme: prose goes on with words, a header with a token."""
    bare = _BARE.match(text, at)
    if bare and len(bare.group()) >= 16 and re.search(r"[0-9+/=_-]", bare.group()):
        yield bare.span()


def _may_be_secret(value: str) -> bool:
    plain = value.strip().lower()
    if plain in _NO_SECRETS or len(set(plain)) < 3:
        return False
    return not plain.startswith(("${", "$(", "<", "{{", "%(", "[redacted]"))


# -------------------------------------------------------------------------------------- entropy

_RUN = re.compile(r"[A-Za-z0-9+=_-]{24,}+")
RANDOM_BITS = 4.2  # per character; English words in camelCase stay below 4, base64 of keys above


def random_looking(text: str) -> Iterator[Span]:
    """Runs of letters and digits of all kinds that carry too much information for a name.

    Hexadecimal (hashes, ids) never does. For logs only: what a person works with may look so too.
    """
    for match in _RUN.finditer(text):
        run = match.group()[:512]
        kinds = (str.isupper, str.islower, str.isdigit)
        if all(any(map(kind, run)) for kind in kinds) and _entropy(run) >= RANDOM_BITS:
            yield match.span()


def _entropy(run: str) -> float:
    """Shannon's, in bits per character."""
    size = len(run)
    return -sum(n / size * math.log2(n / size) for n in Counter(run).values())
