"""A training's checkpoint -> a file that one shares: weights, what they are, and a model card."""
import hashlib
import json
import os
import platform
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import mmengine
import torch
from mmengine.config import Config
from torch import Tensor

from .. import __version__
from ..openmmlab.checkpoints import load_from_disk
from ..weights import WeightsNotFound, convert, local_file
from ..weights.hub import first_line, import_hub
from .model_card import model_card

PARTS = ('model', 'backbone')
# Starts whose licence goes on to hold for what is trained from them: a part of their names, and the hub's name for it.
BINDING = {'dinov3': 'dinov3-license', 'eupe': 'fair-noncommercial-research-license', 'convnextv2': 'cc-by-nc-4.0'}


class PublishError(ValueError):
    """Why nothing is published, in one line."""


class Published(NamedTuple):
    weights: Path
    card: Path
    told: Dict[str, Any]  # what the header says


def publish(checkpoint: str, folder: Path, name: Optional[str] = None, part: str = 'model',
            licence: Optional[str] = None) -> Published:
    """Writes ``NAME-<8 digits of its SHA-256>.safetensors``, ``config.py`` and ``README.md`` into a folder.

    Args:
        checkpoint: Of a training by mmengine, beside whose folder of logs it lies.
        folder: Made if it is not there; what an earlier call made there is replaced.
        name: Of the model; from the config's if left out.
        part: ``'model'``, or ``'backbone'`` for another detector to start from.
        licence: As a hub names it, such as ``'apache-2.0'``. Left out for a model that started from weights
            whose licence binds it.

    Raises:
        PublishError: It is no such checkpoint, or its licence is not known or not free to choose.
    """
    try:
        with local_file(checkpoint) as path:
            content = load_from_disk(str(path))
            log = read_log(path.parent)
    except (ValueError, OSError) as error:
        raise PublishError(f'cannot publish {checkpoint}: {error}') from None
    meta = content.get('meta', {}) if isinstance(content, dict) else {}
    if 'cfg' not in meta or 'state_dict' not in content:
        raise PublishError(f'cannot publish {checkpoint}: it is not the checkpoint of a training by mmengine, which '
                           'holds its weights as `state_dict` and its config as `meta.cfg`')
    cfg = shareable(Config.fromstring(meta['cfg'], '.py'))
    state = {key: value for key, value in content['state_dict'].items() if isinstance(value, Tensor)}
    if part == 'backbone':
        try:
            state, _ = convert(state)
        except ValueError as error:
            raise PublishError(f'cannot publish the backbone of {checkpoint}: {error}') from None
    state = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    rows = {row['step']: row for row in log}
    by_epoch = 'max_epochs' in cfg.get('train_cfg', {})
    told = dict(
        name=name or re.sub(r'_\d{8}_\d{6}$', '', meta.get('experiment_name', '')) or Path(checkpoint).stem,
        part=part, arch=cfg.model.backbone.get('arch'), config=cfg.pretty_text,
        dataset_meta=plain(meta.get('dataset_meta', {})), epoch=meta.get('epoch'), iter=meta.get('iter'),
        metrics=metrics_of(rows.get(meta.get('epoch' if by_epoch else 'iter'), {})), versions=versions(meta),
        licence=licence_of(cfg, licence), sha256=tensors_sha256(state))
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob('*-????????.safetensors'):
        old.unlink()
    weights = write(state, told, folder)
    (folder / 'config.py').write_text(told['config'], encoding='utf-8')
    card = folder / 'README.md'
    card.write_text(model_card(told, cfg, state, log, weights, by_epoch), encoding='utf-8')
    return Published(weights, card, told)


def shareable(cfg: Config) -> Config:
    """A config without what only holds on the machine of the training."""
    for key in ('work_dir', 'load_from'):
        if cfg.get(key):
            cfg[key] = None
    cfg.resume = False
    text = cfg.pretty_text.replace(str(Path.home()) + os.sep, '~/')
    return Config.fromstring(text, '.py')


def licence_of(cfg: Config, given: Optional[str]) -> str:
    """The licence of a model, by where it started and by what was said."""
    start = str((cfg.model.backbone.get('init_cfg') or {}).get('checkpoint', '')).lower()
    bound = next((licence for part, licence in BINDING.items() if part in start), None)
    if bound and given not in (None, bound):
        raise PublishError(f'it started from {start}, whose licence holds for what is trained from it: --licence '
                           f'must be {bound}, not {given}')
    if not (bound or given):
        raise PublishError('its licence is yours to say: --licence apache-2.0, or another name that hubs know'
                           + (f'; it started from {start}' if start else ''))
    return bound or str(given)


def read_log(folder: Path) -> List[dict]:
    """The evaluations that a run logged beside its checkpoints, by step; later ones of a step win."""
    rows: Dict[int, dict] = {}
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in path.read_text(encoding='utf-8').splitlines():
            row = json.loads(line)
            if 'step' in row and 'lr' not in row and 'loss' not in row:
                rows[row['step']] = row
    return [rows[step] for step in sorted(rows)]


def metrics_of(row: dict) -> Dict[str, float]:
    """What was measured in one evaluation, without times."""
    return {key: value for key, value in row.items() if key not in ('step', 'time', 'data_time') and value is not None}


def versions(meta: dict) -> Dict[str, str]:
    return dict(cmt_backbones=__version__, torch=torch.__version__, mmengine=mmengine.__version__,
                trained_with_mmengine=str(meta.get('mmengine_version', '')), python=platform.python_version())


def plain(value: Any) -> Any:
    """Values as JSON has them."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def tensors_sha256(state: Dict[str, Tensor]) -> str:
    """The SHA-256 of the weights alone, as they stand in a ``.safetensors`` file behind its header."""
    from safetensors.torch import save
    content = save(state)
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], 'little'):]).hexdigest()


def write(state: Dict[str, Tensor], told: Dict[str, Any], folder: Path) -> Path:
    from safetensors.torch import save
    header = dict(format='pt', cmt_backbones=__version__, **{key: json.dumps(value) for key, value in told.items()})
    content = save(state, header)
    name = re.sub(r'[^\w.+]', '_', told['name'] + ('_backbone' if told['part'] == 'backbone' else ''))
    path = folder / f'{name}-{hashlib.sha256(content).hexdigest()[:8]}.safetensors'
    partial = folder / f'.{name}.part'
    partial.write_bytes(content)
    os.replace(partial, path)
    return path


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Uploads what :func:`publish` wrote to a hub, and returns the name by which it is read from there.

    Raises:
        PublishError: The hub does not take it.
    """
    try:
        hub = import_hub()
    except WeightsNotFound as error:
        raise PublishError(str(error)) from None
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message='Weights, config and model card',
                          allow_patterns=['*.safetensors', 'config.py', 'README.md'],
                          delete_patterns=['*.safetensors'])
    except Exception as error:  # of the HTTP client, which differs by the hub's version
        raise PublishError(f'{hub.constants.ENDPOINT} does not take {repository} ({first_line(error)}): log in by '
                           '`hf auth login` with a token that may write') from None
    return f'hf-hub:{repository}'
