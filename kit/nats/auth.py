"""Where to connect and as whom: from arguments or from the environment, checked before anything is sent.

==================  =========================================================================================
``NATS_URL``        one URL or several, separated by commas: ``nats://``, ``tls://``, ``ws://``, ``wss://``; a user
                    and a password in it are percent-encoded
``NATS_USER``       with ``NATS_PASSWORD``
``NATS_TOKEN``      a token
``NATS_CREDS``      path of a credentials file (JWT and seed), or its text; or path of a file with the lines
                    ``NATS_USER=…`` and ``NATS_PASSWORD=…``, which ``kit server`` writes
``NATS_NKEY_SEED``  path of a file with an nkey seed, or the seed
``NATS_CA``         path of the PEM file with the authorities that may have signed the server's certificate
``NATS_CERT``       with ``NATS_KEY``: paths of the client's own certificate and key
==================  =========================================================================================

``{tenant}`` in NATS_USER, NATS_CREDS and NATS_NKEY_SEED stands for the tenant's id, so that one process can serve
several: ``NATS_CREDS=/etc/nats/{tenant}.creds``. No error, repr or log line shows a password, a token or a
seed: it shows a URL's scheme, host and port only, and for an unreadable file only the variable that names it.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nats.errors

from kit.errors import ConfigurationError

DEFAULT_URL = "nats://127.0.0.1:4222"
_JWT = re.compile(r"BEGIN NATS USER JWT-+\s+(\S+)")
_SEED = re.compile(r"BEGIN USER NKEY SEED-+\s+(S[A-Z2-7]{57})")
_BARE_SEED = re.compile(r"S[A-Z2-7]{57}")
_TENANT = "{tenant}"
_LINES = ("NATS_USER", "NATS_PASSWORD")
_LINE = re.compile(r"^(NATS_USER|NATS_PASSWORD)=(.*)$", re.MULTILINE)
_BETWEEN = re.compile(r",\s*(?=(?:nats|tls|ws|wss)://)")
_PLACE = r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?(?:/[\w./-]*)?"
_URL = re.compile(rf"\A(?:(nats|tls|ws|wss)://|(?!\w+://))(?:([^?#]*)@)?({_PLACE}(?:\s*,\s*{_PLACE})*)\s*+(?:,\s*+)?")
_HOW = "set NATS_USER and NATS_PASSWORD, NATS_TOKEN, NATS_CREDS or NATS_NKEY_SEED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Where to connect and as whom; no repr shows a secret.

    Attributes:
        urls: as given, without a user and a password.
        options: what nats-py's ``connect`` takes for it.
        who: the identity in words, for messages.
        tls: whether an unencrypted connection is to be refused.
    """

    urls: tuple[str, ...]
    options: dict[str, Any] = field(repr=False)
    who: str
    tls: bool

    @property
    def where(self) -> str:
        """The URLs in words."""
        return ", ".join(self.urls)

    @property
    def exposed(self) -> tuple[str, ...]:
        """The URLs beyond this machine that may receive credentials unencrypted."""
        if not self.who or self.tls:
            return ()
        return tuple(url for url in self.urls if not url.startswith(("tls://", "wss://")) and not _is_loopback(url))


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What the caller named; None means: look into the environment."""

    url: str | Sequence[str] | None = field(default=None, repr=False)
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    creds: str | Path | None = field(default=None, repr=False)
    nkey_seed: str | Path | None = field(default=None, repr=False)
    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    tls_hostname: str | None = None


def resolve(given: Given, environment: Mapping[str, str] = os.environ, *, tenant_id: str | None = None) -> Access:
    """Complete the given options from the environment, and check them.

    Credentials in the environment are used only if none are given: the two are never mixed. Credentials in the URL
    are used last.

    Raises:
        ConfigurationError: something contradictory, incomplete or unreadable.
    """
    urls, login = _urls(given.url, environment.get("NATS_URL"))
    options, who = _identity(given, environment, tenant_id)
    if not who and login:
        user, colon, password = login.partition(":")
        options = {"user": unquote(user), "password": unquote(password)} if colon else {"token": unquote(user)}
        who = f"user {options['user']!r}" if colon else "the token in the URL"
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
    if "connections exceeded" in str(error):
        return f"this account has no connections left ({error}): close some, or raise its max_connections"
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


def _urls(given: str | Sequence[str] | None, named: str | None) -> tuple[tuple[str, ...], str]:
    """The URLs without their user and password, and these, as they stand there."""
    chosen = given or named or DEFAULT_URL
    several = _BETWEEN.split(chosen) if isinstance(chosen, str) else chosen
    urls: list[str] = []
    logins: set[str] = set()
    for number, url in enumerate((url.strip(" ,") for url in several), 1):
        if not url:
            continue
        found = _URL.fullmatch(url)
        if found is None:
            raise ConfigurationError(
                f"URL {number} of {len(several)} is not a NATS URL: use nats://, tls://, ws:// or wss://host:port and "
                "commas between URLs; put user and password into NATS_USER and NATS_PASSWORD, a token into NATS_TOKEN"
            )
        scheme, login, places = found.groups()
        urls += [f"{scheme}://{place.strip()}" if scheme else place.strip() for place in places.split(",")]
        logins |= {login} if login else set()
    if not urls:
        raise ConfigurationError("NATS_URL is empty: nats://host:port, several with commas between")
    if len(logins) > 1:
        raise ConfigurationError("the URLs have different credentials: all servers of a cluster take the same ones")
    return tuple(urls), logins.pop() if logins else ""


def _is_loopback(url: str) -> bool:
    host = re.sub(r":\d+$", "", url.partition("://")[2].partition("/")[0] or url).strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _identity(given: Given, environment: Mapping[str, str], tenant_id: str | None) -> tuple[dict[str, Any], str]:
    """The credentials as options of nats-py, and in words."""
    names = ("user", "password", "token", "creds", "nkey_seed")
    found = {name: str(value) for name in names if (value := getattr(given, name)) is not None}
    if not found:
        found = {name: value for name in names if (value := environment.get(f"NATS_{name.upper()}"))}
        for name in {"user", "creds", "nkey_seed"} & found.keys():
            found[name] = _of_tenant(f"NATS_{name.upper()}", found[name], tenant_id)
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


def _of_tenant(variable: str, value: str, tenant_id: str | None) -> str:
    if _TENANT not in value:
        return value
    if tenant_id is None:
        raise ConfigurationError(f"{variable} contains {_TENANT}, but no tenant_id is given")
    return value.replace(_TENANT, tenant_id)


def _creds(value: str) -> tuple[dict[str, Any], str]:
    """Options for a credentials file; nats-py's own reader never ends on a file that is none."""
    inline = "BEGIN NATS USER JWT" in value
    if not inline and len(login := dict(_LINE.findall(_read(value, "NATS_CREDS")))) == len(_LINES):
        user, password = (login[name].strip() for name in _LINES)
        return {"user": user, "password": password}, f"user {user!r}"
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
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigurationError(
            f"{variable} cannot be read: it is neither a valid value nor the path of a readable file ({why})"
        ) from None
