"""Operators that mmcv has for GPUs alone, on inputs drawn here, ordinary ones and degenerate ones.

    python tests/helpers/cuda_kernels.py

writes what mmcv's CUDA kernels answer into tests/golden/cuda_kernels.npz. It needs g++ and no GPU: a kernel that
shares no memory between threads is a C++ function, and one thread of it takes all elements one after the other.
"""
import ctypes
import subprocess
import tempfile
from pathlib import Path
from typing import Tuple

from cmt_backbones import openmmlab  # noqa: F401  without which an mmcv-lite has no mmcv.ops to import

# isort: split
import mmcv
import numpy as np
import torch
from mmcv import ops
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from torch import Tensor

import operator_cases

GOLDEN = operator_cases.GOLDEN.with_name('cuda_kernels.npz')
HEADER = """#pragma once
#include <algorithm>
#include <cfloat>
#include <cstdint>
#include <math.h>
using std::min, std::max;
#define __global__
#define __device__
#define __shared__
inline void __syncthreads() {}
template <typename T> void atomicAdd(T* sum, T addend) { *sum += addend; }
const struct { unsigned x, y; } blockIdx{0, 0}, threadIdx{0, 0}, blockDim{1, 1}, gridDim{1, 1};
#include "common_cuda_helper.hpp"
"""
KERNELS = {'sigmoid_focal_loss_cuda_kernel.cuh': ['sigmoid_focal_loss_forward_cuda_kernel',
                                                  'sigmoid_focal_loss_backward_cuda_kernel'],
           'softmax_focal_loss_cuda_kernel.cuh': ['softmax_focal_loss_forward_cuda_kernel',
                                                  'softmax_focal_loss_backward_cuda1_kernel',
                                                  'softmax_focal_loss_backward_cuda2_kernel'],
           'roi_pool_cuda_kernel.cuh': ['roi_pool_forward_cuda_kernel', 'roi_pool_backward_cuda_kernel'],
           'masked_conv2d_cuda_kernel.cuh': ['MaskedIm2colForward', 'MaskedCol2imForward'],
           # Of its backward kernels the one that shares no memory, which CUDA takes for more than 1024 channels.
           'ms_deform_attn_cuda_kernel.cuh': ['ms_deformable_im2col_gpu_kernel', 'ms_deformable_col2im_gpu_kernel_gm']}


