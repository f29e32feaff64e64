"""The connection to a service: requests that only read, the token, time-outs, retries, and errors told as our own."""

import json
import time
from collections.abc import Mapping
from typing import Any, Final, final
from urllib.parse import urlencode

import httpx

from ntkpipe.configs.errors import (
    ChunkNotReadyError,
    ConfigError,
    NtkPipeError,
    StorageError,
    TaskFailedError,
    TooLargeError,
    error_of_kind,
)
from ntkpipe.pipeline.client.address import RunAddress
from ntkpipe.pipeline.client.kept import KeptAnswer, KeptAnswers, Question
from ntkpipe.pipeline.client.pieces import TooLarge
from ntkpipe.pipeline.query.formats import RUN_HEADER

Parameters = Mapping[str, str | int]
"""Of a request: texts, numbers and truth values, which JSON tells apart."""

ATTEMPTS: Final = 4
"""At a request that the service is too busy for, or whose connection is lost."""

MAX_PAUSE_SECONDS: Final = 10.0
"""Between two attempts, whatever the service asks for."""

MAX_URL_LENGTH: Final = 1_500
"""Of parameters; what is longer goes into the body of a POST. Proxies begin to refuse URLs at 4,096 bytes."""

MAX_MESSAGE_LENGTH: Final = 2_000
"""Of what a service says went wrong."""

JSON: Final = "application/json"

_LOST = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.CloseError)


@final
class Connection:
    """Connections to one service, kept open and shared by threads.

    The token goes to this service only: redirects are not followed, and a proxy is used only for what is encrypted.
    Everything that is asked only reads, so that it may be asked again.
    """

    def __init__(self, address: RunAddress, token: str | None, *, timeout_seconds: float, cache_bytes: int) -> None:
        self._address = address
        self._kept = KeptAnswers(cache_bytes)
        headers = {"user-agent": "ntkpipe", "accept-encoding": "identity"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout_seconds, connect=min(timeout_seconds, 10.0)),
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=32, keepalive_expiry=30.0),
            follow_redirects=False,
            # SSL_CERT_FILE and SSL_CERT_DIR count on this machine, too, where no proxies of the environment do.
            verify=httpx.create_ssl_context() if address.is_encrypted else True,
            # Proxies of the environment would see what goes to this machine, or what is not encrypted.
            trust_env=address.is_private and not address.is_local,
        )

    def pin(self, run_id: str) -> None:
        """Ask from now on of this run only; the service refuses to answer of another one that has taken its name."""
        self._client.headers[RUN_HEADER] = run_id

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def document(self, path: str, parameters: Parameters | None = None) -> dict[str, Any]:
        """Return a JSON document.

        Args:
            path: Below the service's address.
            parameters: Of the request.

        Raises:
            NtkPipeError: What the service says went wrong.
            StorageError: The service cannot be reached, or answers with something else.
        """
        found = self.try_document(path, parameters or {})
        if isinstance(found, TooLarge):
            raise found.error
        return found

    def try_document(self, path: str, parameters: Parameters) -> dict[str, Any] | TooLarge:
        """Return a JSON document like :meth:`document`, or that too much was asked for."""
        content = self.request(path, parameters, JSON)
        if isinstance(content, TooLarge):
            return content
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self.unexpected(path, "is not a JSON document")
        return found

    def content(self, path: str) -> bytes:
        """Return a file's bytes; raises like :meth:`document`."""
        found = self.request(path, {}, "*/*")
        if isinstance(found, TooLarge):
            raise found.error
        return found

    def request(self, path: str, parameters: Parameters, accept: str) -> bytes | TooLarge:
        """Return the content of an answer, one that is kept if the service says that it is still right."""
        question: Question = (path, (("accept", accept), *sorted(parameters.items())))
        kept = self._kept.get(question)
        headers = {"accept": accept} | ({} if kept is None else {"if-none-match": kept.etag})
        response = self._send(path, parameters, headers)
        if response.status_code == 304 and kept is not None:
            return kept.content
        if response.status_code == 413:
            return _too_large(self._problem(path, response))
        if response.status_code != 200:
            raise self._problem(path, response)
        if "etag" in response.headers:
            self._kept.put(question, KeptAnswer(response.headers["etag"], response.content))
        return response.content

    def unexpected(self, path: str, what: str) -> StorageError:
        """Return the error of an answer that no service of ours gives."""
        return StorageError(
            f"the answer of {self._address.service}{path} {what}. Is it a service of ntkpipe, of the same version?"
        )

    def _send(self, path: str, parameters: Parameters, headers: dict[str, str]) -> httpx.Response:
        url = f"{self._address.service}{path}"
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in parameters.items()}
        query = urlencode(texts)
        if len(query) > MAX_URL_LENGTH:
            request = self._client.build_request("POST", url, json=dict(parameters), headers=headers)
        else:
            request = self._client.build_request("GET", f"{url}?{query}" if query else url, headers=headers)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = self._client.send(request)
            except _LOST as error:
                # Such as one that the service, or a balancer before it, closed while the request was on its way.
                if attempt == ATTEMPTS:
                    raise self._unreachable(error) from None
                continue
            except httpx.HTTPError as error:
                raise self._unreachable(error) from None
            pause = _pause(response)
            if pause is None or attempt == ATTEMPTS:
                break
            time.sleep(pause)
        return response

    def _unreachable(self, error: httpx.HTTPError) -> StorageError:
        service, reason = self._address.service, str(error) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return StorageError(
                f"{service} shows a certificate that is not trusted here ({reason}). If it is the right one, set SSL_CERT_FILE to "
                "its file, or to that of who has signed it."
            )
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return StorageError(
                f"{service} has not answered in time ({reason}). Ask for less at once, or connect with a larger "
                "timeout_seconds."
            )
        return StorageError(
            f"{service} cannot be reached ({reason}). Is `ntkpipe serve` running there, and is the address right? "
            f"{service}/healthz answers without a token."
        )

    def _problem(self, path: str, response: httpx.Response) -> NtkPipeError:
        """Return the error that a service answered with, as it was before it crossed the network."""
        status = response.status_code
        if status in (401, 403):
            return ConfigError(
                f"{self._address.service} wants a token, and has got none or another one: give `token`, or set "
                "NTKPIPE_TOKEN, to what `ntkpipe serve` reads from its token file."
            )
        if 300 <= status < 400:
            return StorageError(
                f"{self._address.service} answers with a redirection (HTTP {status}), which is not followed, as the token "
                "would go along. Connect to the address it leads to."
            )
        problem = _problem_of(response)
        if problem is None:
            return self.unexpected(path, f"is HTTP {status} without a reason that can be read")
        return _error_of(problem)


