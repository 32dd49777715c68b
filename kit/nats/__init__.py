"""The only room that imports nats: the embedded server, connections, and the bus on them."""

from kit.nats.lazy import import_nats

import_nats()  # first: it makes the import of nats cheap

from kit.nats.bus import Bus  # noqa: E402
from kit.nats.connection import Connection, connect  # noqa: E402
from kit.nats.jobs import Job  # noqa: E402
from kit.nats.letters import DeadLetter  # noqa: E402
from kit.nats.message import Handler, Message  # noqa: E402
from kit.nats.server import Server  # noqa: E402
from kit.nats.store import Entry, Store  # noqa: E402
from kit.nats.worker import Worker  # noqa: E402

__all__ = [
    "Bus",
    "Connection",
    "DeadLetter",
    "Entry",
    "Handler",
    "Job",
    "Message",
    "Server",
    "Store",
    "Worker",
    "connect",
]