class Kernels:
    """Stands for `mmcv._ext`; each operator calls its kernel as mmcv/ops/csrc/pytorch/cuda does."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / 'cuda.h').touch()
            (Path(folder) / 'pytorch_cuda_helper.hpp').write_text(HEADER)
            code = ''.join(f'#include "{file}"\n' for file in KERNELS) + 'extern "C" {\n' + ''.join(
                f'void* of_{name} = (void*)&{name}<float>;\n' for names in KERNELS.values() for name in names) + '}\n'
            csrc = Path(mmcv.__file__).parent / 'ops' / 'csrc' / 'common' / 'cuda'
            subprocess.run(['g++', '-std=c++17', '-O1', '-shared', '-fPIC', '-w', f'-I{folder}', f'-I{csrc}',
                            '-x', 'c++', '-', '-o', f'{folder}/kernels.so'], input=code, text=True, check=True)
            self.library = ctypes.CDLL(f'{folder}/kernels.so')

    def call(self, kernel: str, *args: object) -> None:
        function = ctypes.CFUNCTYPE(None)(ctypes.c_void_p.in_dll(self.library, f'of_{kernel}').value)
        function(*(_of_c(arg) for arg in args))

    def sigmoid_focal_loss_forward(self, input, target, weight, output, gamma, alpha):
        self.call('sigmoid_focal_loss_forward_cuda_kernel', output.numel(), input, target, weight, output, gamma, alpha,
                  input.shape[1])

    def sigmoid_focal_loss_backward(self, input, target, weight, grad_input, gamma, alpha):
        self.call('sigmoid_focal_loss_backward_cuda_kernel', grad_input.numel(), input, target, weight, grad_input,
                  gamma, alpha, input.shape[1])

    def softmax_focal_loss_forward(self, softmax, target, weight, output, gamma, alpha):
        self.call('softmax_focal_loss_forward_cuda_kernel', output.numel(), softmax, target, weight, output, gamma,
                  alpha, softmax.shape[1])

    def softmax_focal_loss_backward(self, softmax, target, weight, buff, grad_input, gamma, alpha):
        self.call('softmax_focal_loss_backward_cuda1_kernel', buff.numel(), softmax, target, weight, buff, gamma,
                  alpha, softmax.shape[1])
        self.call('softmax_focal_loss_backward_cuda2_kernel', grad_input.numel(), softmax, target, buff, grad_input,
                  softmax.shape[1])

    def roi_pool_forward(self, input, rois, output, argmax, pooled_height, pooled_width, spatial_scale):
        self.call('roi_pool_forward_cuda_kernel', output.numel(), input, rois, output, argmax, pooled_height,
                  pooled_width, spatial_scale, *input.shape[1:])

    def roi_pool_backward(self, grad_output, rois, argmax, grad_input, pooled_height, pooled_width, spatial_scale):
        self.call('roi_pool_backward_cuda_kernel', grad_output.numel(), grad_output, rois, argmax, grad_input,
                  pooled_height, pooled_width, *grad_input.shape[1:])

    def masked_im2col_forward(self, input, rows, columns, col, kernel_h, kernel_w, pad_h, pad_w):
        self.call('MaskedIm2colForward', len(rows) * input.shape[1], input, *input.shape[2:], kernel_h, kernel_w,
                  pad_h, pad_w, rows, columns, len(rows), col)

    def masked_col2im_forward(self, col, rows, columns, output, height, width, channels):
        self.call('MaskedCol2imForward', len(rows) * channels, col, height, width, channels, rows, columns, len(rows),
                  output)

    def ms_deform_attn_forward(self, value, shapes, starts, locations, weights, im2col_step):
        (batch, keys, heads, channels), (queries, levels, points) = value.shape, _of_attention(locations)
        output = value.new_zeros(batch, queries, heads * channels)
        self.call('ms_deformable_im2col_gpu_kernel', output.numel(), value, shapes, starts, locations, weights, batch,
                  keys, heads, channels, levels, queries, points, output)
        return output

    def ms_deform_attn_backward(self, value, shapes, starts, locations, weights, grad_output, grad_value,
                                grad_sampling_loc, grad_attn_weight, im2col_step):
        (batch, keys, heads, channels), (queries, levels, points) = value.shape, _of_attention(locations)
        self.call('ms_deformable_col2im_gpu_kernel_gm', grad_output.numel(), grad_output, value, shapes, starts,
                  locations, weights, batch, keys, heads, channels, levels, queries, points, grad_value,
                  grad_sampling_loc, grad_attn_weight)


def _of_attention(locations: Tensor) -> Tuple[int, int, int]:
    return locations.shape[1], locations.shape[3], locations.shape[4]


def _of_c(arg: object) -> object:
    if isinstance(arg, Tensor):
        assert arg.is_contiguous() and arg.dtype in (torch.float32, torch.int64, torch.int32)
        return ctypes.c_void_p(arg.data_ptr() if arg.numel() else None)
    return ctypes.c_float(arg) if isinstance(arg, float) else ctypes.c_int(arg)


def cases() -> operator_cases.Cases:
    draw = np.random.RandomState(4)

    def normal(*shape: int) -> Tensor:
        return torch.tensor(draw.normal(size=shape), dtype=torch.float32).requires_grad_()

    # Beyond these logits float32 probabilities, of which the kernels take logarithms, lose digits.
    logits = (2.5 * torch.tanh(normal(40, 7).detach())).requires_grad_()
    target = torch.arange(40) % 9 - 1  # -1 and 7 are background
    softmax_target = torch.where(target == 7, -1, target).roll(1)  # not -1 first: the kernel reads what lies before
    classes, weight = torch.arange(40) % 7, torch.tensor(draw.uniform(.5, 1.5, 7), dtype=torch.float32)
    for gamma, alpha in ((2., .25), (1.5, .9), (1., .5)):
        for of_classes, labels in ((None, target), (weight, classes)):  # weights of background lie outside of them
            yield f'sigmoid_focal_loss, {gamma}, weighted {of_classes is not None}', \
                lambda a=(labels, gamma, alpha, of_classes): ops.sigmoid_focal_loss(logits, *a, 'none'), [logits]
        for of_classes, labels in ((None, softmax_target), (weight, classes)):
            for reduction, inputs in (('none', []), ('sum', [logits])):  # of 'none' mmcv's has no backward
                yield f'softmax_focal_loss, {gamma}, weighted {of_classes is not None}, {reduction}', \
                    lambda a=(labels, gamma, alpha, of_classes, reduction): ops.softmax_focal_loss(logits, *a), inputs
    yield 'sigmoid_focal_loss, mean', lambda: ops.sigmoid_focal_loss(logits, target, 2., .25), [logits]
    yield 'softmax_focal_loss, mean', lambda: ops.softmax_focal_loss(logits, softmax_target, 2., .25), [logits]
    none = torch.zeros(0, 7, requires_grad=True)
    yield 'sigmoid_focal_loss, empty', \
        lambda: ops.sigmoid_focal_loss(none, target[:0], 2., .25, None, 'none'), [none]

    regions = torch.cat([operator_cases.boxes(draw, 20), operator_cases.boxes(draw, 10, grid=8.), torch.tensor([
        [10., 10, 10, 10], [0, 0, 100, 100], [-300, -300, -200, -200], [500, 500, 600, 600], [99, 99, 101, 101]])])
    rois = torch.cat([torch.arange(len(regions))[:, None] % 2, regions], dim=1)
    maps = normal(2, 3, 13, 11)
    level = (maps.detach() * 2).round().requires_grad_()  # where many are the largest, the first takes the gradient
    for size, scale in ((3, 1 / 8), ((4, 2), 1 / 8), (7, 1 / 16), (1, 1 / 7)):
        for kind, x in (('random', maps), ('equal', level)):
            yield f'roi_pool, {kind}, {size}, {scale:.3f}', \
                lambda x=x, a=(size, scale): ops.roi_pool(x, rois, *a), [x]
    yield 'roi_pool, one region', lambda: ops.roi_pool(maps, rois[:1], 2, 1 / 8), [maps]
    # Its gradient goes to the first pixel there, and nowhere here.
    behind = torch.tensor([[0., 40, 40, 20, 20]])
    yield 'roi_pool, x2 before x1', lambda: ops.roi_pool(maps, behind, 2, 1 / 8), []

    for kernel, padding in (((3, 3), (1, 1)), ((3, 1), (1, 0)), ((1, 1), (0, 0))):
        x, weight_, bias = normal(1, 3, 9, 8), normal(5, 3, *kernel), normal(5)
        for share in (.4, 1., 0.):
            mask = torch.tensor(draw.uniform(size=(1, 9, 8)) < share)
            yield f'masked_conv2d, {kernel}, {share}', lambda a=(x, mask, weight_, bias, padding): \
                ops.masked_conv2d(*a), []

    for name, shapes, heads, channels, queries, points in (
            ('DINO', [[6, 4], [3, 2], [2, 1], [1, 1]], 4, 8, 5, 4), ('one level', [[7, 5]], 1, 3, 4, 1),
            ('no queries', [[6, 4]], 2, 4, 0, 2)):
        sizes = torch.tensor(shapes)
        starts = torch.cat([torch.zeros(1, dtype=torch.long), sizes.prod(1).cumsum(0)[:-1]])
        value = normal(2, int(sizes.prod(1).sum()), heads, channels)
        inside = torch.tensor(draw.uniform(-.3, 1.3, (2, queries, heads, len(shapes), points, 2)), dtype=torch.float32)
        weights = normal(2, queries, heads, len(shapes), points)
        # Between pixels and outside of the image; and in steps of quarters, many on a pixel or on the edge. None is
        # one pixel outside to the last bit: the derivative is that of the outer side there, of the inner one here.
        for kind, locations in (('random', inside), ('on pixels', (inside * 4).round().clamp(0, 4) / 4)):
            locations.requires_grad_()
            yield f'deformable attention, {name}, {kind}', lambda a=(value, sizes, starts, locations, weights): \
                MultiScaleDeformableAttnFunction.apply(*a, 64), [value, locations, weights]


if __name__ == '__main__':
    kernels = Kernels()
    for module in operator_cases.MODULES:
        module.ext_module = kernels
    operator_cases.save(GOLDEN, operator_cases.answers_with_gradients(cases()))
