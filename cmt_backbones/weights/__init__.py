"""A checkpoint in any published layout -> a backbone with every weight filled, or a refusal.

mmengine loads checkpoints non-strictly and does not look under a key ``'model'``. An official file
then fills nothing, without an error, and training starts from noise. Here a file is recognised by
its names, converted to ours by a pure function of its layout, and loaded only if it fills the
backbone.
"""
from typing import Optional

from mmengine.logging import print_log
from torch import nn

from .downloads import WeightsNotFound
from .fitting import depths, fit, resize_table
from .layouts import LAYOUTS, Layout, StateDict, convert
from .reading import read_checkpoint, read_file, read_torch, tensors_of
from .sources import local_file

__all__ = ['LAYOUTS', 'Layout', 'StateDict', 'WeightsNotFound', 'convert', 'depths', 'fit', 'load_pretrained',
           'local_file', 'read_checkpoint', 'read_file', 'read_torch', 'resize_table', 'tensors_of']


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: Optional[str] = None) -> None:
    """Fills a backbone from a file or URL, wholly or not at all.

    Args:
        backbone (nn.Module): A :class:`~cmt_backbones.CMT` or :class:`~cmt_backbones.ConvNeXt`.
        checkpoint (str): A path, a URL, a name on a hub such as ``hf-hub:OWNER/NAME`` or ``timm:MODEL``, or
            another way of :func:`~cmt_backbones.weights.sources.local_file`; ``.safetensors`` or what
            ``torch.save`` writes.
        prefix (str, optional): Where the backbone's keys begin, such as ``'teacher.backbone.'``.
            Found by itself where the file holds one backbone.

    Raises:
        WeightsNotFound: If the file cannot be had; a ValueError and a FileNotFoundError.
        ValueError: If it cannot be read, is in no known layout, or does not fill the backbone. The backbone
            is as it was.
    """
    try:
        state, layout = convert(read_checkpoint(checkpoint), prefix)
        if layout.family != type(backbone).__name__:
            raise ValueError(f'it looks like {layout.name}, and the backbone is a '
                             f"{type(backbone).__name__}; use type='{layout.family}'")
        state, notes = fit(state, backbone.state_dict(), layout)
    except ValueError as error:
        kind = WeightsNotFound if isinstance(error, OSError) else ValueError
        raise kind(f'cannot load {checkpoint!r} into {type(backbone).__name__}: {error}') from error
    backbone.load_state_dict(state)
    print_log(f'{checkpoint}: {layout.name}, all {len(state)} weights of {type(backbone).__name__} '
              'filled' + ''.join(f'; {note}' for note in notes), logger='current')
