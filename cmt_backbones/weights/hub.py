"""Weights by their name on a hub, through huggingface_hub: its cache, tokens, mirrors and offline mode.

``hf-hub:OWNER/NAME``, with ``@REVISION`` and ``/FILE`` where wanted, and ``timm:MODEL`` for what timm's registry
knows. huggingface_hub comes with timm, and is imported only here.
"""
import re
from pathlib import Path
from types import ModuleType
from typing import List, NamedTuple, Optional
from urllib.parse import unquote

from mmengine.logging import print_log

from .downloads import WeightsNotFound, check_sha256, sha256_in

SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin', '.ckpt', '.pth.tar')


class HubName(NamedTuple):
    repository: str
    revision: Optional[str]
    file: Optional[str]


def parse(name: str) -> HubName:
    """'owner/name@revision/folder/file.pth' taken apart; a slash in a revision is written %2F."""
    found = re.fullmatch(r'([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/(.+))?', name)
    if found is None or found[3] and not found[3].endswith(SUFFIXES):
        raise WeightsNotFound(f'{name!r} is no name on a hub: expected hf-hub:OWNER/NAME, with @REVISION and '
                              f'/FILE ({", ".join(SUFFIXES[:3])}, ...) where wanted')
    return HubName(found[1], found[2] and unquote(found[2]), found[3])


def hub_file(name: str, sha256: Optional[str] = None) -> Path:
    """The local copy of a file on a hub, fetched if it is not there yet.

    Args:
        name: What follows ``hf-hub:``. Without a file, the one that :func:`choose` takes.
        sha256: The first digits, or all, of what the file must have; also from its name.

    Raises:
        WeightsNotFound: It cannot be had, with what to do.
        ValueError: It differs from its SHA-256.
    """
    hub = import_hub()
    repository, revision, file = parse(name)
    errors = hub.utils
    page = f'{hub.constants.ENDPOINT}/{repository}'
    try:
        file = file or choose(list_files(hub, repository, revision), repository)
        path = Path(hub.hf_hub_download(repository, file, revision=revision))
    except errors.GatedRepoError:
        raise WeightsNotFound(f'{repository} is gated: accept its licence at {page} and log in, by `hf auth login` '
                              'or a token in HF_TOKEN') from None
    except errors.RepositoryNotFoundError:
        raise WeightsNotFound(f'there is no {page}, or it is private: check the name, or log in by `hf auth login` '
                              'or a token in HF_TOKEN') from None
    except errors.RevisionNotFoundError:
        raise WeightsNotFound(f'{repository} has no revision {revision!r}; see {page}/commits/main') from None
    except errors.LocalEntryNotFoundError:
        raise WeightsNotFound(missing(hub, name, page)) from None
    except errors.EntryNotFoundError:
        raise WeightsNotFound(f'{repository} has no file {file!r}; it has '
                              f'{", ".join(list_files(hub, repository, revision))}') from None
    except errors.HFValidationError as error:
        raise WeightsNotFound(f'{name!r} is no name on a hub ({first_line(error)})') from None
    except WeightsNotFound:
        raise
    except Exception as error:  # of the HTTP client, which differs by version, or of the disk
        raise WeightsNotFound(f'{page} cannot be read ({first_line(error)})') from None
    print_log(f'hf-hub:{name}: taking {path}', logger='current')
    expected = sha256 or sha256_in(path.name)
    check_sha256(path, expected, f'{path} is another file or damaged; remove it to fetch it again')
    return path


def timm_file(name: str) -> str:
    """Where timm's registry has the weights of a model: an ``hf-hub:`` name or a URL."""
    try:
        import timm
    except ImportError:
        raise WeightsNotFound('a name of timm needs `pip install timm`') from None
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a model that it knows, with weights that it does not
        cfg = None
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        similar = timm.list_pretrained(f'{name.partition(".")[0]}*')[:8]
        raise WeightsNotFound(f'timm {timm.__version__} has no weights of the name {name!r}'
                              + (f'; it has {", ".join(similar)}' if similar else ''))
    if cfg.hf_hub_id:
        return f'hf-hub:{cfg.hf_hub_id}' + (f'/{cfg.hf_hub_filename}' if cfg.hf_hub_filename else '')
    return cfg.url


def import_hub() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError:
        raise WeightsNotFound('a name on a hub needs `pip install huggingface_hub`') from None
    return huggingface_hub


def list_files(hub: ModuleType, repository: str, revision: Optional[str]) -> List[str]:
    """The files of a repository; offline, those that the cache has of it."""
    try:
        return [file.rfilename for file in hub.HfApi().model_info(repository, revision=revision).siblings]
    except (hub.utils.RepositoryNotFoundError, hub.utils.RevisionNotFoundError, hub.utils.HFValidationError):
        raise
    except Exception:  # offline or no such host, by the errors of whichever HTTP client the hub's version has
        folder = Path(hub.snapshot_download(repository, revision=revision, local_files_only=True))
        return [path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()]


def choose(files: List[str], repository: str) -> str:
    """The weights among the files of a repository: the common names first, else the only file of its kind."""
    for name in ('model.safetensors', 'pytorch_model.bin'):
        if name in files:
            return name
    if any(name.endswith('.index.json') for name in files):
        raise WeightsNotFound(f'{repository} has its weights in several pieces, which no backbone of ours comes in')
    for suffix in SUFFIXES:
        some = sorted(name for name in files if name.endswith(suffix) and '/' not in name)
        if len(some) > 1:
            raise WeightsNotFound(f'{repository} has several files of weights; name one of them: '
                                  + ', '.join(f'hf-hub:{repository}/{name}' for name in some))
        if some:
            return some[0]
    raise WeightsNotFound(f'{repository} has no weights ({", ".join(SUFFIXES[:4])}); it has '
                          f'{", ".join(sorted(files)) or "nothing"}')


def missing(hub: ModuleType, name: str, page: str) -> str:
    """Why a file that was not fetched earlier cannot be fetched now."""
    cache = hub.constants.HF_HUB_CACHE
    if hub.constants.HF_HUB_OFFLINE:
        return (f'HF_HUB_OFFLINE is set, and the cache {cache} has no copy of {name}: fetch it once on a machine '
                'with internet, or copy its cache')
    return (f'{page} cannot be reached, and the cache {cache} has no copy of {name}: check the connection, or '
            'HF_ENDPOINT for a mirror')


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
