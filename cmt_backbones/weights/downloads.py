"""Weights from the web, each fetched once a machine and kept by its whole URL."""
import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import urllib.request
from pathlib import Path
from typing import BinaryIO, Iterator, Optional
from urllib.parse import unquote, urldefrag, urlparse

import torch
from mmengine.logging import print_log


class WeightsNotFound(ValueError, FileNotFoundError):
    """Weights that cannot be had; an OSError too, as users of mmdet and mmseg catch a missing file."""


def download(url: str, sha256: Optional[str] = None) -> Path:
    """The local copy of a URL, fetched if it is not there yet.

    Kept where ``torch.hub`` keeps its files (``TORCH_HOME``), in a folder of the whole URL, so that no two
    URLs share a file. A file that lies under the last part of the URL, where ``torch.hub`` would have it,
    was put there by hand and is used as it is. A copy is complete or absent.

    Args:
        url: An http(s) URL.
        sha256: The first digits, or all, of what the file must have. From its name, if it ends as
            ``torch.hub`` ends its names (``-1a2b3c4d.pth``).

    Raises:
        WeightsNotFound: It cannot be fetched.
        ValueError: It differs from its SHA-256.
    """
    url = urldefrag(url)[0]
    name = file_name(url)
    sha256 = sha256 or sha256_in(name)
    by_hand = Path(torch.hub.get_dir()) / 'checkpoints' / name
    own = by_hand.parent / 'by_url' / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    # Version 0.1.0 kept its downloads there, whatever their host, with a lock beside them.
    unsure = Path(f'{by_hand}.lock').exists()
    if not own.is_file() and by_hand.is_file() and not unsure:
        print_log(f'{url}: taking {by_hand}, which was put there', logger='current')
        check_sha256(by_hand, sha256)
        return by_hand
    try:
        if not own.is_file():
            own.parent.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(own):
                if not own.is_file():
                    print_log(f'downloading {url} to {own}', logger='current')
                    fetch(url, own, sha256)
    except OSError as error:
        told = f'the download failed ({error}); without internet, put the file at {by_hand}'
        if unsure and by_hand.is_file():
            told += (f": there is one that an older version kept by its name alone; if it is this URL's, remove "
                     f'{by_hand}.lock')
        raise WeightsNotFound(told) from None
    print_log(f'{url}: taking {own}', logger='current')
    check_sha256(own, sha256)
    return own


def file_name(url: str) -> str:
    """The last part of a URL, as a name for a file on any system."""
    name = re.sub(r'[^\w.+=@-]', '_', unquote(os.path.basename(urlparse(url).path)))
    return name if name.strip('.') else 'weights'


def fetch(url: str, path: Path, sha256: Optional[str]) -> None:
    """Downloads to a path, of which nothing is left if that fails."""
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix='.part')
    try:
        with os.fdopen(handle, 'wb') as file, urllib.request.urlopen(url, timeout=60) as response:
            shutil.copyfileobj(response, file, 1 << 20)
            size, got = response.headers.get('Content-Length'), file.tell()
        if size is not None and got != int(size):
            raise WeightsNotFound(f'the download broke off after {got} of {size} bytes; try again')
        check_sha256(Path(partial), sha256, 'the server sent another file')
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """One process of a machine fetches, the others wait; without a lock where the disk has none."""
    import filelock  # of torch's own requirements; on every system, and free again when its holder is killed
    lock = filelock.FileLock(f'{path}.lock')
    try:
        lock.acquire()
    except (OSError, NotImplementedError):  # then each fetches, and the last one's whole file stays
        lock = contextlib.nullcontext()
    with lock:
        yield


# ---------------------------------------------------------------------------- SHA-256


def sha256_in(name: str) -> Optional[str]:
    """What ``torch.hub`` and mmdet's publishing put at the end of a file's name: its first digits, at least 8."""
    found = re.search(r'-([0-9a-f]{8,64})\.\w+$', name)
    if found is None or re.fullmatch(r'20\d{6}', found[1]):  # a date
        return None
    return found[1]


def check_sha256(path: Path, expected: Optional[str], blame: str = '') -> None:
    """Raises ValueError for a file whose SHA-256 does not begin as expected."""
    if expected is None:
        return
    with path.open('rb') as file:
        found = digest(file)
    if not found.startswith(expected):
        raise ValueError(f'its SHA-256 is {found}, and {expected} was expected: '
                         + (blame or f'{path} is another file or damaged; remove it to fetch it again'))


def digest(file: BinaryIO) -> str:
    """The SHA-256 of an open file, from where it stands."""
    found = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b''):
        found.update(block)
    return found.hexdigest()
