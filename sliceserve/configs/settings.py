"""A field of the settings: declared once, for the file, the environment, the command line and its
help."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_type_hints

# Topics of `--help`, in the order in which they are shown.
PANELS = (
    "Model",
    "Split",
    "Memory",
    "Scheduling",
    "Network",
    "Observability",
    "Chat",
    "Security",
    "Codec",
    "Patience",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """How a field is offered. ``flag`` is its option without the dashes, "" the field's own name;
    fields that share one are set together; None: it has none, and ``help`` says why. ``shown`` is
    the default in words, where the value does not tell."""

    help: str
    panel: str = ""
    flag: str | None = ""
    shown: str | None = None
    secret: bool = False


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    panel: str = "",
    *,
    flag: str | None = "",
    shown: str | None = None,
    secret: bool = False,
    factory: Callable[[], Any] | None = None,
) -> Any:
    """A dataclass's field with its ``Setting``. Secrets are shown by neither ``repr`` nor
    ``dump_config``."""
    metadata = {"setting": Setting(help, panel, flag, shown, secret)}
    if factory is not None:
        return field(default_factory=factory, repr=not secret, metadata=metadata)
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A field that is not itself a group of fields: its dotted ``key``, its type ``hint``."""

    key: str
    hint: Any
    setting: Setting

    @property
    def flag(self) -> str | None:
        """The option's name without dashes before it; None: not on the command line."""
        if self.setting.flag is None:
            return None
        return self.setting.flag or self.key.rsplit(".", 1)[-1].replace("_", "-")


def leaves(cls: type[Any], prefix: str = "") -> Iterator[Leaf]:
    """All fields of the dataclass ``cls`` and of the groups within it, in their order."""
    hints = get_type_hints(cls)
    for one in dataclasses.fields(cls):
        key, hint = f"{prefix}{one.name}", hints[one.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{key}.")
        else:
            yield Leaf(key, hint, setting_of(one))


def setting_of(one: "dataclasses.Field[Any]") -> Setting:
    """What a field was declared with; of one that was not, that it has no flag."""
    found: Setting = one.metadata.get("setting") or Setting("", flag=None)
    return found
