"""The only room that imports nats: the embedded server, connections, and the bus on them."""

from kit.nats import lazy  # noqa: F401 - first: it makes the import of nats cheap
