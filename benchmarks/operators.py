"""Losses and detections of all configs with compiled mmcv and with torchvision's operators.

    make setup OPERATORS=compiled
    python benchmarks/operators.py > benchmarks/operators.md

`--only retinanet` takes the configs that have this in their names. A row is a model; configs that differ from its
first in data, schedule, weights, frozen stages or stochastic depth alone are counted there. Small models come first.
"""
import argparse
import importlib
import logging
import re
import sys
from collections import defaultdict
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from cmt_backbones import openmmlab
from cmt_backbones.openmmlab.operators import extension

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
GRADIENTS_UP_TO = 60e6  # parameters
SIZE = 64  # pixels of the drawn image
PROPOSALS, SAMPLES = 100, 64  # of a two-stage detector: enough to ask each operator, and a tenth of the time


def detection_data():
    from mmdet.testing import demo_mm_inputs
    return demo_mm_inputs(1, [(3, SIZE, SIZE)], num_classes=3, with_mask=True)


def segmentation_data():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    meta = dict(img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE), flip=False)
    sample = SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=torch.randint(0, 3, (1, SIZE, SIZE))))
    return dict(inputs=[torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)], data_samples=[sample])


def operators_of(module):
    """Lets mmcv's functions call the operators of a module, which they hold by name."""
    for name, caller in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(caller, 'ext_module'):
            caller.ext_module = module


def models(paths):
    """The configs (lists of paths) by the model that they build; small models first."""
    found = defaultdict(list)
    for path in paths:
        cfg = openmmlab.config_from_file(path)
        for key in ('init_cfg', 'drop_path_rate', 'frozen_stages'):
            cfg.model.backbone.pop(key, None)
        found[repr(cfg.model)].append(path)
    order = ('ti', 'xs', 't', 's', 'b', 'l', 'xl')
    return sorted(found.values(), key=lambda same: order.index(re.search('_(ti|xs|t|s|b|l|xl)_', same[0].name)[1]))


def compare(path):
    """What a config answers to one drawn image, its weights drawn, by both; largest difference."""
    cfg = openmmlab.config_from_file(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    if 'rpn_head' in cfg.model:
        cfg.model.train_cfg.rpn_proposal.max_per_img = cfg.model.test_cfg.rpn.max_per_img = PROPOSALS
        stages = cfg.model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = SAMPLES
    if cfg.default_scope == 'mmdet':  # else nothing that random weights say is above the threshold
        cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg).score_thr = 0.
    torch.manual_seed(0)
    np.random.seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    revert_sync_batchnorm(model)
    detects = cfg.default_scope == 'mmdet'
    data = detection_data() if detects else segmentation_data()
    one, other = (numbers(model, data, module) for module in (compiled_operators(), extension))
    assert set(one) == set(other)
    difference = max(float(np.abs(one[key].astype(float) - other[key]).max(initial=0)) for key in one)
    return ', '.join(f'{key} {value.size}' for key, value in one.items()), difference


def compiled_operators():
    module = importlib.import_module('mmcv._ext')
    assert openmmlab.operators.compiled(), 'this mmcv has no compiled operators: make setup OPERATORS=compiled'
    return module


def numbers(model, data, operators):
    """Losses, norms of gradients, predictions."""
    operators_of(operators)
    found = {}
    torch.manual_seed(0)
    model.train()
    # One image of this size is one value for each channel of UperNet's coarsest pooling.
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    losses = model(**model.data_preprocessor(deepcopy(data), True), mode='loss')
    for key, value in losses.items():
        if 'loss' in key:
            found[key] = torch.stack(list(value) if isinstance(value, (list, tuple)) else [value]).detach().numpy()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if sum(p.numel() for p in parameters) < GRADIENTS_UP_TO:
        model.zero_grad()
        model.parse_losses(losses)[0].backward()
        found['gradients'] = np.array([float(p.grad.double().norm()) for p in parameters if p.grad is not None])
    with torch.no_grad():
        sample, = model.eval().test_step(deepcopy(data))
    if 'pred_instances' in sample:
        found.update({key: np.asarray(sample.pred_instances[key]) for key in ('bboxes', 'scores', 'labels', 'masks')
                      if key in sample.pred_instances})
    else:
        found['label map'] = sample.pred_sem_seg.data.numpy()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', default='', help='configs with this in their names')
    args = parser.parse_args()
    MMLogger.get_instance('mmengine').setLevel(logging.ERROR)
    title, commands, note = __doc__.strip().split('\n\n')
    print('\n\n'.join(['# Operators', title, '```sh\n' + commands.replace('    ', '') + '\n```', note, '']))
    print(f'Compiled by {compiled_operators().get_compiler_version()}; {extension.get_compiler_version()}. One image '
          f'of {SIZE}x{SIZE}, weights and image drawn, on a CPU; BatchNorm by its running numbers; {PROPOSALS} '
          f'proposals, of which {SAMPLES} are trained on. Gradients (norms, parameter by parameter) up to '
          f'{GRADIENTS_UP_TO / 1e6:.0f} M parameters. On CPUs mmdet computes the focal loss by its own Python form in '
          'both cases.\n')
    print('| config | numbers compared | largest difference |\n|---|---|---|', flush=True)
    found = models(path for path in sorted(CONFIGS.glob('mm*/*.py')) if args.only in path.stem)
    worst = 0.
    for first, *others in found:
        names, difference = compare(first)
        worst = max(worst, difference)
        more = f', and {len(others)} of this model' if others else ''
        print(f'| {first.parent.name}/{first.stem}{more} | {names} | {f"{difference:.1e}" if difference else 0} |',
              flush=True)
    print(f'\nThe largest of all {len(found)}, of {sum(map(len, found))} configs: {f"{worst:.1e}" if worst else 0}.')


if __name__ == '__main__':
    main()
