"""Starting a Ray of our own, or joining one that is there: its options, and one clear line where there is none."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
import sys
import tempfile
import uuid
import zipfile
from typing import Any

from cope_prep.jobs import gate, node_entry
from cope_prep.schemas.errors import ConfigurationError

_CONNECT_S = 5.0
_OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Calls and replies are a few hundred bytes, and travel inside Ray's own messages."""


def connect(*, address: str, workers: int | None, wheel: str | None) -> Any:
    """Start or join a Ray; returns the module."""
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        # Ray listens on all interfaces unless it believes to be on a laptop, where this variable is its
        # own way to say: this is no cluster, stay on 127.0.0.1. Ray reads it when it is imported.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Other users of this machine reach 127.0.0.1 too: a token that only our own processes inherit.
        os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex + uuid.uuid4().hex)
        if "ray" not in sys.modules:
            # Read once, when Ray is imported; too late, its server would ask for a token that its client does
            # not send. Where somebody has imported Ray before, ray.init sets it for both.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        options |= {
            "num_cpus": workers,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    _check_reachable(address)
    with contextlib.ExitStack() as stack:
        if wheel is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cope-prep-wheel-"))
            options["runtime_env"] = {"py_modules": _unpack(wheel, folder)}
        import ray
        from ray.cloudpickle import register_pickle_by_value

        try:
            ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as exc:
            raise ConfigurationError(f"--address {address}", f"no Ray there ({reason(exc)})") from exc
        except OSError as exc:
            if "AF_UNIX" not in str(exc):
                raise
            # The path of a socket has at most 107 bytes, and Ray's own part of it takes more than half.
            raise ConfigurationError(
                os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(),
                "is too long a path for Ray's sockets",
                "Set RAY_TMPDIR to a shorter folder, or use --no-ray.",
            ) from exc
        except Exception as exc:
            if type(exc) is not Exception:
                raise
            # What Ray raises where its own processes need longer than it waits for them.
            raise ConfigurationError(
                f"--address {address}",
                f"Ray did not start ({reason(exc)})",
                "On a busy machine try again, or use --no-ray.",
            ) from exc
    # Also a node without cope-prep is to know these, so that it can say so.
    for module in (gate, node_entry):
        register_pickle_by_value(module)
    return ray


def _unpack(wheel: str, folder: str) -> list[str]:
    """The wheel's folders, for Ray to send to its workers.

    Not the wheel itself: Ray would have pip install it on every node together with all that it depends on,
    beside what is there already. It took two minutes a node, and put a second Ray before the first.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    except (OSError, zipfile.BadZipFile) as exc:
        raise ConfigurationError(f"--wheel {wheel}", f"cannot be read ({exc})") from exc
    if not os.path.isdir(os.path.join(folder, "cope_prep")):
        raise ConfigurationError(f"--wheel {wheel}", "is not a wheel of cope-prep")
    return sorted(entry.path for entry in os.scandir(folder))


def reason(exc: BaseException) -> str:
    """The first line of a message of Ray's, which may have many."""
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__


def last_line(exc: BaseException) -> str:
    """The last line of a message of Ray's that ends with the error itself, after a traceback."""
    lines = str(exc).strip().splitlines()
    return lines[-1].strip() if lines else type(exc).__name__


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes, and log its attempts, where nothing listens."""
    if address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise ConfigurationError(
            f"--address {address}",
            "needs the Ray client",
            "Run: pip install 'ray[client]', or use HOST:PORT.",
        )
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as exc:
        raise ConfigurationError(f"--address {address}", f"no Ray there ({exc})") from exc
