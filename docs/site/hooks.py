"""Which files are pages of the site, for MkDocs.

The site has the paths of the repository, so that a link between pages is the same here and on a git host. A link to a
file that is no page (`configs/mmdet/retinanet_cmt_s_1x.py`, a notebook) leads to a page that shows the file.
"""
import json
import posixpath
import re
from pathlib import Path
from typing import Iterator, List

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = ['README.md', 'CHANGELOG.md', 'docs/**/*.md', 'benchmarks/*.md']
ASSETS = ['docs/**/*.png', 'docs/*.jpg', 'docs/site/*.css', 'docs/site/*.js', 'docs/site/*.svg', 'benchmarks/*.png']
UNLISTED = '---\nsearch: {exclude: true}\nhide: [navigation, toc]\n---\n'
LANGUAGES = {'.py': 'python', '.sh': 'sh', '.yml': 'yaml', '.cff': 'yaml'}
LINK = re.compile(r'(?<=\]\()(?!\w+:)([^)#\s]+)')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Puts the files of the repository in the place of those below `docs_dir`."""
    for file in [*files]:
        if file.src_dir == config.docs_dir:
            files.remove(file)
    pages = paths(PAGES)
    for path in [*pages, *paths(ASSETS)]:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    linked = {target for page in pages for target in targets((ROOT / page).read_text('utf-8'), page)}
    for path in sorted(linked):
        if path not in files.src_uris and (ROOT / path).is_file():
            level = InclusionLevel.UNDEFINED if path.endswith('.ipynb') else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, f'{path}.md', content=shown(path), inclusion=level))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to files to the pages that show them."""
    if page.file.src_uri == 'README.md':  # stands alone in its part of the navigation
        page.meta['hide'] = ['navigation']

    def lead(link: re.Match) -> str:
        return link[0] + '.md' * (resolved(link[0], page.file.src_uri) + '.md' in files.src_uris)

    return LINK.sub(lead, markdown)


def paths(patterns: List[str]) -> List[str]:
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern))


def resolved(link: str, page: str) -> str:
    """A link of a page as a path from the root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def targets(markdown: str, page: str) -> Iterator[str]:
    return (resolved(link, page) for link in LINK.findall(markdown))


def shown(path: str) -> str:
    """A page that shows a file."""
    text = (ROOT / path).read_text('utf-8')
    if path.endswith('.ipynb'):  # without what it prints and draws, as it is committed
        return '\n\n'.join(map(cell_as_markdown, json.loads(text)['cells']))
    language = LANGUAGES.get(posixpath.splitext(path)[1], 'text')
    return f'{UNLISTED}# {posixpath.basename(path)}\n\n`{path}`\n\n{fenced(text, language)}'


def fenced(text: str, language: str) -> str:
    return f'````{language}\n{text.rstrip()}\n````'


def cell_as_markdown(cell: dict) -> str:
    source = ''.join(cell['source'])
    return fenced(source, 'ipython3') if cell['cell_type'] == 'code' else source
