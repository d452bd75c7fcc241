"""Start Streamlit's server in this process: loopback only unless asked, nothing sent home, no child process.

Streamlit installs its own handlers: Ctrl-C and SIGTERM end its event loop, and `serve` returns.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import ipaddress
import os
import socket
import sys
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Callable
from pathlib import Path

from cope_prep.jobs.dashboard.opened import Arguments, choose, find_choices
from cope_prep.schemas.errors import ConfigurationError, CopePrepError

DEFAULT_PORT = 8501
_STARTED_WITHIN_S = 120.0
_LOOPBACK_NAMES = ["localhost", "127.0.0.1", "::1"]
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


def check_installed() -> None:
    """Raise unless the packages of the extra are there.

    Raises:
        ConfigurationError: one is missing.
    """
    missing = [name for name in ("streamlit", "plotly", "duckdb") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            "cope-prep dashboard",
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            "Run: pip install 'cope-prep[dashboard]'",
        )


def check_spec(arguments: Arguments) -> None:
    """Raise if the specs of the command line are not there; what else is wrong with the dataset its pages say.

    Raises:
        ConfigurationError: none of the dataset's specs, or several, have such a hash.
    """
    if arguments.spec is None:
        return
    try:
        choices = find_choices(arguments.dataset)
    except CopePrepError:
        return
    choose(choices, arguments.spec)


def is_loopback(host: str) -> bool:
    """True if only this machine can reach a server that binds to it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def server_options(host: str, port: int) -> dict[str, object]:
    """Streamlit's settings: they win over any config.toml of the user's."""
    options: dict[str, object] = {
        "server.address": host,
        "server.port": port,
        "server.headless": True,  # else it asks for an e-mail address at its first start
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "server.enableStaticServing": False,
        "server.enableXsrfProtection": True,
        "server.enableCORS": True,
        "server.enableAgentApi": False,
        "browser.gatherUsageStats": False,
        "runner.magicEnabled": False,  # a bare string in a module is a docstring here, not something to show
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",  # a traceback may hold a URL with credentials
        "client.showErrorLinks": "false",
        "global.developmentMode": False,
        "theme.light.primaryColor": "#1c64b4",
        "theme.dark.primaryColor": "#3a86d4",
        "logger.hideWelcomeMessage": True,
        "logger.level": "warning",
    }
    if is_loopback(host):
        # A page of another site whose name resolves to this machine must not get in (DNS rebinding).
        options["server.allowedHosts"] = _LOOPBACK_NAMES
    return options


def free_port(host: str, port: int | None) -> int:
    """The port to bind to: the given one; else the usual one, or 0 (any) if that is taken.

    Raises:
        ConfigurationError: the given one is taken, or the host is not an address of this machine.
    """
    wanted = DEFAULT_PORT if port is None else port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, wanted, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        if isinstance(exc, socket.gaierror) or exc.errno not in _TAKEN:
            raise ConfigurationError(f"--host {host}", f"cannot be bound to ({exc.strerror})") from exc
        if port is not None:
            raise ConfigurationError(
                f"--port {port}", f"is not free ({exc.strerror})", "Choose another, or 0 for any."
            ) from exc
        return 0
    return wanted


def serve(
    arguments: Arguments, *, host: str, port: int | None, open_browser: bool, say: Callable[[str], None]
) -> None:
    """Serve until Ctrl-C or SIGTERM. `say` is told the address once the server answers.

    Raises:
        ConfigurationError: something is not installed, the address cannot be had, or no output has the specs asked
            for.
    """
    check_installed()
    check_spec(arguments)
    port = free_port(host, port)
    from streamlit import net_util
    from streamlit.web import bootstrap

    # To check a page's origin it would ask a server on the internet for this machine's address.
    net_util.get_external_ip = lambda: None
    options = server_options(host, port)
    bootstrap.load_config_options(flag_options=options)
    for target, given in ((_announce, (host, open_browser, say)), (_warm, (arguments,))):
        threading.Thread(target=target, args=given, daemon=True).start()
    script = str(Path(__file__).with_name("app.py"))
    bootstrap.run(script, is_hello=False, args=[arguments.to_json()], flag_options=options)


def _announce(host: str, open_browser: bool, say: Callable[[str], None]) -> None:
    """Say where the server is once it answers, and show it."""
    from streamlit import config

    end_s = time.monotonic() + _STARTED_WITHIN_S
    while time.monotonic() < end_s:
        port = config.get_option("server.port")
        url = f"http://{_shown(host)}:{port}"
        if port and _answers(url):
            say(url)
            if open_browser and _has_display():
                webbrowser.open(url)
            return
        time.sleep(0.1)


def _warm(arguments: Arguments) -> None:
    """Read the tables while the browser is still starting: the first page has them, or waits for the rest."""
    from cope_prep.jobs.dashboard import kept

    with contextlib.suppress(CopePrepError):  # the pages will say it
        layout = choose(find_choices(arguments.dataset), arguments.spec).layout
        kept.STATS.get(layout)
        kept.VIDEOS.get(layout)


def _shown(host: str) -> str:
    """The host as a browser wants it."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/_stcore/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def _has_display() -> bool:
    """False where a browser would be a text one in this very terminal."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
