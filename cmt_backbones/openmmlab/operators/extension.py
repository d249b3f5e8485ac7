"""The module `mmcv._ext` of an mmcv that has none; see `provide`.

The signatures are those that mmcv/ops/*.py of mmcv 2.0 to 2.2 and of onedl-mmcv call: results are written
into tensors that are passed.
"""
from typing import Any, Callable

import torch
import torchvision

from cmt_backbones.openmmlab.operators.boxes import nms, nms_match, softnms
from cmt_backbones.openmmlab.operators.deformable import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from cmt_backbones.openmmlab.operators.focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from cmt_backbones.openmmlab.operators.masked_conv import masked_col2im_forward, masked_im2col_forward
from cmt_backbones.openmmlab.operators.psa_mask import psamask_backward, psamask_forward
from cmt_backbones.openmmlab.operators.regions import (
    roi_align_backward,
    roi_align_forward,
    roi_pool_backward,
    roi_pool_forward,
)

__all__ = [
    'deform_conv_backward_input', 'deform_conv_backward_parameters', 'deform_conv_forward',
    'get_compiler_version', 'get_compiling_cuda_version', 'masked_col2im_forward', 'masked_im2col_forward',
    'modulated_deform_conv_backward', 'modulated_deform_conv_forward', 'ms_deform_attn_backward',
    'ms_deform_attn_forward', 'nms', 'nms_match', 'psamask_backward', 'psamask_forward', 'roi_align_backward',
    'roi_align_forward', 'roi_pool_backward', 'roi_pool_forward', 'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward', 'softmax_focal_loss_backward', 'softmax_focal_loss_forward', 'softnms']


def get_compiler_version() -> str:
    return f'none, operators of torchvision {torchvision.__version__}'


def get_compiling_cuda_version() -> str:
    """The version of CUDA that torchvision's kernels were built with, as `13.0`, or `not available`."""
    version = torch.ops.torchvision._cuda_version()  # 13000, or -1
    return f'{version // 1000}.{version % 1000 // 10}' if version > 0 else 'not available'


def __getattr__(name: str) -> Callable:
    """An operator that is not here: mmcv asks for all names when it is imported, and calls few."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"mmcv's operator {name!r} is compiled code, which this mmcv lacks and torchvision does not have: "
            'build mmcv (`make setup OPERATORS=compiled`, or mmcv in place of mmcv-lite), or take a head '
            'that does without it')

    missing.__name__ = name
    return missing
