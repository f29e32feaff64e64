"""What other people have written, on a terminal: sample ids, names and messages cannot move its cursor or colour it."""

import os
import re
import shlex
import sys
import traceback

import typer
from rich.console import Console
from rich.text import Text

from ntkpipe.configs.secrets import redacted

_DOUBTFUL = re.compile(r"[^\x20-\x7e\n\t]")


def printable(text: str) -> str:
    """Return a text that shows control characters, and those that turn the direction of writing, by their codes."""
    return _DOUBTFUL.sub(lambda found: found[0] if _is_harmless(found[0]) else ascii(found[0])[1:-1], text)


def say(console: Console, text: str) -> None:
    """Print a line as it is: nothing in it is markup."""
    console.print(printable(text), highlight=False, markup=False, soft_wrap=True)


def cell(text: str) -> Text:
    """Return a text as a cell of a table: nothing in it is markup."""
    return Text(printable(text))


def command(*words: str) -> str:
    """Return a command line of ntkpipe as it can be given to a shell."""
    return shlex.join(("ntkpipe", *words))


def warn(text: str) -> None:
    """Print a line where errors go."""
    typer.echo(printable(text), err=True)


def warn_of(error: Exception) -> None:
    """Print the traceback of an error that ntkpipe did not expect, without secrets."""
    warn(redacted("".join(traceback.format_exception(error))))


def lost_output(ending: str = "") -> str | None:
    """Return why nothing can be printed any more, such as to a full disk, None if it can.

    Args:
        ending: Is printed: where nothing waits to be written, only another write shows whether one is possible.
    """
    try:
        sys.stdout.write(ending)
        sys.stdout.flush()
    except OSError as error:
        # Python would fail to write it once more when it ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return f"what it prints cannot be written: {error.strerror}."
    return None


def _is_harmless(char: str) -> bool:
    # Python calls no space printable but the plain one; those that end a line are as bad as other control characters.
    return char.isprintable() or (char.isspace() and ord(char) >= 0xA0 and ord(char) not in (0x2028, 0x2029))
