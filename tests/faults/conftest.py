"""Processes that the tests of this folder start."""

import pytest
from processes import ending


@pytest.fixture
def start():
    """Start ntkpipe as ``processes.start`` does; what is still there after the test is killed."""
    with ending() as started:
        yield started
