"""Calls of mmcv's operators on inputs drawn here, ordinary ones and degenerate ones.

    python tests/helpers/operator_cases.py

writes what a compiled mmcv (2.1.0, built for CPUs) answers into tests/golden/operators.npz.
"""
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Tuple

import numpy as np
import torch
from mmcv import ops
from torch import Tensor

from cmt_backbones.openmmlab.operators import extension

GOLDEN = Path(__file__).parents[1] / 'golden' / 'operators.npz'
Answers = Dict[str, np.ndarray]
Cases = Iterator[Tuple[str, Callable[[], Tensor], List[Tensor]]]  # name, call, and what to differentiate by
MODULES = [module for name, module in sys.modules.items()
           if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module')]


def take_ours(monkeypatch) -> None:
    """Lets mmcv's functions call our operators, whatever this mmcv has."""
    assert len(MODULES) > 40
    for module in MODULES:
        monkeypatch.setattr(module, 'ext_module', extension)


def boxes(draw: np.random.RandomState, count: int, grid: float = 0.) -> Tensor:
    """Boxes in and around an image of 100 pixels, some without area; on a grid many overlaps are equal."""
    corners = draw.uniform(-20, 120, (count, 2))
    sides = draw.uniform(0, 40, (count, 2)) * (draw.uniform(size=(count, 2)) > .05)
    found = np.concatenate([corners, corners + sides], axis=1)
    return torch.tensor(np.round(found / grid) * grid if grid else found, dtype=torch.float32)


def suppressions() -> Iterator[Tuple[str, Callable[[], Tuple]]]:
    draw = np.random.RandomState(0)
    sets = {'random': (boxes(draw, 80), draw.uniform(size=80)),
            'equal scores': (boxes(draw, 60, grid=10.), draw.randint(0, 6, 60) / 5),
            'one': (boxes(draw, 1), [.5]),
            'empty': (torch.zeros(0, 4), []),
            'without area': (torch.tensor([[5., 5, 5, 5], [5, 5, 5, 5], [2, 2, 2, 9], [0, 0, 9, 9]]),
                             [.9, .8, .7, .95]),
            # Overlaps of 3/10, 1/2 and 7/10, which are thresholds below.
            'at the threshold': (torch.tensor([[0., 0, 10, 1], [0, 0, 3, 1], [20, 0, 30, 1], [20, 0, 25, 1],
                                               [40, 0, 50, 1], [40, 0, 47, 1]]), [.9, .8, .7, .6, .5, .4])}
    for name, (found, scores) in sets.items():
        scores = torch.tensor(scores, dtype=torch.float32)
        classes = torch.arange(len(scores)) % 3
        for threshold in (.3, .5, .7):
            for offset in (0, 1):
                yield f'nms, {name}, {threshold}, offset {offset}', \
                    lambda f=found, s=scores, t=threshold, o=offset: ops.nms(f, s, t, offset=o)
            yield f'nms_match, {name}, {threshold}', lambda f=found, s=scores, t=threshold: tuple(
                ops.nms_match(torch.cat([f, s[:, None]], 1), t))
        for method in ('naive', 'linear', 'gaussian'):
            for offset in (0, 1):
                yield f'soft_nms, {name}, {method}, offset {offset}', lambda f=found, s=scores, m=method, o=offset: \
                    ops.soft_nms(f, s, .3, min_score=.05, method=m, offset=o)
        if len(scores):
            yield f'nms, {name}, best 5 above 0.3', lambda f=found, s=scores: ops.nms(
                f, s, .5, score_threshold=.3, max_num=5)
            for kind in ('nms', 'soft_nms'):
                # In one go, class by class where there are as many boxes as the number, and over all classes.
                for split in (10000, 1):
                    yield f'batched {kind}, {name}, {split}', lambda f=found, s=scores, c=classes, k=kind, n=split: \
                        ops.batched_nms(f, s, c, dict(type=k, iou_threshold=.5, split_thr=n))
                yield f'batched {kind}, {name}, class agnostic', lambda f=found, s=scores, c=classes, k=kind: \
                    ops.batched_nms(f, s, c, dict(type=k, iou_threshold=.5), class_agnostic=True)


def with_gradients(exact: bool) -> Cases:
    """`exact` computes in float64 whatever the inputs were rounded to."""
    draw = np.random.RandomState(1)

    def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(torch.float64 if exact else dtype, copy=True)

    def normal(*shape: int) -> Tensor:
        return torch.tensor(draw.normal(size=shape), dtype=torch.float32)

    found = torch.cat([boxes(draw, 12), torch.tensor([
        [10., 10, 10, 10], [0, 0, 100, 100], [-300, -300, -200, -200], [500, 500, 600, 600], [99, 99, 101, 101]])])
    rois = torch.cat([torch.arange(len(found))[:, None] % 2, found], dim=1)
    maps = normal(2, 3, 13, 13)
    for dtype in (torch.float32, torch.float16):
        for size, ratio, aligned in ((3, 0, True), ((4, 2), 1, True), ((2, 4), 2, True), (3, 3, True),
                                     (2, 0, False), (2, 1, False), (3, 2, False), ((2, 4), 3, False)):
            x = rounded(maps, dtype).requires_grad_()
            regions = rounded(rois, dtype)
            yield f'roi_align, {size}, {ratio}, {aligned}, {dtype}', lambda x=x, regions=regions, a=(
                size, 1 / 8, ratio, 'avg', aligned): ops.roi_align(x, regions, *a), [x]
    x, none = rounded(maps, torch.float32).requires_grad_(), rounded(rois[:0], torch.float32)
    yield 'roi_align, no regions', lambda: ops.roi_align(x, none, 2, 1 / 8, 0, 'avg', True), [x]
    y, one = rounded(maps, torch.float32).requires_grad_(), rounded(rois[:1], torch.float32)
    yield 'roi_align, one region', lambda: ops.roi_align(y, one, 2, 1 / 8, 0, 'avg', True), [y]

    drawn = np.random.RandomState(3)
    for kind in ('collect', 'distribute'):
        for mask_size in ((3, 5), (9, 7)):  # smaller than the map, and larger
            masks = torch.tensor(drawn.normal(size=(2, mask_size[0] * mask_size[1], 4, 6)), dtype=torch.float32)
            masks.requires_grad_()
            yield f'psa_mask, {kind}, {mask_size}', lambda m=masks, a=(kind, mask_size): ops.PSAMask(*a)(m), [masks]

    for name, stride, padding, dilation, groups, offset_groups in (
            ('plain', 1, 1, 1, 1, 1), ('strided', 2, 1, 1, 1, 1), ('dilated', (1, 2), (2, 1), 2, 1, 1),
            ('grouped', 1, 1, 1, 2, 4)):
        kernel = 3, (2 if name == 'dilated' else 3)
        x, weight, bias = normal(2, 4, 9, 8), normal(6, 4 // groups, *kernel), normal(6)
        plain = torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation, groups)
        taps = offset_groups * kernel[0] * kernel[1]
        # Some samples fall between pixels, some outside of the image.
        offset, mask = 4 * normal(2, 2 * taps, *plain.shape[2:]), normal(2, taps, *plain.shape[2:]).sigmoid()
        for dtype in (torch.float32, torch.float16) if name == 'grouped' else (torch.float32,):
            inputs = [rounded(t, dtype).requires_grad_() for t in (x, offset, weight)]
            yield f'deform_conv2d, {name}, {dtype}', lambda i=inputs, a=(
                stride, padding, dilation, groups, offset_groups): ops.deform_conv2d(*i, *a), inputs
            for with_bias in (True, False):
                inputs = [rounded(t, dtype).requires_grad_() for t in (x, offset, mask, weight, bias)]
                last = inputs if with_bias else [*inputs[:4], None]
                yield f'modulated_deform_conv2d, {name}, bias {with_bias}, {dtype}', lambda i=last, a=(
                    stride, padding, dilation, groups, offset_groups): ops.modulated_deform_conv2d(*i, *a), \
                    inputs[:5 if with_bias else 4]


def loss_of(output: Tensor) -> Tensor:
    factors = np.random.RandomState(2).normal(size=tuple(output.shape))
    return (output * torch.tensor(factors).to(output.dtype)).sum()


def answers(exact: bool = False) -> Answers:
    """What the operators at hand answer to every case: outputs, then gradients of a fixed random sum of them."""
    found = {f'{name}: {i}': tensor.numpy() for name, call in suppressions() for i, tensor in enumerate(call())}
    return {**found, **answers_with_gradients(with_gradients(exact))}


def answers_with_gradients(cases: Cases) -> Answers:
    found = {}
    for name, call, inputs in cases:
        output = call()
        found[f'{name}: output'] = output.detach().numpy()
        for i, grad in enumerate(torch.autograd.grad(loss_of(output), inputs) if inputs else []):
            found[f'{name}: gradient {i}'] = grad.numpy()
    return found


def load(path: Path = GOLDEN) -> Answers:
    with np.load(path) as packed:
        ends = np.cumsum([int(np.prod(eval(shape))) for shape in packed['shapes']])
        parts = np.split(packed['values'], ends[:-1])
        return {str(name): part.reshape(eval(shape))
                for name, shape, part in zip(packed['names'], packed['shapes'], parts)}


def save(path: Path, found: Answers) -> None:
    np.savez_compressed(path, names=list(found), shapes=[str(x.shape) for x in found.values()],
                        values=np.concatenate([x.ravel() for x in found.values()]).astype(np.float32))


if __name__ == '__main__':
    assert 'none' not in ops.get_compiler_version(), "this mmcv's operators are not compiled"
    save(GOLDEN, answers())
