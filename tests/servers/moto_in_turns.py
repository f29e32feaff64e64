"""moto's server, answering one request at a time.

It looks whether an object exists and then writes, on a thread per request: of two that create the same object at once
both may succeed, which S3 rules out.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple


def in_turns(application: Callable[..., Iterable[bytes]]) -> Callable[..., list[bytes]]:
    """Return a WSGI application whose requests wait for each other; connections need not."""
    turn = threading.Lock()

    def answer(environment: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        with turn:
            return list(application(environment, start_response))

    return answer


if __name__ == "__main__":
    moto = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", int(sys.argv[1]), in_turns(moto), threaded=True, request_handler=MotoRequestHandler)
