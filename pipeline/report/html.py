"""Elements of HTML and SVG. Text and attributes are escaped here and nowhere else, so that nothing can be forgotten."""

import html
import re
from dataclasses import dataclass

VOID = frozenset({"meta", "br", "col"})

_DOUBTFUL = re.compile(r"[^\x20-\x7e\n\t]")


@dataclass(frozen=True, slots=True)
class Html:
    """Text that is HTML already."""

    text: str


Child = Html | str | int


def element(tag: str, *children: Child, **attributes: str | float) -> Html:
    """Return an element.

    Args:
        tag: Its name.
        children: In it; plain text is escaped.
        attributes: By name, with ``_`` for ``-``; ``class_`` is class. Their values are escaped.
    """
    named = "".join(f' {_name(key)}="{html.escape(visible(_value(value)))}"' for key, value in attributes.items())
    if tag in VOID:
        return Html(f"<{tag}{named}>")
    return Html(f"<{tag}{named}>{joined(*children).text}</{tag}>")


def joined(*children: Child) -> Html:
    """Return several things one after the other."""
    return Html("".join(child.text if isinstance(child, Html) else text(child) for child in children))


def text(value: str | int) -> str:
    """Return plain text as HTML."""
    return html.escape(visible(f"{value:,}" if isinstance(value, int) else value))


def visible(value: str) -> str:
    """Return a text that shows control characters, and those that turn the direction of writing, by their codes."""
    return _DOUBTFUL.sub(lambda found: found[0] if found[0].isprintable() else ascii(found[0])[1:-1], value)


def number(value: float) -> str:
    """Return a coordinate in as few characters as show it on a screen."""
    return f"{value:.1f}".removesuffix(".0")


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else number(value)
