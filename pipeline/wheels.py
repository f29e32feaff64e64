"""Code for a cluster: wheels as Ray can ship them, under a name that tells their content, and without what they require.

Ray keeps a wheel under the name of its file, so that a changed one of the same version would never arrive, and has pip
install whatever it requires, which for ntkpipe is all of PyTorch. Both are settled by a copy: its build tag is a digest
of the content, and it names no requirements. What a wheel needs must be on the cluster, as its image has it.
"""

import hashlib
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ntkpipe.configs.errors import ConfigError

WHEEL = re.compile(
    r"(?P<name>[A-Za-z0-9._]+)-(?P<version>[A-Za-z0-9._!+]+)(?:-(?P<build>\d[^-]*))?-(?P<tags>[^-]+-[^-]+-[^-]+)\.whl"
)
REQUIREMENT = re.compile(rb"^Requires-Dist:.*\r?\n(?:[ \t].*\r?\n)*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on this machine."""

    path: Path
    name: str
    """Of the distribution, in lower case with ``_``."""
    version: str
    tags: str


def read_wheels(paths: Sequence[str | Path]) -> list[Wheel]:
    """Return what wheels there are.

    Raises:
        ConfigError: A path is no wheel, or two are of the same distribution.
    """
    found: dict[str, Wheel] = {}
    for path in map(Path, paths):
        match = WHEEL.fullmatch(path.name)
        if match is None or not path.is_file():
            raise ConfigError(
                f"{path} is no wheel: expected an existing file such as model-1.0-py3-none-any.whl. Build one with "
                "`pip wheel --no-deps FOLDER`."
            )
        if not zipfile.is_zipfile(path):
            raise ConfigError(f"{path} is no wheel but for its name: it is no archive. Build it again.")
        name = re.sub(r"[-_.]+", "_", match["name"]).lower()
        if name in found:
            raise ConfigError(f"{path} and {found[name].path} are wheels of the same distribution; give one of them.")
        found[name] = Wheel(path, name, match["version"], match["tags"])
    return list(found.values())


def prepared(wheel: Wheel, folder: Path) -> Path:
    """Write the copy of a wheel that can be shipped, and return its path.

    Raises:
        ConfigError: The file is damaged.
    """
    try:
        content = wheel.path.read_bytes()
        target = folder / f"{wheel.name}-{wheel.version}-0{hashlib.sha256(content).hexdigest()[:16]}-{wheel.tags}.whl"
        with zipfile.ZipFile(wheel.path) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as copy:
            for item in source.infolist():
                data = source.read(item)
                if re.fullmatch(r"[^/]+\.dist-info/METADATA", item.filename):
                    head, gap, text = data.partition(b"\n\n")
                    data = REQUIREMENT.sub(b"", head + b"\n")[:-1] + gap + text
                copy.writestr(item, data)
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{wheel.path} cannot be read as a wheel: {error}. Build it again.") from None
    return target
