"""What surrounds the app's page on this machine: its port, its environment, who is let in, its end.

``delivery/app.py`` hands it to Gradio.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aiornot.config import InputError

HOST = "127.0.0.1"

_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
}

# Whatever a library may ask the browser to load from elsewhere, it does not get.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'self'"
)


def wait() -> None:
    """Return when the process is asked to end, by Ctrl-C or SIGTERM, and ignore both from then on.

    To close the page and to remove its uploads takes a moment, which a second Ctrl-C would cut off
    with a traceback.
    """
    stop = threading.Event()
    names = (signal.SIGINT, signal.SIGTERM)
    for name in names:
        signal.signal(name, lambda *_: stop.set())
    stop.wait()
    for name in names:
        signal.signal(name, signal.SIG_IGN)


def free_port(wanted: int) -> int:
    """Return a free port; Gradio takes no 0, and would look for another one where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {wanted} cannot be used ({error}); give another --port, or 0 for a free one"
            ) from None
        return int(probe.getsockname()[1])


@contextmanager
def environment(uploads: str) -> Iterator[None]:
    """Tell Gradio by the environment what it asks there alone, and put everything back."""
    # Gradio greets its own server over HTTP, which a proxy of the environment would swallow.
    local = ",".join(filter(None, [os.environ.get("NO_PROXY"), HOST]))
    wanted = _ENVIRONMENT | {"GRADIO_TEMP_DIR": uploads, "NO_PROXY": local, "no_proxy": local}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def middleware() -> list[Middleware]:
    # Another page that lets its name point at 127.0.0.1 comes with its own name as the host.
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
        Middleware(_Policy),
    ]


class _Policy:
    """Sends the policy with every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message["headers"] = [*message.get("headers", []), policy]
            await send(message)

        await self._app(scope, receive, with_policy)
