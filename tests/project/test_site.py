"""The site of `make docs`: built strictly, what must fail, and how it opens in a browser."""
import functools
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from browser import page
from tool import ROOT


def build(root, site):
    """The command of `make docs`, into another place."""
    command = [sys.executable, '-m', 'mkdocs', 'build', '--site-dir', str(site)]
    return subprocess.run(command, cwd=root, text=True, capture_output=True, timeout=300)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope='module', params=['file', 'http'])
def address(request, site):
    """Where the site is: a folder that one opens, and a server of files."""
    if request.param == 'file':
        yield site.as_uri()
        return
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


# ---------------------------------------------------------------------------- what is built


def test_the_command():
    done = subprocess.run(['make', '-n', 'docs'], cwd=ROOT, check=True, text=True, capture_output=True)
    assert '/bin/python -m mkdocs build\n' in done.stdout  # of .venv, or .venv-onedl


def test_every_page_of_the_repository_is_one_of_the_site(site):
    pages = [*(ROOT / 'benchmarks').glob('*.md'), *(ROOT / 'docs').rglob('*.md')]
    assert len(pages) > 35
    for path in pages:
        page = (site / path.relative_to(ROOT)).with_suffix('.html')
        assert (page.with_name('index.html') if path.name == 'README.md' else page).is_file()
    assert (site / 'index.html').is_file() and (site / 'docs/tutorial.ipynb.html').is_file()
    pictures = {path.relative_to(ROOT) for path in (ROOT / 'benchmarks').glob('*.png')}
    assert pictures == {path.relative_to(site) for path in (site / 'benchmarks').glob('*.png')} and len(pictures) > 8


def test_a_link_to_a_file_leads_to_a_page_that_shows_it(site):
    html = (site / 'docs/own_dataset.html').read_text()
    assert 'href="../configs/mmdet/_base_/small_data.py.html"' in html
    assert 'AspectRatioBatchSampler' in (site / 'configs/mmdet/_base_/small_data.py.html').read_text()
    assert 'href="tutorial.ipynb.html"' in html


@pytest.mark.parametrize('room', ['', '.weights', '.training', '.export', '.openmmlab'])
def test_the_api_has_every_public_name(site, room):
    module = importlib.import_module(f'cmt_backbones{room}')
    html = ''.join(path.read_text() for path in (site / 'docs/api').glob('*.html'))
    public = {name: getattr(module, name) for name in [*module.__all__, *['load_model'] * (not room)]}
    public = {name: found for name, found in public.items() if inspect.isroutine(found) or inspect.isclass(found)}
    assert len(public) > 3
    for name, found in public.items():
        paths = [f'{module.__name__}.{name}', f'cmt_backbones.{name}', f'{found.__module__}.{found.__qualname__}']
        assert any(f'id="{path}"' in html for path in paths), name


def test_names_in_docstrings_are_links(site):
    html = (site / 'docs/api/weights.html').read_text()
    assert re.search(r'<a [^>]*href="backbones.html#cmt_backbones.ConvNeXt"><code>ConvNeXt</code></a>', html)
    for path in (site / 'docs/api').iterdir():
        prose = re.sub(r'<pre.*?</pre>', '', path.read_text(), flags=re.S)
        assert not re.search(r':(class|func|meth|mod|data):', prose)


def test_nothing_is_asked_of_other_hosts(site):
    for path in site.rglob('*.html'):
        asked = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="?([^"\s>]+)|<link\b([^>]*)>', path.read_text())
        for source, link in asked:
            assert not re.match(r'(https?:)?//', source) and not re.search(r'href="?(https?:)?//', link), path


def test_what_is_wrong_fails(tmp_path):
    """Dead links, pages that nothing leads to, and docstrings that name what is not there; all told at once."""
    for name in ('README.md', 'CHANGELOG.md', 'mkdocs.yml'):
        shutil.copy(ROOT / name, tmp_path)
    for name in ('docs', 'benchmarks', 'cmt_backbones', 'configs'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('.mim', '__pycache__'))
    with open(tmp_path / 'README.md', 'a') as file:
        file.write('[a](docs/nowhere.md) [b](docs/training.md#nowhere) ![c](nowhere.png) [d](tools/nowhere.py)\n')
    (tmp_path / 'benchmarks/stray.md').write_text('# A page that nothing leads to\n')
    (tmp_path / 'cmt_backbones/models/scaling.py').write_text(
        'def scaled_arch(phi: float) -> dict:\n'
        '    """As :func:`nowhere`.\n\n    Args:\n        psi: Not there.\n    """\n')
    done = build(tmp_path, tmp_path / 'site')
    for told in ("link 'docs/nowhere.md'", "link 'nowhere.png'", "link 'tools/nowhere.py'",
                 "'docs/training.md#nowhere'", '  - benchmarks/stray.md',
                 'scaled_arch names nowhere, which is not there', "Parameter 'psi' does not appear"):
        assert done.stderr.count(told) == 1, (told, done.stderr)
    assert done.returncode == 1


# ---------------------------------------------------------------------------- in a browser


def test_the_search_finds_and_leads_there(browser, address):
    with page(browser, 'about:blank') as tab:
        asked = []
        tab.on('request', lambda request: asked.append(request.url))
        tab.goto(f'{address}/index.html')
        assert tab.title() == 'cmt_backbones'
        search = tab.locator('.md-search__input')
        search.press_sequentially('CMT')
        tab.locator('.md-search-result__item').first.wait_for()
        assert 'matching documents' in tab.locator('.md-search-result__meta').inner_text()
        search.fill('')
        search.press_sequentially('load_pretrained')
        tab.locator('.md-search-result__item a', has_text='load_pretrained').first.click()
        tab.wait_for_url(re.compile(r'/docs/api/\w+\.html'))
        assert 'load_pretrained' in tab.locator('article').inner_text()
        assert asked and all(url.startswith((address, 'data:', 'blob:')) for url in asked)


def test_the_api_has_signatures(browser, address):
    with page(browser, f'{address}/docs/api/backbones.html') as tab:
        signature = tab.locator('.doc-signature').first.inner_text()
        assert signature.startswith('CMT(') and 'drop_path_rate: float = 0.1' in signature
        assert tab.locator('#cmt_backbones\\.ConvNeXt').is_visible()
        tab.locator('.md-sidebar--secondary a', has_text='RelativeBias').first.click()
        assert tab.url.endswith('#cmt_backbones.models.relative_bias.RelativeBias')


def test_the_pictures_of_the_gallery_are_there(browser, address):
    with page(browser, f'{address}/docs/gallery.html') as tab:
        tab.wait_for_load_state('networkidle')
        widths = tab.locator('article img').evaluate_all('images => images.map(image => image.naturalWidth)')
        assert len(widths) > 12 and min(widths) > 500
        whole = tab.locator('article a:has(img)').evaluate_all(
            'links => links.filter(link => link.href === link.children[0].src).length')
        assert whole == len(widths)  # each opens in its full size


@pytest.mark.parametrize('name', ['index', 'docs/gallery', 'docs/api/export', 'benchmarks/speed'])
def test_pages_fit_a_phone(browser, site, name):
    with page(browser, f'{site.as_uri()}/{name}.html', size=(390, 800)) as tab:
        assert tab.locator('article h1').is_visible()
        assert tab.evaluate('document.documentElement.scrollWidth') == 390
