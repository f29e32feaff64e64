"""Reading the files a configuration names: local paths, URLs, and files inside installed packages."""

import io
import os
import zipfile
from importlib import resources
from pathlib import Path

import fsspec

from ntkpipe.configs.errors import ConfigError

PACKAGE_SCHEME = "package://"


def read_asset(url: str) -> bytes:
    """Return the content of a file.

    Args:
        url: A path, a URL that fsspec knows, or ``package://package.module/file``.

    Raises:
        ConfigError: The file or package does not exist or cannot be read.
    """
    try:
        if url.startswith(PACKAGE_SCHEME):
            package, _, file = url.removeprefix(PACKAGE_SCHEME).partition("/")
            if not package or {"", ".", ".."} & set(file.split("/")):
                raise ConfigError(f"{url} is not of the form package://package.module/file")
            return (resources.files(package) / file).read_bytes()
        with fsspec.open(url, "rb") as stream:
            return bytes(stream.read())
    except (FileNotFoundError, ModuleNotFoundError):
        raise ConfigError(f"{url} does not exist; check the path in the configuration.") from None
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - clients of object stores have errors of their own
        raise ConfigError(f"{url} cannot be read: {error}") from None


def check_unpacked(url: str, data: bytes) -> None:
    """Refuse an archive that is small only as long as it is packed; other contents pass.

    Raises:
        ConfigError: The files in it would not fit into memory.
    """
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ConfigError(f"{url} is a damaged archive: {error}") from None
    if size > memory_bytes():
        raise ConfigError(
            f"{url} has {len(data):,} bytes but would unpack to {size:,}, and this machine has {memory_bytes():,} bytes of "
            "memory. If that is meant to be so, keep the arrays in a data set that reads them one by one."
        )


def memory_bytes() -> int:
    """Return how much memory this process can have at the most."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(physical, int(text)) if text.isdecimal() else physical
