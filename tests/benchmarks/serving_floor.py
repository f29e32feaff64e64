"""The bare server that the service is compared with: the same uvicorn, and answers that lie in memory.

    python tests/benchmarks/serving_floor.py FOLDER

FOLDER has ``answers.json``, a list of {"target", "status", "headers", "file"}, and the files with their content.
"""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn


def application(folder: Path) -> Any:
    """Return an ASGI application that answers each target with what is stored for it."""
    answers = {}
    for answer in json.loads((folder / "answers.json").read_text()):
        headers = [(name.encode(), value.encode()) for name, value in answer["headers"]]
        start = {"type": "http.response.start", "status": answer["status"], "headers": headers}
        body = {"type": "http.response.body", "body": (folder / answer["file"]).read_bytes()}
        answers[answer["target"].encode()] = start, body

    async def answer_bare(scope: dict[str, Any], receive: Any, send: Any) -> None:
        del receive
        query = scope["query_string"]
        start, body = answers[scope["raw_path"] + (b"?" + query if query else b"")]
        await send(start)
        await send(body)

    return answer_bare


def main(folder: Path) -> None:
    """Serve until told to end; prints the address."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        application(folder), interface="asgi3", lifespan="off", log_config=None, access_log=False, server_header=False
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
