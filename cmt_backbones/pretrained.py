"""A checkpoint in any published layout -> a backbone with every weight filled, or a refusal.

mmengine loads checkpoints non-strictly and does not look under a key ``'model'``. An official file
then fills nothing, without an error, and training starts from noise. Here a file is recognised by
its names, converted to ours by a pure function of its layout, and loaded only if it fills the
backbone.
"""
import fcntl
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import urlparse

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .relative_bias import geometric_factors

StateDict = Dict[str, Tensor]


class Layout(NamedTuple):
    """How somebody names the weights of a backbone."""
    name: str
    family: str  # the class of ours that it fits
    marker: str  # a key that this layout has and no other
    convert: Callable[[StateDict], StateDict]  # to our names, without the file's prefix


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: Optional[str] = None) -> None:
    """Fills a backbone from a file or URL, wholly or not at all.

    Args:
        backbone (nn.Module): A :class:`~cmt_backbones.CMT` or :class:`~cmt_backbones.ConvNeXt`.
        checkpoint (str): A path or an http(s) URL; ``.safetensors`` or what ``torch.save`` writes.
        prefix (str, optional): Where the backbone's keys begin, such as ``'teacher.backbone.'``.
            Found by itself where the file holds one backbone.

    Raises:
        ValueError: If the file cannot be had or read, is in no known layout, or does not fill the
            backbone. The backbone is as it was.
    """
    try:
        state, layout = convert(read_checkpoint(checkpoint), prefix)
        if layout.family != type(backbone).__name__:
            raise ValueError(f'it looks like {layout.name}, and the backbone is a '
                             f"{type(backbone).__name__}; use type='{layout.family}'")
        state, notes = fit(state, backbone.state_dict(), layout)
    except ValueError as error:
        raise ValueError(f'cannot load {checkpoint!r} into {type(backbone).__name__}: {error}') from error
    backbone.load_state_dict(state)
    print_log(f'{checkpoint}: {layout.name}, all {len(state)} weights of {type(backbone).__name__} '
              'filled' + ''.join(f'; {note}' for note in notes), logger='current')


# ---------------------------------------------------------------------------- layouts


def convert(state: StateDict, prefix: Optional[str] = None) -> Tuple[StateDict, Layout]:
    """Weights under our names, and the layout that they were in.

    Raises:
        ValueError: If no layout, or more than one backbone, is recognised.
    """
    found = [(layout, key[:-len(layout.marker)]) for layout in LAYOUTS for key in state
             if key.endswith(layout.marker) and prefix in (None, key[:-len(layout.marker)])]
    # 'stem.0.weight' also ends 'my_stem.0.weight': a prefix is empty or ends with a dot.
    found = [(layout, before) for layout, before in found if before == '' or before.endswith('.')]
    if not found:
        some = ', '.join(list(state)[:3])
        raise ValueError(
            f'no known layout{f" under the prefix {prefix!r}" if prefix else ""} among its '
            f'{len(state)} tensors ({some}, ...); known: {"; ".join(x.name for x in LAYOUTS)}')
    if len(found) > 1:
        raise ValueError('it holds more than one backbone; choose one by prefix= in init_cfg, of '
                         f'{sorted(before for _, before in found)}')
    (layout, before), = found
    return layout.convert({k[len(before):]: v for k, v in state.items() if k.startswith(before)}), layout


def renamed(state: StateDict, rules: List[Tuple[str, str]]) -> StateDict:
    """Keys after each of the (pattern, replacement) rules in turn."""
    out = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        out[key] = value
    return out


def from_official_cmt(state: StateDict) -> StateDict:
    """github.com/ggjy/CMT.pytorch: stages a to d, and separate products for keys and values."""
    state = renamed(state, [
        (r'^stem_(conv|norm)(\d)', lambda m: f'stem.layers.{3 * int(m[2]) - 3 + 2 * (m[1] == "norm")}'),
        (r'^(patch_embed|relative_pos|blocks)_([abcd])',
         lambda m: f'stages.{"abcd".index(m[2])}.{m[1]}'),
        (r'\.patch_embed\.proj', '.patch_aggregation'),
        (r'\.patch_embed\.norm', '.norm'),
        (r'\.relative_pos$', '.relative_bias.table'),
        (r'\.(\d+)\.proj\.', r'.\1.lpu.'),
        (r'\.attn\.sr\.', '.attn.reduce.'),
        (r'\.mlp\.conv1\.0', '.ffn.expand'),
        (r'\.mlp\.conv1\.2', '.ffn.norm1'),
        (r'\.mlp\.proj\.', '.ffn.dwconv.'),
        (r'\.mlp\.proj_bn', '.ffn.norm2'),
        (r'\.mlp\.conv2\.0', '.ffn.project'),
        (r'\.mlp\.conv2\.1', '.ffn.norm3'),
        (r'^head\.', 'head.fc.'),  # the rest is the classifier's
        (r'^_fc\.', 'head.conv.'),
        (r'^_bn\.', 'head.norm.'),
    ])
    for key in [k for k in state if '.attn.k.' in k]:
        value_key = key.replace('.attn.k.', '.attn.v.')
        if value_key in state:
            state[key.replace('.attn.k.', '.attn.kv.')] = torch.cat([state.pop(key), state.pop(value_key)])
    return state


