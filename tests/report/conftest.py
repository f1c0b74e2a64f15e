"""Pages in a browser."""

from contextlib import contextmanager

import pytest


@pytest.fixture
def open_page(browser):
    """Returns a context manager that opens a file in a tab.

    At its end, the page must have logged no problem and requested no other address than those `within` it.
    """

    @contextmanager
    def open_file(path, width, height, scheme, within=("data:",)):
        problems, addresses = [], set()
        tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        tab.set_default_timeout(60_000)
        tab.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: addresses.add(request.url))
        tab.goto(path.as_uri())
        yield tab
        tab.close()
        assert problems == []
        assert {address for address in addresses if not address.startswith(within)} == {path.as_uri()}

    return open_file
