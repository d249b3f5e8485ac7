"""Deformable convolution (Dai et al. 2017, Zhu et al. 2019) by torchvision's kernels, and multi-scale
deformable attention (Zhu et al. 2021) by mmcv's own PyTorch form.

Convolutions of 16-bit numbers are computed in float32: torchvision has no bfloat16 kernels, and its float16 ones sum
in float16. Attention is computed in the type of its inputs.
"""
from typing import Tuple

import torch
from torch import Tensor

from cmt_backbones.openmmlab.operators.casting import at_least_float32


def deform_conv_forward(input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor,
                        ones: Tensor, kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int,
                        dilationH: int, group: int, deformable_group: int, im2col_step: int) -> None:
    """Writes the convolution of `input` (N, C, H, W) into `output`; `offset` is (N, 2 * groups * kH * kW, H', W')."""
    mask, bias = _neither(input, weight)
    output.copy_(_forward(input, weight, offset, mask, bias, (dH, dW, padH, padW, dilationH, dilationW, group,
                                                              deformable_group, False)))


def deform_conv_backward_input(input: Tensor, offset: Tensor, grad_output: Tensor, grad_input: Tensor,
                               grad_offset: Tensor, weight: Tensor, columns: Tensor, kW: int, kH: int, dW: int,
                               dH: int, padW: int, padH: int, dilationW: int, dilationH: int, group: int,
                               deformable_group: int, im2col_step: int) -> None:
    """Writes the gradients of input and offset; `columns`, which mmcv hands to both halves of the backward pass,
    takes the weight's along, because torchvision computes them together."""
    mask, bias = _neither(input, weight)
    grads = _backward(grad_output, input, weight, offset, mask, bias,
                      (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group, False))
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])
    columns.resize_(weight.shape).copy_(grads[1])


def deform_conv_backward_parameters(input: Tensor, offset: Tensor, grad_output: Tensor, grad_weight: Tensor,
                                    columns: Tensor, ones: Tensor, kW: int, kH: int, dW: int, dH: int, padW: int,
                                    padH: int, dilationW: int, dilationH: int, group: int, deformable_group: int,
                                    scale: float, im2col_step: int) -> None:
    """Writes the gradient of the weight."""
    if columns.shape == grad_weight.shape:
        grad_weight.copy_(columns).mul_(scale)
        columns.resize_(0)
        return
    weight = torch.zeros_like(grad_weight)  # which only the other gradients depend on
    mask, bias = _neither(input, weight)
    grads = _backward(grad_output, input, weight, offset, mask, bias,
                      (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group, False))
    grad_weight.copy_(grads[1]).mul_(scale)


def modulated_deform_conv_forward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor,
                                  mask: Tensor, output: Tensor, columns: Tensor, kernel_h: int, kernel_w: int,
                                  stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
                                  dilation_w: int, group: int, deformable_group: int, with_bias: bool) -> None:
    """As `deform_conv_forward`, each sample times its `mask` (N, groups * kH * kW, H', W'); no bias is empty."""
    bias = bias if with_bias else input.new_zeros(len(weight))
    output.copy_(_forward(input, weight, offset, mask, bias, (stride_h, stride_w, pad_h, pad_w, dilation_h,
                                                              dilation_w, group, deformable_group, True)))


def modulated_deform_conv_backward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor,
                                   mask: Tensor, columns: Tensor, grad_input: Tensor, grad_weight: Tensor,
                                   grad_bias: Tensor, grad_offset: Tensor, grad_mask: Tensor, grad_output: Tensor,
                                   kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int,
                                   pad_w: int, dilation_h: int, dilation_w: int, group: int,
                                   deformable_group: int, with_bias: bool) -> None:
    grads = _backward(grad_output, input, weight, offset, mask, bias if with_bias else input.new_zeros(len(weight)),
                      (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group, True))
    for written, grad in zip((grad_input, grad_weight, grad_offset, grad_mask), grads):
        written.copy_(grad)
    if with_bias:
        grad_bias.copy_(grads[4])


def _neither(input: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
    """No mask and a bias of 0, as torchvision takes them."""
    return input.new_zeros(len(input), 0, 0, 0), input.new_zeros(len(weight))


def _forward(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, options: Tuple) -> Tensor:
    tensors = map(at_least_float32, (input, weight, offset, mask, bias))
    return torch.ops.torchvision.deform_conv2d(*tensors, *options)


def _backward(grad_output: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor,
              options: Tuple) -> Tuple[Tensor, ...]:
    """Gradients of input, weight, offset, mask and bias."""
    tensors = map(at_least_float32, (grad_output, input, weight, offset, mask, bias))
    return torch.ops.torchvision._deform_conv2d_backward(*tensors, *options)


def ms_deform_attn_forward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                           sampling_locations: Tensor, attention_weights: Tensor, im2col_step: int) -> Tensor:
    """(N, queries, heads * d) of values (N, keys, heads, d). mmcv calls this on GPUs alone."""
    return _attention(value, value_spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                            sampling_locations: Tensor, attention_weights: Tensor, grad_output: Tensor,
                            grad_value: Tensor, grad_sampling_loc: Tensor, grad_attn_weight: Tensor,
                            im2col_step: int) -> None:
    """Computes the samples anew, so that nothing as large as they are is kept between the passes."""
    inputs = [x.detach().requires_grad_() for x in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = _attention(inputs[0], value_spatial_shapes, *inputs[1:])
    grads = torch.autograd.grad(output, inputs, grad_output)
    for written, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads):
        written.copy_(grad)


def _attention(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # which imports this module
    # As numbers: over a tensor on a GPU its loops would wait for the GPU once for each number.
    return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), locations, weights).to(value.dtype)
