"""Where to connect and as whom: from arguments or from the environment, checked before anything is sent.

==================  =========================================================================================
``NATS_URL``        one URL, or several with commas between: ``nats://``, ``tls://``, ``ws://``, ``wss://``
``NATS_USER``       with ``NATS_PASSWORD``
``NATS_TOKEN``      a token
``NATS_CREDS``      path of a credentials file (JWT and seed), or its text
``NATS_NKEY_SEED``  path of a file with an nkey seed, or the seed
``NATS_CA``         path of the PEM file with the authorities that may have signed the server's certificate
``NATS_CERT``       with ``NATS_KEY``: paths of the client's own certificate and key
==================  =========================================================================================
"""

from __future__ import annotations

import base64
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats.errors

from kit.errors import ConfigurationError

DEFAULT_URL = "nats://127.0.0.1:4222"
_JWT = re.compile(r"BEGIN NATS USER JWT-+\s+(\S+)")
_SEED = re.compile(r"BEGIN USER NKEY SEED-+\s+(S[A-Z2-7]{57})")
_BARE_SEED = re.compile(r"S[A-Z2-7]{57}")
_HOW = "set NATS_USER and NATS_PASSWORD, NATS_TOKEN, NATS_CREDS or NATS_NKEY_SEED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Where to connect and as whom; no repr shows a secret.

    Attributes:
        urls: as given, perhaps with a user and a password in them.
        options: what nats-py's ``connect`` takes for it.
        who: the identity in words, for messages.
        tls: whether an unencrypted connection is to be refused.
    """

    urls: tuple[str, ...] = field(repr=False)
    options: dict[str, Any] = field(repr=False)
    who: str
    tls: bool

    @property
    def where(self) -> str:
        """The URLs without user and password."""
        return ", ".join(_without_secret(url) for url in self.urls)


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What the caller named; None means: look into the environment."""

    url: str | Sequence[str] | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    creds: str | Path | None = field(default=None, repr=False)
    nkey_seed: str | Path | None = field(default=None, repr=False)
    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    tls_hostname: str | None = None


def resolve(given: Given, environment: Mapping[str, str] = os.environ) -> Access:
    """Complete what is given by the environment, and check it.

    Credentials of the environment count only when none are given: the two are never mixed.

    Raises:
        ConfigurationError: something contradictory, incomplete or unreadable.
    """
    urls = _urls(given.url, environment.get("NATS_URL"))
    options, who = _identity(given, environment)
    if not who:
        inside = urlsplit(urls[0])
        who = f"user {inside.username!r}" if inside.password else "the token in the URL" if inside.username else ""
    context = _tls_context(given, environment)
    if context is not None:
        options["tls"] = context
    if given.tls_hostname is not None:
        options["tls_hostname"] = given.tls_hostname
    if context is not None and any(url.startswith("ws://") for url in urls):
        raise ConfigurationError("ws:// is never encrypted: use wss:// with a CA or a certificate")
    tls = any(url.startswith("tls://") for url in urls) or (
        context is not None and not any(url.startswith("wss://") for url in urls)  # there the scheme alone decides
    )
    return Access(urls=urls, options=options, who=who, tls=tls)


def explain(error: BaseException | None, access: Access, seconds: float) -> str:
    """Say in words why there is no connection and what to do; never with a secret."""
    return f"no connection to {access.where}: {_reason(error, access, seconds)}"


def is_final(error: BaseException | None) -> bool:
    """Whether trying again cannot help."""
    return isinstance(
        error, (ssl.SSLError, socket.gaierror, nats.errors.SecureConnWantedError, nats.errors.AuthorizationError)
    ) or _is_refusal(error)


def _is_refusal(error: BaseException | None) -> bool:
    text = str(error).lower()
    return "authorization violation" in text or "authentication" in text or "invalid user credentials" in text


def _reason(error: BaseException | None, access: Access, seconds: float) -> str:
    error = getattr(error, "certificate_error", error)  # aiohttp wraps it, for wss://
    match error:
        case nats.errors.SecureConnWantedError():
            return "it offers no TLS, which tls:// or a CA asks for; no credentials were sent"
        case ssl.SSLCertVerificationError() if "mismatch" in error.verify_message:
            return f"its certificate is for another name ({error.verify_message}): use that name, or tls_hostname="
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted ({error.verify_message}): set NATS_CA to its authority's PEM file"
        case ssl.SSLError():
            return f"the TLS handshake failed ({error.reason}): does it ask for NATS_CERT and NATS_KEY?"
        case socket.gaierror():
            return "the host name is unknown: check NATS_URL"
        case ConnectionRefusedError():
            return "nothing listens there: start a server (`kit server`), or set NATS_URL to a running one"
        case nats.errors.UnexpectedEOF() | ConnectionError():
            hint = "does it ask for NATS_CERT and NATS_KEY?" if access.tls else "is it a NATS server?"
            return f"it closed the connection during the handshake: {hint}"
        case TimeoutError():
            return f"no answer within {seconds:g} s: is it a NATS server, and reachable?"
    if _is_refusal(error):
        if access.who:
            return f"it refuses {access.who}: check the credentials, and that they are for this server"
        return f"it asks for credentials and none were given: {_HOW}"
    return str(error)


