"""A real browser, without a window, for the pages that the commands make."""
import os
import shutil
from contextlib import contextmanager

import pytest

NAMES = ['chromium', 'chromium-browser', 'google-chrome', 'chrome']
# It runs as root in containers, and asks nobody for updates, translations or its own makers' hosts.
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync']


@contextmanager
def chromium():
    """playwright's `Browser`; the test is skipped where there is none, and fails in CI."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if not path:
        (pytest.fail if os.environ.get('CI') else pytest.skip)(
            'needs Chromium: `apt-get install chromium`, or Google Chrome on the PATH')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def page(browser, url, size=(1280, 900)):
    """A page at an address, file:// too. It fails at the end if the page or its scripts reported an error.

    Args:
        browser: Of :func:`chromium`.
        url: Where it lies.
        size: Width and height of the window, in pixels.
    """
    errors = []
    tab = browser.new_page(viewport=dict(width=size[0], height=size[1]))
    tab.on('console', lambda message: errors.append(message.text) if message.type == 'error' else None)
    tab.on('pageerror', lambda error: errors.append(str(error)))
    # A page breaks off streams of events itself.
    tab.on('requestfailed', lambda request: errors.append(f'{request.url}: {request.failure}')
           if request.failure != 'net::ERR_ABORTED' else None)
    tab.goto(url)
    try:
        yield tab
        assert not errors, errors
    finally:
        tab.close()
