"""Every kind of credentials connects, and its refusal says what to do without showing the secret."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest
import trustme

from kit.errors import ConfigurationError, ConnectError
from kit.nats.auth import Given, explain, resolve
from kit.nats.child import find_binary
from kit.nats.connection import Connection, connect


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("NATS_"):
            monkeypatch.delenv(name)


def ports(folder: Path) -> dict[str, list[str]]:
    """What the server listens to, as its ports file has it, once it is there."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        for path in folder.glob("*.ports"):
            if path.read_text().endswith("}"):
                return dict(json.loads(path.read_text()))
        time.sleep(0.005)
    raise TimeoutError((folder / "log").read_text())


@contextmanager
def serving(folder: Path, **config: Any) -> Iterator[str]:
    """A nats-server with a configuration that the embedded one does not have; its URL's host and port."""
    folder.mkdir(exist_ok=True)
    path = folder / "server.conf"
    path.write_text(json.dumps({"host": "127.0.0.1", "port": -1, "ports_file_dir": str(folder), **config}))
    process = subprocess.Popen([find_binary(), "-c", path], stderr=(folder / "log").open("wb"))
    try:
        yield ports(folder)["nats"][0].rpartition("//")[2]
    finally:
        process.kill()
        process.wait()


async def succeeds(url: str, **how: Any) -> None:
    async with await connect(url, **how) as connection:
        await connection.flush()


async def refused(url: str, match: str, *secrets: str, **how: Any) -> None:
    with pytest.raises(ConnectError, match=match) as caught:
        await connect(url, connect_timeout=2.0, **how)
    for secret in secrets:
        assert secret not in str(caught.value)


# --- user and password, token -----------------------------------------------------------------------------------


async def test_user_and_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, authorization={"user": "ann", "password": "right-word"}) as at:
        url = f"nats://{at}"
        await succeeds(url, user="ann", password="right-word")
        await succeeds(f"nats://ann:right-word@{at}")
        await refused(url, "refuses user 'ann': check the credentials", "wrong-word", user="ann", password="wrong-word")
        await refused(f"nats://ann:wrong-word@{at}", "refuses user 'ann'", "wrong-word")
        await refused(url, "asks for credentials and none were given: set NATS_USER")
        monkeypatch.setenv("NATS_URL", url)
        monkeypatch.setenv("NATS_USER", "ann")
        monkeypatch.setenv("NATS_PASSWORD", "right-word")
        async with await connect() as connection:
            await connection.flush()
        await refused(url, "refuses user 'bob'", user="bob", password="other")  # arguments win


async def test_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, authorization={"token": "right-token"}) as at:
        await succeeds(f"nats://{at}", token="right-token")
        await succeeds(f"nats://right-token@{at}")
        await refused(f"nats://{at}", "refuses the token", "wrong-token", token="wrong-token")
        await refused(f"nats://wrong-token@{at}", "refuses the token in the URL", "wrong-token")
        monkeypatch.setenv("NATS_TOKEN", "right-token")
        await succeeds(f"nats://{at}")


# --- nkeys and JWT ----------------------------------------------------------------------------------------------


def new_seed(prefix: int) -> str:
    return bytes(nkeys.encode_seed(os.urandom(32), prefix)).decode()


def public(seed: str) -> str:
    return bytes(nkeys.from_seed(bytearray(seed.encode())).public_key).decode()