def _urls(given: str | Sequence[str] | None, named: str | None) -> tuple[str, ...]:
    chosen = given or named or DEFAULT_URL
    several = chosen.split(",") if isinstance(chosen, str) else chosen
    urls = tuple(url.strip() for url in several if url.strip())
    for url in urls:
        scheme = urlsplit(url).scheme if "://" in url else "nats"
        if scheme not in ("nats", "tls", "ws", "wss"):
            raise ConfigurationError(
                f"{_without_secret(url)} is no NATS URL: nats://, tls://, ws:// or wss://host:port"
            )
    if not urls:
        raise ConfigurationError("NATS_URL is empty: nats://host:port, several with commas between")
    return urls


def _identity(given: Given, environment: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """The credentials as options of nats-py, and in words."""
    names = ("user", "password", "token", "creds", "nkey_seed")
    found = {name: str(value) for name in names if (value := getattr(given, name)) is not None}
    if not found:
        found = {name: value for name in names if (value := environment.get(f"NATS_{name.upper()}"))}
    kinds = {"user" if name == "password" else name for name in found}
    if len(kinds) > 1:
        raise ConfigurationError(f"several kinds of credentials at once ({', '.join(sorted(kinds))}): give one")
    if not kinds:
        return {}, ""
    kind = kinds.pop()
    if kind == "user":
        if "user" not in found or "password" not in found:
            raise ConfigurationError("user and password go together: NATS_USER and NATS_PASSWORD")
        return {"user": found["user"], "password": found["password"]}, f"user {found['user']!r}"
    if kind == "token":
        return {"token": found["token"]}, "the token"
    return _creds(found["creds"]) if kind == "creds" else _nkey(found["nkey_seed"])


def _creds(value: str) -> tuple[dict[str, Any], str]:
    """Options for a credentials file; nats-py's own reader never ends on a file that is none."""
    inline = "BEGIN NATS USER JWT" in value
    name = "the credentials given as text" if inline else f"the credentials file {value}"

    def part(pattern: re.Pattern[str]) -> str:
        text = value if inline else _read(value, "NATS_CREDS")
        match = pattern.search(text)
        if match is None:
            raise ConfigurationError(f"{name} lacks its JWT or its seed: take the one that `nsc generate creds` writes")
        return match.group(1)

    part(_JWT), part(_SEED)  # now, not in the middle of a handshake
    return {
        "user_jwt_cb": lambda: part(_JWT).encode(),
        "signature_cb": _signer(lambda: part(_SEED)),
        "user_credentials": None,
    }, name


def _nkey(value: str) -> tuple[dict[str, Any], str]:
    import nkeys  # type: ignore[import-untyped]

    bare = _BARE_SEED.fullmatch(value.strip()) is not None
    seed = value.strip() if bare else _read(value, "NATS_NKEY_SEED").strip()
    try:
        public = nkeys.from_seed(bytearray(seed.encode())).public_key.decode()
    except Exception as error:  # noqa: BLE001 - whatever nkeys and PyNaCl raise, it is no seed
        where = "the seed given" if bare else value
        raise ConfigurationError(f"{where} is no nkey seed ({type(error).__name__}): it begins with SU") from None
    return {"nkeys_seed_str": seed} if bare else {"nkeys_seed": value}, f"nkey {public}"


def _signer(seed: Callable[[], str]) -> Callable[[str], bytes]:
    """Sign the server's nonce, reading the seed anew each time: a rotated file is taken up on reconnection."""

    def sign(nonce: str) -> bytes:
        import nkeys

        pair = nkeys.from_seed(bytearray(seed().encode()))
        signature = base64.b64encode(pair.sign(nonce.encode()))
        pair.wipe()
        return signature

    return sign


def _tls_context(given: Given, environment: Mapping[str, str]) -> ssl.SSLContext | None:
    """A context when a CA or a certificate is named; else None, and nats-py uses the system's authorities."""
    ca, cert, key = (getattr(given, name) or environment.get(f"NATS_{name.upper()}") for name in ("ca", "cert", "key"))
    if (cert is None) != (key is None):
        raise ConfigurationError("a client certificate and its key go together: NATS_CERT and NATS_KEY")
    if ca is None and cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(f"the TLS files cannot be used (CA {ca}, certificate {cert}): {error}") from error
    return context


def _read(path: str, variable: str) -> str:
    try:
        return Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{variable} cannot be read: {error}") from None


def _without_secret(url: str) -> str:
    return re.sub(r"(^|//)[^/@]*@", r"\1", url)
