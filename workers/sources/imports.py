"""Import paths ``package.module:callable`` that a configuration names."""

import importlib
import traceback
from collections.abc import Callable
from typing import Any

from ntkpipe.configs.errors import ConfigError


def resolve(target: str) -> Callable[..., Any]:
    """Import a callable. The named code is trusted and runs with the user's rights.

    Raises:
        ConfigError: The module cannot be imported, or has no such callable.
    """
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{target}: module {error.name!r} cannot be imported. Install it, start ntkpipe in the folder that holds it, or "
            "ship its wheel to the cluster (--wheel)."
        ) from None
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"{target}: module {module_name!r} has no callable {name!r}.")
    return found  # type: ignore[no-any-return]


def call(target: str, options: dict[str, Any]) -> Any:
    """Import a callable and call it with keyword options.

    Raises:
        ConfigError: It cannot be imported, does not accept the options, or raises an error; says which and where.
    """
    function = resolve(target)
    try:
        return function(**options)
    except ConfigError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, TypeError) and len(frames) == 1:
            raise ConfigError(f"{target} does not accept the options {options}: {error}") from error
        place = f"{frames[-1].filename}, line {frames[-1].lineno}"
        raise ConfigError(f"{target} raised {type(error).__name__}: {error} ({place})") from error