def jwt(issuer_seed: str, subject: str, name: str, kind: str, **claims: Any) -> str:
    """A JWT as nsc makes them. Source: NATS ADR-14."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().strip("=")

    body = {
        "iat": int(time.time()), "iss": public(issuer_seed), "name": name, "sub": subject,
        "nats": {"type": kind, "version": 2, **claims},
    }  # fmt: skip
    digest = hashlib.new("sha512_256", json.dumps(body).encode()).digest()
    body["jti"] = base64.b32encode(digest).decode().strip("=")
    head = {"typ": "JWT", "alg": "ed25519-nkey"}
    text = f"{part(json.dumps(head).encode())}.{part(json.dumps(body).encode())}"
    signature = nkeys.from_seed(bytearray(issuer_seed.encode())).sign(text.encode())
    return f"{text}.{part(bytes(signature))}"


LIMITS = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1) | {"wildcards": True}


def creds_text(account_seed: str, user_seed: str) -> str:
    user_jwt = jwt(account_seed, public(user_seed), "ann", "user", pub={}, sub={}, subs=-1, data=-1, payload=-1)
    return (
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user_seed}\n------END USER NKEY SEED------\n"
    )


async def test_credentials_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, account = new_seed(nkeys.PREFIX_BYTE_OPERATOR), new_seed(nkeys.PREFIX_BYTE_ACCOUNT)
    user, stranger = new_seed(nkeys.PREFIX_BYTE_USER), new_seed(nkeys.PREFIX_BYTE_ACCOUNT)
    good, bad = tmp_path / "good.creds", tmp_path / "bad.creds"
    good.write_text(creds_text(account, user))
    bad.write_text(creds_text(stranger, user))
    config = {
        "operator": jwt(operator, public(operator), "op", "operator"),
        "resolver": "MEMORY",
        "resolver_preload": {public(account): jwt(operator, public(account), "acme", "account", limits=LIMITS)},
    }
    with serving(tmp_path / "server", **config) as at:
        url = f"nats://{at}"
        await succeeds(url, creds=good)
        await succeeds(url, creds=good.read_text())
        await refused(url, f"refuses the credentials file {bad}", user, creds=bad)
        await refused(url, "refuses the credentials given as text", user, creds=bad.read_text())
        monkeypatch.setenv("NATS_CREDS", str(good))
        await succeeds(url)


async def test_credentials_file_that_is_none(tmp_path: Path) -> None:
    """nats-py's own reader would never return."""
    path = tmp_path / "none.creds"
    with pytest.raises(ConfigurationError, match="NATS_CREDS cannot be read"):
        await connect(creds=path)
    path.write_text("hello\n")
    with pytest.raises(ConfigurationError, match="lacks its JWT or its seed"):
        await connect(creds=path)


async def test_nkey_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed, stranger = new_seed(nkeys.PREFIX_BYTE_USER), new_seed(nkeys.PREFIX_BYTE_USER)
    good, bad = tmp_path / "good.nk", tmp_path / "bad.nk"
    good.write_text(seed + "\n")
    bad.write_text(stranger)
    with serving(tmp_path / "server", authorization={"users": [{"nkey": public(seed)}]}) as at:
        url = f"nats://{at}"
        await succeeds(url, nkey_seed=good)
        await succeeds(url, nkey_seed=seed)
        await refused(url, f"refuses nkey {public(stranger)}", stranger, nkey_seed=bad)
        monkeypatch.setenv("NATS_NKEY_SEED", str(good))
        await succeeds(url)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        await connect(nkey_seed=tmp_path / "absent.nk")
    (tmp_path / "none.nk").write_text("hello")
    with pytest.raises(ConfigurationError, match="is no nkey seed"):
        await connect(nkey_seed=tmp_path / "none.nk")


# --- TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Paths of an authority, another one, and the certificates that the first has signed."""
    folder = tmp_path_factory.mktemp("pem")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other-ca.pem")
    for name, certificate in {
        "server": authority.issue_cert("127.0.0.1", "localhost"),
        "named": authority.issue_cert("nats.example"),
        "client": authority.issue_cert("client@nats.example"),
    }.items():
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
    return lambda name: str(folder / name)


async def test_tls(tmp_path: Path, pem: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, tls={"cert_file": pem("server.pem"), "key_file": pem("server.key")}) as at:
        url = f"tls://{at}"
        await succeeds(url, ca=pem("ca.pem"))
        await succeeds(f"nats://{at}", ca=pem("ca.pem"))
        await refused(url, "certificate is not trusted .*: set NATS_CA")
        await refused(url, "certificate is not trusted", ca=pem("other-ca.pem"))
        monkeypatch.setenv("NATS_CA", pem("ca.pem"))
        await succeeds(url)


async def test_tls_by_another_name(tmp_path: Path, pem: Callable[[str], str]) -> None:
    with serving(tmp_path, tls={"cert_file": pem("named.pem"), "key_file": pem("named.key")}) as at:
        await refused(f"tls://{at}", "certificate is for another name .* tls_hostname", ca=pem("ca.pem"))
        await succeeds(f"tls://{at}", ca=pem("ca.pem"), tls_hostname="nats.example")


