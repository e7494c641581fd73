"""`textrl reward serve`: any reward model behind HTTP."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from ipaddress import ip_address

import tyro
from rich.console import Console

from textrl_env.reward_model import as_reward_model
from textrl_env.utils.optional_imports import optional_import

from ..utils.device_flag import OnDevice, on_device
from ..utils.limits import Port
from .arguments import reward_of


@dataclass(frozen=True)
class Serve(OnDevice):
    """Serve a reward model over HTTP; the reward model `http` is its client.

    Attributes:
        reward: Name of a reward model, the folder of a saved one, a JSON object with `name` and its arguments, or `file.py:function`.
        host: Address to listen at; by default this machine alone can reach it.
        port: Port to listen at; 0 for one that is free.
        token: Name of the environment variable that holds the token which requests must bear; by default they need none.
    """

    reward: tyro.conf.Positional[str] = "vader"
    host: str = "127.0.0.1"
    port: Port = 8900
    token: str | None = None


@on_device
def run_serve(config: Serve) -> None:
    """Load the reward model, then listen until Ctrl-C.

    Raises:
        ImportError: FastAPI or uvicorn is not installed.
        OSError: The address cannot be listened at.
        ValueError: No such reward model, or the variable of the token is not set.
    """
    from rewards.remote.reward_server import make_app  # FastAPI: the help must work without

    with optional_import("server", "serving a reward model needs FastAPI and uvicorn"):
        import uvicorn
    model, token, console = as_reward_model(reward_of(config.reward, "REWARD")), _token(config.token), Console()
    listener = listen(config.host, config.port)
    host, port = listener.getsockname()[:2]
    if token is None and not ip_address(host).is_loopback:
        console.print(f"whoever reaches {host} may use this server: --token NAME asks for a token")
    console.print(f"{model!r} at http://{f'[{host}]' if ':' in host else host}:{port}/score", highlight=False, markup=False, soft_wrap=True)
    with listener:
        uvicorn.Server(uvicorn.Config(make_app(model, token), log_level="warning")).run(sockets=[listener])


def _token(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable, "").strip():
        raise ValueError(f"--token {variable}: that environment variable is not set")
    return os.environ[variable].strip()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        OSError: The address cannot be listened at.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE)[0]
        # with the protocol named, asyncio sets TCP_NODELAY; without it an answer takes 45 ms instead of 5
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a restart must wait for old connections
        listener.bind(address)
        listener.listen(512)
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        raise OSError(f"cannot listen at {host}:{port} ({error}): choose another --host or --port") from error
    return listener
