"""Any published checkpoint in, the weights of one of our backbones under its names out."""
from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch

from ..weights import Layout, StateDict, convert, fit, read_checkpoint
from . import cmt, convnext

FAMILIES = dict(CMT=cmt.CMT, ConvNeXt=convnext.ConvNeXt)
ARCHS = dict(CMT=cmt.ARCHS, ConvNeXt=convnext.ARCHS)


class Converted(NamedTuple):
    """A backbone's weights, and how they were found.

    Attributes:
        weights: Under our names.
        layout: Of the file.
        arch: What they fill.
        notes: What was changed in them.
        in_file: The number of tensors in the file.
        left_out: The number of those that no backbone holds (heads, necks).
    """
    weights: StateDict
    layout: Layout
    arch: str
    notes: List[str]
    in_file: int
    left_out: int


def convert_file(source: str, arch: Optional[str] = None, prefix: Optional[str] = None) -> Converted:
    """The weights of a file or URL in any layout of :mod:`cmt_backbones.weights`.

    Args:
        source: The file or URL.
        arch: What they must fill, such as ``'small'``; found by itself if left out.
        prefix: Where the backbone's names begin, if the file holds several.

    Raises:
        ValueError: If the file cannot be read, is in no known layout, or fills no such backbone.
    """
    content = read_checkpoint(source)
    state, layout = convert(content, prefix)
    known = ARCHS[layout.family]
    if arch is not None and arch not in known:
        raise ValueError(f'--arch must be one of {sorted(known)}, not {arch!r}')
    arch, weights, notes = fitted(state, layout, [*known] if arch is None else [arch])
    return Converted(weights, layout, arch, notes, len(content), len(content) - sum(k in weights for k in state))


def fitted(state: StateDict, layout: Layout, archs: Sequence[str]) -> Tuple[str, StateDict, List[str]]:
    """The first arch, of some, that weights fill, with what fills it and notes.

    Raises:
        ValueError: There is none.
    """
    for arch in archs:
        with torch.device('meta'):
            wanted = FAMILIES[layout.family](arch).state_dict()
        # Output norms that the file lacks would come from here, where there are none.
        wanted = {k: v for k, v in wanted.items() if k in state or not k.startswith('norm')}
        try:
            weights, notes = fit(state, wanted, layout)
            return arch, weights, notes
        except ValueError:
            if len(archs) == 1:
                raise
    raise ValueError(f'it looks like {layout.name}, and fills none of {sorted(archs)}; --arch tells what '
                     'differs from one of them')
