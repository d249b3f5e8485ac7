"""A detector at sizes it was not trained at, by each resize of its position bias: a table and a figure.

    python benchmarks/detector_sizes.py CONFIG CHECKPOINT --scales 240x180 320x240 640x480 --out PNG
"""
import argparse
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from cmt_backbones.export.model_card import table
from cmt_backbones.openmmlab import CheckpointMatches, config_from_file

# isort: split
from mmengine.runner import Runner

WAYS = ('geometric', 'flat')


def box_map(args, way, scale, folder):
    cfg = config_from_file(args.config)
    cfg.merge_from_dict({'model.backbone.bias_interpolation': way, 'load_from': args.checkpoint, 'work_dir': folder,
                         'log_level': 'ERROR'})
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = scale
    runner = Runner.from_cfg(cfg)
    runner.register_hook(CheckpointMatches())  # else weights of another shape are left out, and the rest is evaluated
    return runner.test()['coco/bbox_mAP']


def width_and_height(text):
    width, height = (int(side) for side in text.split('x'))
    return width, height


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('config')
parser.add_argument('checkpoint')
parser.add_argument('--scales', type=width_and_height, nargs='+', required=True, metavar='WIDTHxHEIGHT')
parser.add_argument('--out', type=Path, required=True)
args = parser.parse_args()

names = [f'{w}x{h}' for w, h in args.scales]
with tempfile.TemporaryDirectory() as folder:
    found = {way: [box_map(args, way, scale, folder) for scale in args.scales] for way in WAYS}
print('\n'.join(table(['box mAP at', *names], [[way, *(f'{v:.3f}' for v in values)] for way, values in found.items()])))

figure, axis = plt.subplots(figsize=(6, 3.4), layout='constrained')
for way, values in found.items():
    axis.plot(names, values, 'o-', label=f'bias: {way}')
axis.set(xlabel='size of the photos', ylabel='box mAP', ylim=(0, None))
axis.legend()
figure.savefig(args.out, dpi=110)
