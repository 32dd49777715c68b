"""Which components there are, what each takes, and starting them: for notebooks and for ``kit worker`` alike."""

from __future__ import annotations

import inspect
import json
import pkgutil
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import kit
from kit.errors import ConfigurationError
from kit.lab.project import project_root

if TYPE_CHECKING:
    from kit.components import Service
    from kit.nats.bus import Bus

_DOCSTRING = re.compile(r'"""(.*?)("""|$)', re.MULTILINE)
_SERVES = re.compile(r"^async def serve\(", re.MULTILINE)


def names() -> tuple[str, ...]:
    """Return the components of this kit that can be served, without loading any."""
    return tuple(sorted(name for name, paths in _files().items() if any(_SERVES.search(p.read_text()) for p in paths)))


def summary(name: str) -> str:
    """Return the first sentence of a component's docstring, without loading it."""
    found = _DOCSTRING.match(_files()[name][0].read_text())
    return found[1].strip() if found else ""


async def serve(
    bus: Bus, components: Sequence[str], settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, Service]:
    """Serve components on a bus; if one does not start, those before it are stopped again.

    A setting goes to every component that takes one of its name; so does a default, which nobody has to take.

    Raises:
        ConfigurationError: a component that does not exist, or a setting that none of them takes.
    """
    from kit.otel import semconv  # here: `kit --help` lists the components, and is to be there at once

    modules = {name: _load(name) for name in components}
    taken = {name: _accepted(module) for name, module in modules.items()}
    if refused := [name for name in settings if not any(name in accepted for accepted in taken.values())]:
        offers = "; ".join(f"{name}: {', '.join(sorted(accepted)) or 'none'}" for name, accepted in taken.items())
        raise ConfigurationError(f"no setting {', '.join(map(repr, refused))}; there are: {offers}")
    services: dict[str, Service] = {}
    log = bus.telemetry.logger("kit.lab")
    try:
        for name, module in modules.items():
            chosen = {key: value for key, value in {**(defaults or {}), **settings}.items() if key in taken[name]}
            services[name] = await module.serve(bus, **chosen)
            log.info("serving %s", name, **{semconv.TENANT_ID: bus.tenant_id})
    except BaseException:
        for service in reversed(services.values()):
            await service.stop()
        raise
    return services


def command(components: Sequence[str], settings: Mapping[str, Any], tenant_id: str) -> str:
    """Return the command line that serves the components in a separate process.

    Settings that are numbers or switches are on the command line. All others may be secret, so they go into a file that
    only its owner can read: other users can see command lines, and a notebook stores what it prints.

    Raises:
        ConfigurationError: a component that does not exist.
    """
    for name in components:
        known(name)
    words = ["kit", "worker", *components, "--tenant", tenant_id]
    shown = {name: value for name, value in settings.items() if value is None or isinstance(value, bool | int | float)}
    for name, value in shown.items():
        words += ["--setting", f"{name}={json.dumps(value)}"]
    if hidden := {name: value for name, value in settings.items() if name not in shown}:
        from kit.nats.config import private_folder, write_private

        file = private_folder(project_root() / ".kit" / "settings") / f"{'-'.join(components)}-{tenant_id}.json"
        write_private(file, json.dumps(hidden, default=_plain))
        words += ["--settings", str(file)]
    return shlex.join(words)


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """Return the settings of a component; this loads it."""
    return _accepted(_load(name))


def _load(name: str) -> ModuleType:
    return import_module(f"kit.components.{known(name)}")


def known(name: str) -> str:
    """Return the name of a component that there is, without loading it.

    Raises:
        ConfigurationError: there is none of this name.
    """
    if name not in names():
        raise ConfigurationError(f"no component {name!r}; there are {', '.join(names()) or 'none'}")
    return name


def _plain(value: Any) -> Any:
    """A setting as a command line tells it: its fields where it has some, else its text."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _accepted(module: ModuleType) -> dict[str, inspect.Parameter]:
    """The keyword arguments of a component's ``serve`` after its bus."""
    found = list(inspect.signature(module.serve, eval_str=False).parameters.values())[1:]
    return {parameter.name: parameter for parameter in found if parameter.kind is not parameter.VAR_KEYWORD}


def _files() -> dict[str, list[Path]]:
    """The source files of every component, the one with its docstring first."""
    folder = Path(kit.__file__).parent / "components"
    found = {}
    for module in pkgutil.iter_modules([str(folder)]):
        package = folder / module.name
        found[module.name] = sorted(package.glob("*.py")) if module.ispkg else [folder / f"{module.name}.py"]
    return found