async def test_tls_with_a_client_certificate(
    tmp_path: Path, pem: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"cert_file": pem("server.pem"), "key_file": pem("server.key"), "ca_file": pem("ca.pem"), "verify": True}
    with serving(tmp_path, tls=config) as at:
        url = f"tls://{at}"
        await succeeds(url, ca=pem("ca.pem"), cert=pem("client.pem"), key=pem("client.key"))
        await refused(url, "does it ask for NATS_CERT and NATS_KEY", ca=pem("ca.pem"))
        for variable, name in {"NATS_CA": "ca.pem", "NATS_CERT": "client.pem", "NATS_KEY": "client.key"}.items():
            monkeypatch.setenv(variable, pem(name))
        await succeeds(url)


async def test_a_server_without_tls_gets_no_credentials(tmp_path: Path, pem: Callable[[str], str]) -> None:
    with serving(tmp_path, authorization={"user": "ann", "password": "right-word"}, debug=True, trace=True) as at:
        who = {"user": "ann", "password": "right-word"}
        await refused(f"tls://{at}", "offers no TLS", "right-word", **who)
        await refused(f"nats://{at}", "offers no TLS", ca=pem("ca.pem"), **who)
        assert "CONNECT" not in (tmp_path / "log").read_text()
        await succeeds(f"nats://{at}", **who)
        assert "CONNECT" in (tmp_path / "log").read_text()


@pytest.mark.filterwarnings("ignore:parameter .timeout. of type:DeprecationWarning")  # nats-py's
async def test_websocket(tmp_path: Path) -> None:
    config = {"websocket": {"host": "127.0.0.1", "port": -1, "no_tls": True}}
    with serving(tmp_path, **config):
        await succeeds(ports(tmp_path)["websocket"][0])


@pytest.mark.filterwarnings("ignore:parameter .timeout. of type:DeprecationWarning")  # nats-py's
async def test_websocket_with_tls(tmp_path: Path, pem: Callable[[str], str]) -> None:
    tls = {"cert_file": pem("server.pem"), "key_file": pem("server.key")}
    with serving(tmp_path, websocket={"host": "127.0.0.1", "port": -1, "tls": tls}):
        at = ports(tmp_path)["websocket"][0]
        await succeeds(at, ca=pem("ca.pem"))
        await refused(at, "certificate")
        with pytest.raises(ConfigurationError, match="ws:// is never encrypted"):
            await connect(at.replace("wss", "ws"), ca=pem("ca.pem"))


# --- contradictions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"user": "ann"}, "user and password go together"),
        ({"password": "secret-word"}, "user and password go together"),
        ({"user": "ann", "password": "secret-word", "token": "secret-token"}, "several kinds of credentials"),
        ({"cert": "client.pem"}, "NATS_CERT and NATS_KEY"),
        ({"ca": "/no/such/ca.pem"}, "TLS files cannot be used"),
        ({"url": "http://127.0.0.1:4222"}, "is not a NATS URL"),
        ({"url": "http://ann:secret-word@127.0.0.1:4222"}, "is not a NATS URL"),
        ({"url": " , "}, "NATS_URL is empty"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(given: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match) as caught:
        resolve(Given(**given), {})
    assert "secret" not in str(caught.value)


def test_the_environment_counts_only_where_nothing_is_given() -> None:
    environment = {"NATS_URL": "nats://a:1, nats://b:2", "NATS_TOKEN": "of-the-environment"}
    found = resolve(Given(), environment)
    assert found.urls == ("nats://a:1", "nats://b:2")
    assert found.options == {"token": "of-the-environment"}
    found = resolve(Given(url="c:3", user="ann", password="secret-word"), environment)
    assert (found.urls, found.who, found.tls) == (("c:3",), "user 'ann'", False)
    assert "secret-word" not in repr(found)
    assert "of-the-environment" not in repr(resolve(Given(url="nats://ann:secret-word@c:3"), {}))
    assert resolve(Given(), {}).urls == ("nats://127.0.0.1:4222",)
    assert resolve(Given(url=["tls://ann:secret-word@c:3"]), {}).where == "tls://c:3"


# --- secrets are never shown ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "user", "password"),
    [
        ("nats://ann:S3/CRET@h:1", "ann", "S3/CRET"),
        ("nats://ann:S3@CRET@h:1", "ann", "S3@CRET"),
        ("nats://ann:S3%40%2F%3FCRET@h:1", "ann", "S3@/?CRET"),
        ("nats://ann:100%S3CRET@h:1", "ann", "100%S3CRET"),
        ("nats://ann:S3:CRET@h:1", "ann", "S3:CRET"),
        ("nats://ann:S3,CRET@h:1,nats://h:2", "ann", "S3,CRET"),
        ("nats://ann:S3//CRET@[::1]:1", "ann", "S3//CRET"),
        ("ann:S3CRET@h:1,h:2", "ann", "S3CRET"),
        ("nats://a%40b:S3CRET@h:1", "a@b", "S3CRET"),
    ],
)
def test_a_password_in_a_url_is_read_and_never_shown(url: str, user: str, password: str) -> None:
    found = resolve(Given(url=url), {})
    assert found.options == {"user": user, "password": password}
    shown = [repr(found), found.where, found.who, repr(Given(url=url)), explain(OSError("x"), found, 1.0), *found.urls]
    assert not any("S3" in text or "CRET" in text for text in shown)
    assert all(re.fullmatch(r"(nats://)?(h|\[::1\]):\d", place) for place in found.urls)


