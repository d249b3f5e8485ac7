"""Losses and detections of all configs with compiled mmcv and with torchvision's operators.

    python benchmarks/operators.py compiled.npz          # in an environment with compiled mmcv
    python benchmarks/operators.py torchvision.npz       # in one with mmcv-lite
    python benchmarks/operators.py --compare compiled.npz torchvision.npz > benchmarks/operators.md
"""
import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from cmt_backbones import openmmlab  # noqa: F401

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
GRADIENTS_UP_TO = 60e6  # parameters


def detection_data():
    from mmdet.testing import demo_mm_inputs
    return demo_mm_inputs(1, [(3, 128, 128)], num_classes=3, with_mask=True)


def segmentation_data():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    meta = dict(img_shape=(128, 128), ori_shape=(128, 128), pad_shape=(128, 128), flip=False)
    sample = SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=torch.randint(0, 3, (1, 128, 128))))
    return dict(inputs=[torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8)], data_samples=[sample])


def numbers(path):
    """What a config answers to one drawn image of 128x128 pixels, its weights drawn."""
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    np.random.seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    revert_sync_batchnorm(model)
    detects = cfg.default_scope == 'mmdet'
    data = detection_data() if detects else segmentation_data()
    # One image of this size is one value for each channel of UperNet's coarsest pooling.
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    found = {}
    torch.manual_seed(0)
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    for key, value in losses.items():
        if 'loss' in key:
            found[key] = torch.stack(list(value) if isinstance(value, (list, tuple)) else [value]).detach().numpy()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if sum(p.numel() for p in parameters) < GRADIENTS_UP_TO:
        model.parse_losses(losses)[0].backward()
        found['gradients'] = np.array([float(p.grad.double().norm()) for p in parameters if p.grad is not None])
    if detects:
        model.test_cfg.score_thr = 0.
    with torch.no_grad():
        sample, = model.eval().test_step(data)
    if detects:
        found.update({key: sample.pred_instances[key].numpy() for key in ('bboxes', 'scores', 'labels')})
    else:
        found['label map'] = sample.pred_sem_seg.data.numpy()
    return found


def compare(files):
    one, other = (np.load(file) for file in files)
    versions = [str(archive['operators']) for archive in (one, other)]
    print(__doc__.replace('\n\n    ', '\n\n```\n').rstrip().replace('\n    ', '\n') + '\n```\n')
    print(f'Operators: {versions[0]}; {versions[1]}. One image of 128x128, weights and image drawn, on a CPU; '
          f'BatchNorm by its running numbers. Gradients (norms, parameter by parameter) up to '
          f'{GRADIENTS_UP_TO / 1e6:.0f} M parameters. On CPUs mmdet computes the focal loss by its own Python form in '
          'both cases.\n')
    print('| config | numbers compared | largest difference |\n|---|---|---|')
    assert set(one.files) == set(other.files), 'the files are not of the same configs'
    worst = 0.
    for config in sorted({key.split(':')[0] for key in one.files} - {'operators'}):
        keys = [key for key in one.files if key.startswith(config + ':')]
        difference = max(float(np.abs(one[key].astype(float) - other[key]).max(initial=0)) for key in keys)
        worst = max(worst, difference)
        names = ', '.join(f'{key.split(":")[1]} {one[key].size}' for key in keys)
        print(f'| {config} | {names} | {difference:.1e} |' if difference else f'| {config} | {names} | 0 |')
    print(f'\nThe largest of all: {worst:.1e}.')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('files', nargs='+')
    parser.add_argument('--compare', action='store_true')
    args = parser.parse_args()
    if args.compare:
        return compare(args.files)
    MMLogger.get_instance('mmengine').setLevel(logging.ERROR)
    from mmcv.ops import get_compiler_version
    found = {'operators': get_compiler_version()}
    for path in sorted(CONFIGS.glob('mm*/*.py')):
        name = f'{path.parent.name}/{path.stem}'
        found.update({f'{name}:{key}': value for key, value in numbers(path).items()})
        np.savez(args.files[0], **found)  # what there is, should a long run be cut short
        print(name, flush=True)
    return None


if __name__ == '__main__':
    main()