def _pause(response: httpx.Response) -> float | None:
    """Return how long a service that is too busy wants to be left alone, None where it does not."""
    if response.status_code not in (429, 503):
        return None
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return min(seconds, MAX_PAUSE_SECONDS) if seconds >= 0 else None


def _problem_of(response: httpx.Response) -> dict[str, Any] | None:
    """Return a problem document, None if the answer is none."""
    try:
        document = response.json()
    except (ValueError, RecursionError):
        return None
    found = document if isinstance(document, dict) else {}
    return found if isinstance(found.get("kind"), str) and isinstance(found.get("detail"), str) else None


def _error_of(problem: dict[str, Any]) -> NtkPipeError:
    kind, detail = problem["kind"], problem["detail"]
    message = detail if len(detail) <= MAX_MESSAGE_LENGTH else f"{detail[:MAX_MESSAGE_LENGTH]} ..."
    if kind == TooLargeError.kind:
        limit, asked = (problem.get(what) for what in ("limit", "asked"))
        return TooLargeError(message, limit=_whole_number(limit), asked=_whole_number(asked))
    if kind == ChunkNotReadyError.kind:
        blocks = problem.get("blocks")
        return ChunkNotReadyError(message, tasks=tuple(map(str, blocks)) if isinstance(blocks, list) else ())
    error = error_of_kind(kind, message)
    # A kind of a later version, or a defect of the service.
    unknown = isinstance(error, TaskFailedError) and kind != TaskFailedError.kind
    return StorageError(message) if unknown or type(error) is NtkPipeError else error


def _whole_number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _too_large(error: NtkPipeError) -> TooLarge:
    """Return by how much too much was asked for: twice, where that is not told."""
    limit, asked = (error.limit, error.asked) if isinstance(error, TooLargeError) else (None, None)
    return TooLarge(asked / limit if limit and asked and 0 < limit < asked else 2.0, error)
