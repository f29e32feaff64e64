"""Reading the files a configuration names: local paths, URLs, and files inside installed packages."""

from importlib import resources

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
            if not package or not file or ".." in file.split("/"):
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
