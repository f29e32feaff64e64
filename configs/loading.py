"""From a YAML file, a preset name or a dictionary to a RunConfig, with errors a person can act on."""

import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.union import KernelConfig
from ntkpipe.configs.run import RunConfig
from ntkpipe.configs.secrets import redacted, secrets_in
from ntkpipe.configs.solve.union import SECTIONS, SolveConfig
from ntkpipe.configs.yaml_text import MAX_BYTES, parse_yaml

IN_ENVIRONMENT = "env:"
"""Begins the name of a configuration that is the value of an environment variable."""

_KERNEL: TypeAdapter[KernelConfig] = TypeAdapter(KernelConfig)


def preset_names() -> list[str]:
    """Return the names of the configurations that ship with ntkpipe."""
    folder = resources.files("ntkpipe.configs") / "presets"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_config(
    source: str | Path | Mapping[str, Any] | RunConfig, overrides: Sequence[str] = (), *, stored: bool = False
) -> RunConfig:
    """Read a configuration and apply ``key=value`` overrides.

    Args:
        source: A YAML file, the name of a preset, ``env:NAME`` for JSON in a variable of the environment, a dictionary, or
            a finished configuration.
        overrides: Dotted assignments such as ``resources.workers=4`` or ``kernels.0.kind=pntk``; values are YAML.
        stored: Whether it is the configuration of a run that exists, which will not be stored again.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown, a value has the wrong type, or one that would be
            stored is a secret.
    """
    if isinstance(source, RunConfig):
        if not overrides:
            return source if stored else _without_secrets(source, f"configuration {source.name!r}")
        document: Any = source.document()
        origin = f"configuration {source.name!r}"
    elif isinstance(source, Mapping):
        document, origin = dict(source), "configuration"
    else:
        document, origin = _read_yaml(str(source)), str(source)
    if not isinstance(document, dict):
        raise ConfigError(f"{origin}: expected a mapping with keys such as 'model' and 'data', found {document!r}.")
    for override in overrides:
        _apply_override(document, override)
    try:
        config = RunConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(describe_findings(origin, error)) from None
    return config if stored else _without_secrets(config, origin)


def _without_secrets(config: RunConfig, origin: str) -> RunConfig:
    for place, what in secrets_in(config.model_dump()):
        raise ConfigError(
            f"{origin}: {place} holds {what}. It would be stored in run.json for everybody to read: take it out, and let "
            "the callable or the storage client read it from the environment."
        )
    return config


def load_kernel(kind: str, options: Mapping[str, Any]) -> KernelConfig:
    """Return the section of one kernel.

    Raises:
        ConfigError: There is no such kind, or an option is unknown or has the wrong type.
    """
    try:
        return _KERNEL.validate_python({"kind": kind, **options})
    except ValidationError as error:
        raise ConfigError(describe_findings(f"kernel {kind!r}", error)) from None


def load_solve(kind: str, options: Mapping[str, Any]) -> SolveConfig:
    """Return the section of a solver that is asked for without a configuration file.

    Raises:
        ConfigError: There is no such solver, or an option is not valid; the message names the nearest valid one.
    """
    if kind not in SECTIONS:
        raise ConfigError(unknown_name("method", kind, SECTIONS))
    valid = SECTIONS[kind].model_fields.keys() - {"kind", "name", "kernel", "targets", "class_weight"}
    for option in options:
        if option not in valid:
            raise ConfigError(unknown_name(f"option of {kind}", option, valid))
    try:
        return SECTIONS[kind](name="solve", kernel="kernel", **options)
    except ValidationError as error:
        raise ConfigError(describe_findings(f"solver {kind!r}", error)) from None


def _read_yaml(source: str) -> Any:
    path = Path(source)
    if source.startswith(IN_ENVIRONMENT):
        return _read_variable(source.removeprefix(IN_ENVIRONMENT))
    if path.is_file():
        text = read_text(path)
    elif source in preset_names():
        text = (resources.files("ntkpipe.configs") / "presets" / f"{source}.yaml").read_text("utf-8")
    elif path.is_dir():
        raise ConfigError(f"{source} is a folder; expected a YAML file or the name of a preset.")
    elif path.suffix or path.parent != Path():
        raise ConfigError(f"configuration file {source} does not exist. Presets: {', '.join(preset_names())}")
    else:
        raise ConfigError(unknown_name("configuration", source, preset_names()))
    return parse_yaml(text, source)


def _read_variable(name: str) -> Any:
    if name not in os.environ:
        raise ConfigError(f"there is no environment variable {name}, which should hold the configuration as JSON.")
    try:
        return json.loads(os.environ[name])
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the environment variable {name} does not hold a configuration as JSON: {error}.") from None


def read_text(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        ConfigError: It cannot be read, is no text, or too large.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist.")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size:,} bytes; a configuration has at most {MAX_BYTES:,}.")
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from None


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value, such as resources.workers=4")
    value = parse_yaml(text, f"override {override!r}: the value")
    *parents, last = key.split(".")
    node: Any = document
    for depth, part in enumerate(parents):
        node = _child(node, part, override)
        if node is None:
            raise ConfigError(f"override {override!r}: {'.'.join(parents[: depth + 1])} is not a section.")
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} is {node!r}, not a section.")


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, part, override)]
    if isinstance(node, dict):
        return node.setdefault(part, {})
    return None


def _position(items: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ConfigError(f"override {override!r}: {part!r} is not a position in a list of {len(items)}.")
    return int(part)


def describe_findings(origin: str, error: ValidationError, *, what: str = "configuration") -> str:
    """Turn pydantic's findings into one line each: where, what was found, what was expected."""
    lines = []
    findings = error.errors(include_url=False)
    places = [finding["loc"] for finding in findings]
    for finding in findings:
        # A list whose items are all invalid is also reported as too short, which is no news.
        inner = any(
            len(place) > len(finding["loc"]) and place[: len(finding["loc"])] == finding["loc"] for place in places
        )
        if finding["type"] == "too_short" and inner:
            continue
        place = ".".join(str(part) for part in finding["loc"]) or "(top level)"
        text = finding["msg"].removeprefix("Value error, ")
        found = finding.get("input")
        shown = "" if finding["type"] in {"unknown_key", "missing", "value_error"} else f" (found {_short(found)})"
        lines.append(f"{place}: {text}{shown}")
    head = f"{origin} is not a valid {what}."
    return "\n  ".join([head, *lines])


def _short(value: Any) -> str:
    text = redacted(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
