"""A list of models that is declared once: names, labels, colours, help, and how each is built.

Only the standard library is imported: a command line reads names and help without waiting for JAX.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

_GREY = "#777777"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A model of a study.

    Attributes:
        name: On the command line, and in every file of results.
        build: Makes it; what it takes and returns is the study's. Imports JAX itself.
        help: What it is, in a few words, for `--help`.
        label: Its name in tables and figures; by default `name`.
        colour: Its colour in every figure, as "#RRGGBB".
    """

    name: str
    build: Callable[..., Any]
    help: str
    label: str = ""
    colour: str = _GREY


E = TypeVar("E", bound=Entry)


class Registry(Mapping[str, E]):
    """Models by name, in the order in which tables list them."""

    def __init__(self, entries: Iterable[E] = ()):
        self._entries: dict[str, E] = {}
        for entry in entries:
            self.register(entry)

    def register(self, entry: E) -> E:
        """Add a model; from then on every command, table and figure knows it.

        Raises:
            ValueError: There is one of this name.
        """
        if entry.name in self._entries:
            raise ValueError(f"register: there is a model {entry.name!r}; choose another name")
        self._entries[entry.name] = entry
        return entry

    def __getitem__(self, name: str) -> E:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def label(self, name: str) -> str:
        """Name a model to a reader, even one of stored results that is not registered here."""
        entry = self._entries.get(name)
        return (entry and entry.label) or name

    def colour(self, name: str) -> str:
        """Return a model's colour, grey for one that is not registered here."""
        entry = self._entries.get(name)
        return entry.colour if entry else _GREY

    def check(self, flag: str, names: Sequence[str], among: Iterable[str] | None = None) -> None:
        """Refuse names that are not registered.

        Args:
            flag: Names the argument in the message.
            names: Chosen models.
            among: Those that may be chosen; by default all.

        Raises:
            ValueError: A name is unknown.
        """
        known = list(self if among is None else among)
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{flag}: expected any of {', '.join(known)}, got {unknown[0]}")


def lazily(module: str, function: str) -> Callable[..., Any]:
    """Return a function of a module that is imported when it is first called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*args, **kwargs)

    return call
