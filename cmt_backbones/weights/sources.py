"""Where weights come from: each way to name them leads to a file on this machine."""
import contextlib
import difflib
import os
import re
import tempfile
import urllib.request
from pathlib import Path
from typing import Iterator, Optional, Tuple
from urllib.parse import urlparse

from .downloads import WeightsNotFound, check_sha256, download
from .hub import first_line, hub_file, timm_file

HUB_PREFIXES = ('hf-hub:', 'timm:')
# Names that mmengine's loader looks up in a table of URLs: its function for the table.
TABLES = {'open-mmlab': 'get_external_models', 'openmmlab': 'get_external_models',
          'mmcls': 'get_mmcls_models', 'torchvision': 'get_torchvision_models',
          'modelzoo': 'get_torchvision_models'}


@contextlib.contextmanager
def local_file(checkpoint: str) -> Iterator[Path]:
    """The file that a checkpoint's name stands for, for as long as it is read.

    Args:
        checkpoint: A path, ``http(s)://``, ``file://``, ``hf-hub:OWNER/NAME[@REVISION][/FILE]``,
            ``timm:MODEL``, ``open-mmlab://`` and the other tables of mmengine's loader, or what a backend of
            ``mmengine.fileio`` reads, such as ``s3://`` and ``petrel://``. ``#sha256=DIGITS`` behind it says
            what the file must have.

    Raises:
        WeightsNotFound: There is no such file, or it cannot be had.
        ValueError: It differs from its SHA-256.
    """
    name, sha256 = split_sha256(checkpoint)
    if name.startswith('timm:'):
        name = timm_file(name[len('timm:'):])
    scheme = scheme_of(name)
    if scheme in TABLES:
        name, scheme = of_table(scheme, name.partition('://')[2]), 'https'
    if name.startswith('hf-hub:'):
        yield hub_file(name[len('hf-hub:'):], sha256)
    elif scheme in ('http', 'https'):
        yield download(name, sha256)
    elif scheme in ('', 'file'):
        path = Path(urllib.request.url2pathname(urlparse(name).path) if scheme else name).expanduser()
        if not path.is_file():
            raise WeightsNotFound('there is no such file' + (', it is a folder' if path.is_dir() else ''))
        check_sha256(path, sha256, 'it is another file, or damaged')
        yield path
    else:
        with from_backend(name, scheme) as path:
            check_sha256(path, sha256, 'it is another file, or damaged')
            yield path


def split_sha256(checkpoint: str) -> Tuple[str, Optional[str]]:
    """A checkpoint's name without its ``#sha256=``, and that."""
    name, mark, sha256 = checkpoint.partition('#sha256=')
    if mark and not re.fullmatch('[0-9a-fA-F]{8,64}', sha256):
        raise ValueError(f'#sha256= wants the first 8 to 64 digits of the SHA-256, in hexadecimal, not {sha256!r}')
    return name, sha256.lower() or None


def scheme_of(name: str) -> str:
    """'https' of a URL, 's3' of 'cluster:s3://bucket/file', '' of a path."""
    found = re.match(r'(?:[^/\s]+:)?([A-Za-z][\w.+-]*)://', name)
    return found[1].lower() if found else ''


def of_table(scheme: str, name: str) -> str:
    """The URL of a name in one of mmengine's tables of weights."""
    from mmengine.runner import checkpoint as loader
    table = getattr(loader, TABLES[scheme])()
    name = loader.get_deprecated_model_names().get(name, name)
    if not str(table.get(name, '')).startswith(('http://', 'https://')):
        similar = difflib.get_close_matches(name, table, cutoff=0.4)
        raise WeightsNotFound(f"mmengine's table of {scheme}:// has no {name!r}"
                              + (f'; it has {", ".join(similar)}' if similar else ''))
    return table[name]


@contextlib.contextmanager
def from_backend(uri: str, scheme: str) -> Iterator[Path]:
    """A copy of what a backend of ``mmengine.fileio`` reads, removed afterwards."""
    from mmengine.fileio import get_file_backend
    from mmengine.fileio.backends import prefix_to_backends
    if scheme not in prefix_to_backends:
        raise WeightsNotFound(f'nothing here reads {scheme}://; expected a path, a URL, hf-hub:OWNER/NAME, timm:MODEL, '
                              f'{", ".join(f"{known}://" for known in [*TABLES, *prefix_to_backends] if known)}')
    try:
        content = get_file_backend(uri).get(uri)
    except Exception as error:  # each backend has errors of its own
        raise WeightsNotFound(f"mmengine's backend for {scheme}:// cannot read it ({first_line(error)})") from None
    handle, path = tempfile.mkstemp(suffix=Path(urlparse(uri).path).suffix)
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(content)
        del content
        yield Path(path)
    finally:
        os.remove(path)
