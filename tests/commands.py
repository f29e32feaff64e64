"""Running the ntkpipe command as a user would, from the folder that holds the golden network."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
COMMAND = [sys.executable, "-c", "from ntkpipe.pipeline.cli import main; main()"]


def ntkpipe_command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=TESTS, capture_output=True, text=True, check=False, timeout=300
    )
