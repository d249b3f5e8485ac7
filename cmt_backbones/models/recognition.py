"""What a file of weights is: whose, of which network, and what it fits; told without building or loading a model."""
import re
from pathlib import Path
from typing import List, Mapping, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ..weights import Layout, StateDict, convert, depths, fit, local_file, read_file, tensors_of
from ..weights.published import read_header
from .cmt import ARCHS as CMT_ARCHS, CMT
from .convnext import ARCHS as CONVNEXT_ARCHS, ConvNeXt

FAMILIES = dict(CMT=(CMT, CMT_ARCHS), ConvNeXt=(ConvNeXt, CONVNEXT_ARCHS))
# Keys that only weights of this kind have; the first that fits.
HEADS = (('a Cascade Mask R-CNN', r'roi_head\.bbox_head\.0\.', 'cascade_mask_rcnn'),
         ('a Mask R-CNN', r'roi_head\.mask_head\.', 'mask_rcnn'), ('a Faster R-CNN', r'roi_head\.bbox_head\.', None),
         ('a RetinaNet', r'bbox_head\.retina_cls\.', 'retinanet'),
         ('a UperNet', r'decode_head\.psp_modules\.', 'upernet'),
         ('a segmentor', r'decode_head\.', None), ('a detector', r'(bbox|rpn)_head\.', None),
         ('a classifier', r'(head\.fc|head|_fc)\.(weight|bias)$', None))
SHORT = dict(tiny='t', small='s', base='b', large='l', xlarge='xl')
FLOAT = {'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16}


class Recognised(NamedTuple):
    layout: Layout
    arch: Optional[str]  # None for one that has no name, or whose weights are not whole
    why_not: str  # then what keeps it from the nearest of its family
    head: Optional[Tuple[str, Optional[str]]]  # around the backbone: in words, and in the names of our configs
    state: StateDict  # on the meta device, under the file's names


def recognise(path: Path, prefix: Optional[str] = None) -> Recognised:
    """What a file is, from the names and shapes in it.

    Raises:
        ValueError: It cannot be read, or is in no known layout.
    """
    state = shapes_of(path)
    backbone, layout = convert(state, prefix)
    try:
        arch, why_not = arch_that_fits(backbone, layout), ''
    except ValueError as error:
        arch, why_not = None, str(error)
    head = next(((words, name) for words, pattern, name in HEADS if any(re.match(pattern, key) for key in state)), None)
    return Recognised(layout, arch, why_not, head, state)


def shapes_of(path: Path) -> StateDict:
    """The tensors of a file as shapes and dtypes, on the meta device."""
    with path.open('rb') as file:
        is_safetensors = file.read(10)[8:] == b'{"'
    if is_safetensors:
        header = read_header(path)
        return {name: torch.empty(shape, dtype=FLOAT.get(header.dtypes[name], torch.long), device='meta')
                for name, shape in header.shapes.items()}
    return tensors_of(read_file(path, map_location='meta'))


def arch_that_fits(state: Mapping[str, Tensor], layout: Layout) -> str:
    """The named arch that weights under our names fill; of those that fill none, the error is the nearest's."""
    family, archs = FAMILIES[layout.family]
    widths = tuple(len(state.get(key, ())) for key in (
        f'stages.{i}.{"0.norm" if family is ConvNeXt else "norm"}.weight' for i in range(4)))
    grn = any('.grn.' in key for key in state)

    def likeness(arch: dict) -> Tuple[int, ...]:
        return (arch.get('use_grn', False) == grn, sum(a == b for a, b in zip(arch['embed_dims'], widths)),
                sum(a == b for a, b in zip(arch['depths'], depths(state))))

    nearest = max(archs, key=lambda name: likeness(archs[name]))
    with torch.device('meta'):
        wanted = family(archs[nearest]).state_dict()
    fit(dict(state), wanted, layout)
    return nearest


def licence_of(found: Recognised, published: Mapping) -> str:
    """Under which licence a file is, as far as its form tells."""
    if published:
        return f'{published["licence"]}, as its publisher says'
    names, layout = found.state, found.layout
    if any(re.match(r'(projectors|norms\.[0-2])\.', name) for name in names):
        return "by its form EUPE's: FAIR Noncommercial Research License"
    if 'norms.3.weight' in names:
        return "by its form DINOv3's: DINOv3 License, which goes on to hold for what is trained from it"
    if layout.name == 'an official CMT classifier':
        return 'not certain: its authors name MIT in their README, and CC-BY-NC in the header of a file'
    if found.arch and found.arch.startswith('v2_') and not found.head or 'V2' in layout.name:
        return "not in the file; Facebook's ConvNeXt V2 weights are CC-BY-NC 4.0"
    if layout.family == 'ConvNeXt' and found.head is None:
        return ("not in the file; without a classifier's last layer it may be DINOv3's (DINOv3 License), with it "
                "Facebook's are MIT")
    if layout.family == 'ConvNeXt' and found.head[1] is None and 'classifier' in found.head[0]:
        return "not in the file; Facebook's ConvNeXt classifiers are MIT"
    return 'not in the file: ask who gave it to you, and where it started from'


def configs_that_fit(found: Recognised, folder: Optional[Path]) -> List[str]:
    """Names of our configs whose backbone, and detector where there is one, the weights are for."""
    if folder is None or found.arch is None:
        return []
    names = []
    for path in sorted(folder.glob('mm*/*.py')):
        size = dict(CMT=dict(tiny='ti', xsmall='xs'), ConvNeXt={})[found.layout.family]
        short = {**SHORT, **size}.get(found.arch, found.arch)
        detector = found.head[1] if found.head else None
        if re.search(rf'{found.layout.family.lower()}_{short}_', path.stem) and (
                detector is None or path.stem.startswith(f'{detector}_')) and not path.stem.endswith('_shapes'):
            names.append(f'configs/{path.parent.name}/{path.name}')
    return names


def config_folder() -> Optional[Path]:
    """Where this package's configs lie: in its wheel, or beside it."""
    package = Path(__file__).parents[1]
    return next((path for path in (package / '.mim/configs', package.parent / 'configs') if path.is_dir()), None)


def describe(checkpoint: str, prefix: Optional[str] = None) -> str:
    """Some lines about a file, by any name that ``init_cfg`` takes.

    Raises:
        ValueError: It cannot be had or read, or is in no known layout.
    """
    with local_file(checkpoint) as path:
        found = recognise(path, prefix)
        published = read_header(path).published if path.suffix == '.safetensors' else {}
        size = path.stat().st_size
    around = f', within {found.head[0]}' if found.head else ', the backbone alone'
    kinds = sorted({str(value.dtype).replace('torch.', '') for value in found.state.values()
                    if value.is_floating_point()})
    lines = {'file': str(checkpoint), 'layout': found.layout.name + around,
             'fits': f"type='{found.layout.family}', arch={found.arch!r}" if found.arch else
             f'no named arch of {found.layout.family}: {found.why_not}',
             'size': f'{len(found.state)} tensors, {sum(v.numel() for v in found.state.values()) / 1e6:.2f}M numbers, '
             f'{", ".join(kinds)}, {size / 1e6:.1f} MB',
             'licence': licence_of(found, published)}
    for key in ('name', 'epoch', 'metrics'):
        if published.get(key) is not None:
            lines[key] = str(published[key])
    configs = configs_that_fit(found, config_folder())
    if configs:
        lines['configs'] = ('\n' + ' ' * 9).join(configs)
    return '\n'.join(f'{name:8} {told}' for name, told in lines.items())