def from_timm_convnext(state: StateDict) -> StateDict:
    """timm's ConvNeXt, with its features_only form (``stem_0``, ``stages_0``)."""
    state = renamed(state, [
        (r'^(stem|stages)_(\d)', r'\1.\2'),
        (r'^stem\.', 'downsample_layers.0.'),
        (r'^stages\.(\d)\.downsample\.', r'downsample_layers.\1.'),
        (r'^stages\.(\d)\.blocks\.', r'stages.\1.'),
        (r'\.conv_dw\.', '.dwconv.'),
        (r'\.mlp\.fc(\d)\.', r'.pwconv\1.'),
        (r'\.mlp\.grn\.weight', '.grn.gamma'),
        (r'\.mlp\.grn\.bias', '.grn.beta'),
    ])
    return as_linear(state)


def from_mmpretrain_convnext(state: StateDict) -> StateDict:
    return as_linear(renamed(state, [(r'\.depthwise_conv\.', '.dwconv.'),
                                     (r'\.pointwise_conv(\d)\.', r'.pwconv\1.')]))


def as_linear(state: StateDict) -> StateDict:
    """1x1 convolutions and (1, 1, 1, C) response normalisations as the matrices and vectors of ours."""
    out = {}
    for key, value in state.items():
        if '.pwconv' in key and value.dim() == 4:
            value = value.flatten(1)
        elif '.grn.' in key:
            value = value.flatten()
        out[key] = value
    return out


LAYOUTS = [
    Layout('a checkpoint of our CMT', 'CMT', 'stages.0.patch_aggregation.weight', dict),
    Layout('an official CMT classifier', 'CMT', 'patch_embed_a.proj.weight', from_official_cmt),
    Layout("a ConvNeXt under Facebook's names, which are ours", 'ConvNeXt',
           'stages.0.0.dwconv.weight', as_linear),
    Layout('a ConvNeXt of mmpretrain', 'ConvNeXt', 'stages.0.0.depthwise_conv.weight',
           from_mmpretrain_convnext),
    Layout('a ConvNeXt of timm', 'ConvNeXt', 'stages.0.blocks.0.conv_dw.weight', from_timm_convnext),
    Layout('the features of a ConvNeXt of timm', 'ConvNeXt', 'stages_0.blocks.0.conv_dw.weight',
           from_timm_convnext),
]

# ---------------------------------------------------------------------------- fitting


def fit(state: StateDict, wanted: Mapping[str, Tensor], layout: Layout) -> Tuple[StateDict, List[str]]:
    """What to load for every key of `wanted`, and notes for the log.

    Raises:
        ValueError: If a weight is missing or of another shape, or if the file is of a deeper
            backbone, of which only a part would be used.
    """
    state, notes = dict(state), []
    norms = {k for k in wanted if OUTPUT_NORM.match(k)}
    if norms - set(state):
        # A classifier has none, or the one of its head, which is none of a detector's.
        state.update({k: wanted[k] for k in norms})
        notes.append('the output norms start anew, as in the official detectors')
    for key in wanted:
        if key.endswith('num_batches_tracked'):  # files from before PyTorch 0.4.1 have none
            state.setdefault(key, wanted[key])
        elif key.endswith('relative_bias.table') and key in state:
            resized = resize_table(state[key], wanted[key].shape)
            if resized is not state[key]:
                notes.append(f'{key} resized from {tuple(state[key].shape)} to {tuple(resized.shape)}')
                state[key] = resized

    missing = [k for k in wanted if k not in state]
    misfits = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    stages = {k.split('.')[1] for k in wanted if k.startswith('stages.')}
    surplus = [k for k in state if k not in wanted and k.startswith('stages.')
               and k.split('.')[1] in stages]
    if missing or misfits or surplus:
        told = [f'it looks like {layout.name}; {len(wanted) - len(missing) - len(misfits)} of '
                f'{len(wanted)} weights fit']
        if missing:
            told.append(f'missing: {missing[0]}' + more(missing))
        if misfits:
            key = misfits[0]
            told.append(f'wrong shape: {key} is {tuple(state[key].shape)} there and '
                        f'{tuple(wanted[key].shape)} here' + more(misfits))
        if surplus:
            told.append(f'no place here for: {surplus[0]}' + more(surplus))
        told.append('try another arch (depths there: '
                    f'{depths(state)}, here: {depths(wanted)}) or another file')
        raise ValueError('; '.join(told))
    return {k: state[k] for k in wanted}, notes


