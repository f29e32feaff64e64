"""The service as an application of Ray Serve: several replicas of it behind Ray's own proxies.

For those who have a Ray cluster anyway. Every replica is the application that `ntkpipe serve` runs, with the same answers and
ETags, so that it does not matter which one is asked. Ray's proxies listen; the token is asked for behind them, by the
replicas.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, final

from ray import serve
from ray.serve import Application as RayApplication
from ray.serve import Deployment
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.secrets import TOKEN_VARIABLE
from ntkpipe.pipeline.server.settings import ServerSettings, read_token

NAME: Final = "service"
"""Of the deployment, by which a Serve configuration sets its replicas."""

ANYWHERE: Final = "0.0.0.0"
"""Where Ray's proxies may listen."""

OPTIONS: Final = tuple(
    field.name
    for field in fields(ServerSettings)
    if field.name not in ("host", "port", "token", "tls_cert", "tls_key", "access_log")
)


def application(options: Mapping[str, Any]) -> RayApplication:
    """Return the application that a Serve configuration names by ``import_path``.

    The token comes from NTKPIPE_TOKEN, in the environment of Ray's processes; there must be one, as it is Ray that decides
    where its proxies listen. Requests are written to Ray's access log, not to another one.

    Args:
        options: The configuration's ``args``: ``root``, and other settings of a service by the names they have in
            :class:`ServerSettings`.

    Raises:
        ConfigError: There is no token or root, or a setting is not known or not acceptable.
    """
    settings_of(options)  # refused here, by whoever deploys, rather than by every replica again and again
    given = dict(options)

    def build() -> ASGIApp:
        # On the replica: neither the token nor an open run is ever pickled.
        from ntkpipe.pipeline.server.app import create_app
        from ntkpipe.pipeline.server.rayserve import Pickled, settings_of

        return Pickled(create_app(settings_of(given)))

    deployment: Deployment = serve.deployment(name=NAME)(serve.ingress(build)())
    bound: RayApplication = deployment.bind()
    return bound


@final
class Pickled:
    """An application whose answers go to a proxy in another process, and are made of what can be pickled."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; views of memory are sent as bytes."""

        async def send_bytes(message: Message) -> None:
            if "body" in message:
                message = {**message, "body": bytes(message["body"])}
            await send(message)

        await self._app(scope, receive, send_bytes)


def settings_of(options: Mapping[str, Any]) -> ServerSettings:
    """Return the settings of a replica; raises like :func:`application`."""
    for name in options:
        if name in ("token", "token_file"):
            raise ConfigError(f"a token does not belong in a Serve configuration; set {TOKEN_VARIABLE} where Ray runs.")
        if name not in OPTIONS:
            raise ConfigError(unknown_name("setting of the service", str(name), OPTIONS))
    if not options.get("root"):
        raise ConfigError("args has no root: the folder or URL that holds runs, as every node sees it.")
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    defaults = ServerSettings(root="")
    for name, value in given.items():
        kind = type(getattr(defaults, name))
        accepted = (int, float) if kind in (float, type(None)) else kind
        if not isinstance(value, accepted) or isinstance(value, bool) is not (kind is bool):
            raise ConfigError(f"{name} in args is {value!r}; expected something like {getattr(defaults, name)!r}.")
    return ServerSettings(host=ANYWHERE, token=read_token(None), access_log=False, **given)
