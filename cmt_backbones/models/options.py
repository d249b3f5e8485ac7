"""What a config may say, checked, each fault with one clear error; and images, likewise."""
from numbers import Integral, Real
from typing import Mapping, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tracing import is_transformed

NUM_STAGES = 4


def choose_arch(arch: Union[str, Mapping], known: Mapping[str, dict]) -> dict:
    """The settings of a named arch, or a dict of settings after a check of its keys."""
    keys = set(next(iter(known.values())))
    if isinstance(arch, str) and arch in known:
        return dict(known[arch])
    if isinstance(arch, Mapping) and set(arch) == keys:
        return dict(arch)
    what = repr(arch) if isinstance(arch, str) else f'a {type(arch).__name__}'
    if isinstance(arch, Mapping):
        unknown = sorted(set(arch) - keys, key=str)
        what = f'a dict without {sorted(keys - set(arch))} and with unknown {unknown}'
    raise ValueError(f'arch must be one of {sorted(known)}, or a dict with the keys {sorted(keys)}; '
                     f'it is {what}')


def check_out_indices(out_indices: Sequence[int]) -> Tuple[int, ...]:
    valid = (isinstance(out_indices, Sequence) and len(out_indices) > 0
             and all(is_whole(i, 0) and i < NUM_STAGES for i in out_indices)
             and list(out_indices) == sorted(set(out_indices)))
    if not valid:
        raise ValueError('out_indices must be ascending stage numbers from 0 to '
                         f'{NUM_STAGES - 1}, such as (1, 2, 3), not {out_indices!r}')
    return tuple(out_indices)


def check(name: str, value: object, valid: bool, expected: str) -> None:
    """Raises ValueError, unless `valid`, for an option that is not what was expected."""
    if not valid:
        raise ValueError(f'{name} must be {expected}, not {value!r}')


def is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def are_whole(values: object, least: int) -> bool:
    """Whether there is one such number for each stage."""
    return (isinstance(values, Sequence) and len(values) == NUM_STAGES
            and all(is_whole(value, least) for value in values))


def check_norm_cfg(norm_cfg: Mapping) -> None:
    """Raises ValueError for what is no BatchNorm."""
    check('norm_cfg', norm_cfg, isinstance(norm_cfg, Mapping), "a dict such as dict(type='BN')")
    if norm_cfg.get('type') not in ('BN', 'SyncBN'):
        raise ValueError(f"norm_cfg['type'] must be 'BN' or 'SyncBN', not {norm_cfg.get('type')!r}: the "
                         'weights of CMT belong to BatchNorm, and without it CMT does not converge (Table 5)')
    valid = dict(type=lambda value: True,
                 requires_grad=lambda value: isinstance(value, bool),
                 eps=lambda value: is_number(value) and 0 < value < 1,
                 momentum=lambda value: value is None or is_number(value) and 0 <= value <= 1)
    for key, value in norm_cfg.items():
        check('norm_cfg', norm_cfg, key in valid and valid[key](value), "a dict of 'type' and, where wanted, "
              "'requires_grad' (True or False), 'eps' (in (0, 1)) and 'momentum' (in [0, 1])")


def batch_norm(channels: int, norm_cfg: Mapping) -> nn.Module:
    """The BatchNorm that an OpenMMLab ``norm_cfg`` describes."""
    settings = dict(norm_cfg)
    kind = dict(BN=nn.BatchNorm2d, SyncBN=nn.SyncBatchNorm)[settings.pop('type')]
    trained = settings.pop('requires_grad', True)
    return kind(channels, **settings).requires_grad_(trained)


def prepare(x: Tensor, in_channels: int = 3, stride: int = 32) -> Tensor:
    """Checks images, pads them with zeros to sides that divide by the stride, makes them channels-last.

    Every grid then divides by the next one. Detectors and segmentors mostly pad so anyway.
    """
    check_image(x, in_channels)
    # In this form rather than with -width % stride, which torch.compile cannot take for dynamic sizes.
    height, width = ((side + stride - 1) // stride * stride for side in x.shape[2:])
    x = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))
    if is_transformed():  # which take no memory format
        return x
    return x.contiguous(memory_format=torch.channels_last)


def check_image(x: Tensor, in_channels: int = 3) -> None:
    """Raises unless x is (N, 3, H, W), of floating point, with N of at least 1, H and W of 32."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f'expected images as a tensor of floating point, got {what}: normalise them first')
    if x.dim() != 4 or x.shape[0] == 0 or x.shape[1] != in_channels:
        raise ValueError(f'expected images of shape (N, {in_channels}, H, W), got {tuple(x.shape)}')
    if x.shape[2] < 32 or x.shape[3] < 32:
        raise ValueError('images must be at least 32 pixels high and wide, since the last stage has '
                         f'stride 32; got {x.shape[2]}x{x.shape[3]} (HxW): pad or enlarge them')


def check_cmt_arch(arch: dict, num_heads: Sequence[int]) -> dict:
    """Raises ValueError for settings of a CMT that cannot be built."""
    dims = arch['embed_dims']
    check("arch['embed_dims']", dims, are_whole(dims, 1) and not any(d % h for d, h in zip(dims, num_heads)),
          f'4 widths that divide by their heads {num_heads}')
    check("arch['depths']", arch['depths'], are_whole(arch['depths'], 1), '4 numbers of blocks')
    check("arch['stem_channels']", arch['stem_channels'], is_whole(arch['stem_channels'], 1),
          'a positive number')
    check("arch['mlp_ratio']", arch['mlp_ratio'],
          is_number(arch['mlp_ratio']) and 1 <= arch['mlp_ratio'] * min(dims) < float('inf'),
          'a number that leaves the MLPs a channel')
    size = arch['pretrain_img_size']
    check("arch['pretrain_img_size']", size, is_whole(size, 32) and size % 32 == 0, 'a multiple of 32')
    return arch


def check_convnext_arch(arch: dict) -> dict:
    """Raises ValueError for settings of a ConvNeXt that cannot be built."""
    for key in ('embed_dims', 'depths'):
        check(f'arch[{key!r}]', arch[key], are_whole(arch[key], 1), '4 positive numbers')
    check("arch['use_grn']", arch['use_grn'], isinstance(arch['use_grn'], bool), 'True or False')
    return arch