OUTPUT_NORM = re.compile(r'norm[0-3]\.')


def more(keys: List[str]) -> str:
    return f' and {len(keys) - 1} more' if len(keys) > 1 else ''


def depths(state: Mapping[str, Tensor]) -> Tuple[int, ...]:
    """Blocks in each stage, read off the keys."""
    numbers = {m.groups() for m in (re.match(r'stages\.(\d)\.(?:blocks\.)?(\d+)\.', k) for k in state) if m}
    return tuple(sum(stage == str(i) for stage, _ in numbers) for i in range(4))


def resize_table(table: Tensor, shape: Tuple[int, ...]) -> Tensor:
    """A CMT bias table at another native size; as it is where shapes agree or cannot be made to."""
    sides = [round(n**.5) for n in (*table.shape[1:], *shape[1:])]
    square = [s * s for s in sides] == [*table.shape[1:], *shape[1:]]
    if table.shape == shape or table.dim() != 3 or table.shape[0] != shape[0] or not square:
        return table
    grids = [(s, s) for s in sides]
    factors = geometric_factors(table.float(), (grids[0], grids[1]), (grids[2], grids[3]))
    return factors.query @ factors.key.T


# ---------------------------------------------------------------------------- reading


def read_checkpoint(checkpoint: str) -> StateDict:
    """The named tensors of a file or URL, and nothing else of it.

    Raises:
        ValueError: If the file is missing, damaged, not a checkpoint, or holds no tensors.
    """
    if urlparse(checkpoint).scheme in ('http', 'https'):
        path = download(checkpoint)
        try:
            return read_checkpoint(str(path))
        except ValueError as error:
            raise ValueError(f'{error} (its copy is {path}; remove that to fetch it again)') from None
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise ValueError('there is no such file' + (', it is a folder' if path.is_dir() else ''))
    with path.open('rb') as file:
        head = file.read(512).lstrip().lower()
    if not head:
        raise ValueError('the file is empty; fetch it again')
    if head.startswith((b'<!doctype', b'<html', b'<?xml')):
        raise ValueError('the file is a web page, not a checkpoint; fetch it from the link to the '
                         'raw file')
    if head.startswith(b'version https://git-lfs'):
        raise ValueError('the file is a Git LFS pointer, not a checkpoint; run `git lfs pull`')
    content = read_safetensors(path) if path.suffix == '.safetensors' else read_torch(path)
    for key in ('state_dict', 'model'):  # of mmengine, and of the official training scripts
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(f'the file holds a {type(content).__name__}, not a dict of tensors')
    state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        raise ValueError(f'the file holds no tensors; its keys are {list(content)[:5]}')
    return state


def read_safetensors(path: Path) -> Dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError('reading .safetensors needs `pip install safetensors`') from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f'the file is damaged or no safetensors file ({error})') from None


def read_torch(path: Path, restored: Mapping[str, object] = {}, map_location: object = 'cpu',
               **options: Any) -> Any:
    """What ``torch.save`` wrote, with an :class:`Inert` in the place of all that is no weight.

    Training checkpoints hold more than tensors (an argparse Namespace, mmengine's HistoryBuffers),
    which ``weights_only=True`` refuses. Their classes are neither imported nor called here, but for
    those in `restored`, by the name that the file has for them.
    """
    try:
        beside = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not the zip format; plain weights_only says whether it is the older one
        beside = []
    allowed = [(value, name) for name, value in restored.items()]
    allowed += [(type('Inert', (Inert, ), {}), name) for name in beside if name not in restored]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location=map_location, weights_only=True, **options)
    except Exception as error:
        # Of PyTorch's several lines, the one that is about this file.
        reason = str(error).split('WeightsUnpickler error:')[-1].strip().split('\n')[0][:200]
        raise ValueError('the file is damaged, no checkpoint of PyTorch, or holds code '
                         f'({reason or type(error).__name__})') from None


class Inert:
    """Stands for an object of a checkpoint that is not a weight; does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


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
