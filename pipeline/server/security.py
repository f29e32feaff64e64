"""Who may ask: host names, origins and tokens; and what every answer tells browsers."""

import hmac
from hashlib import sha256
from typing import Any, Final, final
from urllib.parse import urlsplit

from ntkpipe.pipeline.server.problems import Refusal
from ntkpipe.pipeline.server.settings import LOOPBACK_NAMES, ServerSettings

POLICY: Final = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
"""Of every answer."""

OPEN_PATHS: Final = ("/", "/healthz", "/favicon.ico")
_FOREIGN: Final = (b"cross-site", b"same-site")
"""Following a link from there is fine; what it leads to cannot be read from there."""

OPEN_FOLDER: Final = "/static/"
"""What needs no token: it holds no data."""


@final
class Guard:
    """Decides whether a request is heard.

    Without a token only the machine itself may ask, but a browser on it shows pages of others: such a page may not ask
    under another name that leads here (DNS rebinding), nor send requests of its own.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._token = sha256(settings.token.encode()).digest() if settings.token else None
        own = {_name(host) for host in (settings.host, *settings.allowed_hosts)}
        # Behind a balancer the origin may be another than the host that the service is asked under.
        self._origins = {_name(host) for host in settings.allowed_hosts}
        # With a token, a page that leads here under another name learns nothing: it does not have the token.
        self._hosts = None if settings.token and not settings.allowed_hosts else own | set(LOOPBACK_NAMES)
        self._max_head = settings.max_head_bytes

    def check(self, scope: dict[str, Any]) -> None:
        """Let a request pass.

        Raises:
            Refusal: It is too large, is for another host, comes from another site, or has no valid token.
        """
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"]) + sum(len(a) + len(b) for a, b in headers)
        if size > self._max_head:
            raise Refusal(
                431,
                "too-large",
                f"the head of the request has {size:,} bytes; at most {self._max_head:,} are read. POST long selections.",
                limit=self._max_head,
                asked=size,
            )
        hosts = [value for name, value in headers if name == b"host"]
        self._check_host(hosts)
        self._check_origin(headers, hosts)
        if self._token is not None and not _is_open(scope["path"]):
            self._check_token([value for name, value in headers if name == b"authorization"])

    def _check_host(self, hosts: list[bytes]) -> None:
        if self._hosts is None:
            return
        if len(hosts) != 1 or _name(hosts[0].decode("latin-1")) not in self._hosts:
            raise Refusal(
                421,
                "forbidden",
                "this service is not asked under that host name. Use its own, or start it with --allow-host NAME.",
            )

    def _check_origin(self, headers: list[tuple[bytes, bytes]], hosts: list[bytes]) -> None:
        for name, value in headers:
            if name == b"origin":
                place = _place_of(value.decode("latin-1"))
                own = {host.decode("latin-1").lower() for host in hosts}
                if place is None or (place.lower() not in own and _name(place) not in self._origins):
                    raise _other_site()
            elif name == b"sec-fetch-site" and value in _FOREIGN and (b"sec-fetch-mode", b"navigate") not in headers:
                raise _other_site()

    def _check_token(self, given: list[bytes]) -> None:
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        found = sha256(token.strip()).digest()
        if not (hmac.compare_digest(found, self._token or b"") and scheme.lower() == b"bearer"):
            raise Refusal(
                401, "unauthorized", "the token is missing or wrong. Send it as `Authorization: Bearer TOKEN`."
            )


def _other_site() -> Refusal:
    return Refusal(403, "forbidden", "pages of other sites may not ask this service.")


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def _name(host: str) -> str:
    """Return the name of a host without its port, in lower case; of an IPv6 address without brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]


def _place_of(origin: str) -> str | None:
    """Return host and port of an origin, None for one without them, such as ``null``."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
