"""Weights from the web, each fetched once a machine."""
import fcntl
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.logging import print_log


def download(url: str) -> Path:
    """The local copy of a URL, fetched if it is not there yet.

    Kept where ``torch.hub`` keeps its files (``TORCH_HOME``), under the last part of the URL: put a
    file there by hand on a machine without internet. A copy is complete or absent.
    """
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / os.path.basename(urlparse(url).path)
    folder.mkdir(parents=True, exist_ok=True)
    with open(f'{path}.lock', 'w') as lock:  # one process a machine fetches, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            print_log(f'downloading {url} to {path}', logger='current')
            partial = tempfile.NamedTemporaryFile(dir=folder, prefix=f'{path.name}.', delete=False)
            try:
                with partial, urllib.request.urlopen(url, timeout=60) as response:
                    shutil.copyfileobj(response, partial, 1 << 20)
                    size, got = response.headers.get('Content-Length'), partial.tell()
                if size is not None and got != int(size):
                    raise ValueError(f'the download broke off after {got} of {size} bytes; try again')
                os.replace(partial.name, path)
            except (OSError, urllib.error.URLError) as error:
                raise ValueError(f'the download failed ({error}); without internet, put the file at '
                                 f'{path}') from None
            finally:
                if os.path.exists(partial.name):
                    os.remove(partial.name)
    return path
