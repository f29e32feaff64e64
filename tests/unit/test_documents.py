"""Documents of a run: what was not written by one is refused in one way, whatever it is."""

import json

import pytest

from ntkpipe.configs.errors import StorageError
from ntkpipe.storage.records import Receipt


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_json_does_not_have_breaks_the_seal(value):
    document = json.loads(Receipt(stage="kernel", task="a", chunks=(), seconds=1.0, worker="w").encode())
    with pytest.raises(StorageError, match=r"receipt\.json cannot be read: it is damaged"):
        Receipt.parse(json.dumps(document | {"seconds": value}).encode(), "receipt.json")
