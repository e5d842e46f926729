"""Ready-made settings: the files in configs/, by name, from a checkout or an installed wheel."""

import difflib
import sysconfig
from pathlib import Path

from sliceserve.configs.loading import ConfigError

# A wheel brings them as data files, a checkout has them beside the package.
_FOLDERS = (
    Path(__file__).parents[2] / "configs",
    Path(sysconfig.get_path("data")) / "share" / "sliceserve" / "configs",
)


def presets() -> dict[str, Path]:
    """The files by their names."""
    for folder in _FOLDERS:
        if found := {path.stem: path for path in sorted(folder.glob("*.yaml"))}:
            return found
    return {}


def find_config(name: str) -> Path:
    """The settings file called ``name``: a path, or a preset's name. Raises ConfigError for a name
    that is neither; whether a path can be read is seen when it is."""
    path = Path(name).expanduser()
    if path.exists() or path.suffix or path.name != name:
        return path
    known = presets()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
        raise ConfigError(f"there is neither a file nor a preset {name}; {hint}")
    return known[name]
