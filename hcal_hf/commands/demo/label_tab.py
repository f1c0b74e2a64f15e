"""Builds the tab of the demo page in which suggested documents are labelled."""

import inspect
import ipaddress
import secrets
import socket
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .labelling import Labelling

FOLDER = Path(__file__).parent
# Methods of [`Labelling`] that the page calls.
CALLS = ("next_text", "show_text", "list_children", "search_labels", "decide")


def add_label_tab(labelling: Labelling, model: str, host: str = "127.0.0.1") -> Any:
    """Adds the component to the open gradio page, and returns it.

    Args:
        labelling ([`Labelling`]): the documents and the file.
        model: the name of the model, for the command that trains it.
        host: the address that the server listens on.
    """
    import gradio as gr

    guard = Guard(host)

    def server_function(name: str) -> Callable:
        method = getattr(labelling, name)

        def call(arguments: Any, request: gr.Request) -> dict[str, Any]:
            return answer(guard, method, arguments, request.headers)

        call.__name__ = name
        return call

    template = (FOLDER / "label_tab.html").read_text(encoding="utf-8")
    several = "true" if labelling.allows_several else "false"
    for name, value in {"TOKEN": guard.token, "SEVERAL": several, "MODEL": model}.items():
        template = template.replace(f"@{name}@", escape(value))
    return gr.HTML(
        template,
        css_template=(FOLDER / "label_tab.css").read_text(encoding="utf-8"),
        js_on_load=(FOLDER / "label_tab.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id="hcal-label",
        server_functions=[server_function(name) for name in CALLS],
    )


def answer(guard: "Guard", method: Callable, arguments: Any, headers: Mapping[str, str]) -> dict[str, Any]:
    """Calls a method for a page. Returns its answer, or {"error": message}."""
    try:
        if not isinstance(arguments, dict):
            raise ValueError("A request must hold an object. Reload the page.")
        guard.check(arguments.get("token"), headers)
        values = {name: value for name, value in arguments.items() if name != "token"}
        try:
            inspect.signature(method).bind(**values)
        except TypeError as problem:
            raise ValueError(f"The request does not fit this server ({problem}). Reload the page.") from None
        return method(**values)
    except (ValueError, OSError) as problem:
        return {"error": str(problem)}


class Guard:
    """Refuses requests that do not come from the page itself.

    Texts may be confidential, and a request changes a file. gradio checks neither the host nor the origin of a request. A
    page on another site could therefore send requests to this machine: directly, which the token and the origin prevent, or
    after it made its own name point to this machine (DNS rebinding), which the host prevents.

    Args:
        host: the address that the server listens on. Pages may use it, any IP address, `localhost` and the name of this
            machine.
    """

    def __init__(self, host: str):
        self.token = secrets.token_urlsafe(24)
        self.names = {"localhost", host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}

    def check(self, token: Any, headers: Mapping[str, str]) -> None:
        """Checks a request.

        Raises:
            ValueError: if it does not come from the page.
        """
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if not (_is_address(name) or name in self.names):
            raise ValueError(
                f"The page cannot be used under the name {name!r}. Open it at the address that hcal demo prints, or give "
                "this name with --host."
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise ValueError(f"Requests from {origin!r} are refused. Open the address that hcal demo prints.")
        if not isinstance(token, str) or not secrets.compare_digest(token.encode(), self.token.encode()):
            raise ValueError("The server was restarted since this page was opened. Reload the page.")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
