"""The only room that imports nats: the embedded server, connections, and the bus on them."""

from kit.nats.lazy import import_nats

import_nats()
