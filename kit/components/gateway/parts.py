"""What a gateway is put together from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cache import Cache
from .events import Events
from .flight import Flights
from .health import Health
from .litellm_calls import Providers
from .peers import Peers
from .prices import Prices
from .settings import Settings
from .till import Till

if TYPE_CHECKING:
    from kit.otel import Telemetry


@dataclass(kw_only=True, slots=True)
class Parts:
    """The parts of one worker's gateway; all of one tenant."""

    settings: Settings
    telemetry: Telemetry
    providers: Providers
    prices: Prices
    till: Till
    health: Health
    events: Events
    flights: Flights
    peers: Peers
    worker_id: str
    max_payload: Callable[[], int]
    cache: Cache | None = None
    looking: asyncio.Task[None] | None = None