@pytest.mark.parametrize(
    "variables",
    [
        {"NATS_URL": "nats://h:1?token=S3CRET"},
        {"NATS_URL": "nats://h:1/?auth_token=S3CRET"},
        {"NATS_URL": "nats://ann:S3CRET#x@h:1"},
        {"NATS_URL": "nats://ann:S3?CRET@h:1"},
        {"NATS_URL": "nats://ann:S3CRET/pw"},
        {"NATS_URL": "nats://ann:S3CRET@h:1,nats://ann:OTHER-S3CRET@h:2"},
        {"NATS_URL": "amqp://ann:S3CRET@h:1"},
        {"NATS_NKEY_SEED": "SUS3CRETSEEDTHATWASMISTYPED"},
        {"NATS_NKEY_SEED": "SU" + "S3CRET" * 9 + "AB"},
        {"NATS_NKEY_SEED": "SU" + "A" * 40 + "\x00S3CRET"},
        {"NATS_CREDS": "-----BEGIN NATS USER JWT-----\nS3CRET.S3CRET\n"},
        {"NATS_CREDS": "-----BEGIN USER NKEY SEED-----\nS3CRET\n"},
        {"NATS_CREDS": "S3CRET" * 200},
        {"NATS_CREDS": "/etc/nats/{tenant}.creds"},
        {"NATS_USER": "ann", "NATS_PASSWORD": "S3CRET", "NATS_TOKEN": "S3CRET"},
    ],
)
def test_what_is_refused_shows_no_secret(variables: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(Given(), variables)
    assert "S3" not in "".join(traceback.format_exception(caught.value))
    assert "CRET" not in str(caught.value)


def test_one_environment_serves_several_tenants(tmp_path: Path) -> None:
    for tenant in ("acme", "globex"):
        (tmp_path / f"{tenant}.env").write_text(f"NATS_URL=nats://h:1\nNATS_USER={tenant}\nNATS_PASSWORD=of={tenant}\n")
    of_globex = resolve(Given(), {"NATS_CREDS": f"{tmp_path}/{{tenant}}.env"}, tenant_id="globex")
    assert of_globex.options == {"user": "globex", "password": "of=globex"}
    one = resolve(Given(), {"NATS_USER": "kit-{tenant}", "NATS_PASSWORD": "{tenant}"}, tenant_id="acme")
    assert one.options == {"user": "kit-acme", "password": "{tenant}"}


@pytest.mark.parametrize(
    ("url", "exposed"),
    [
        ("nats://10.0.0.7:4222", True),
        ("some-host", True),
        ("ws://some-host:80/nats", True),
        ("nats://127.0.0.1:4222,nats://10.0.0.7:4222", True),
        ("nats://127.0.0.1:4222", False),
        ("localhost", False),
        ("nats://[::1]:4222", False),
        ("tls://10.0.0.7:4222", False),
        ("wss://some-host", False),
    ],
)
async def test_credentials_that_go_unencrypted_are_warned_of(
    url: str, exposed: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable(*_: object) -> Exception:
        return socket.gaierror()

    monkeypatch.setattr(Connection, "establish", unreachable)
    with pytest.raises(ConnectError):
        await connect(url, user="ann", password="S3CRET")
    assert ("use tls://" in caplog.text) is exposed
    assert "S3CRET" not in caplog.text
    caplog.clear()
    with pytest.raises(ConnectError):
        await connect(url)
    assert caplog.text == ""
