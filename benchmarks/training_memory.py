"""Peak memory of a training step on a CPU: `python benchmarks/training_memory.py CONFIG --images 1`.

Weights, gradients, AdamW's averages and activations, in float32, above what the libraries take
before the model is there; frozen weights have neither gradients nor averages. One config a process, since a peak
stays. The time is that of the second step.
"""
import argparse
import resource
import time

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope

import cmt_backbones  # noqa: F401  (registers the backbones)
from cmt_backbones.openmmlab import config_from_file


def detection_batch(images, height, width):
    from mmdet.testing import demo_mm_inputs
    return demo_mm_inputs(images, (3, height, width), num_items=[8] * images, num_classes=80, with_mask=True)


def segmentation_batch(images, height, width):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    sample = SegDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width)))
    sample.gt_sem_seg = PixelData(data=torch.randint(150, (1, height, width)))
    return dict(inputs=[torch.randint(256, (3, height, width), dtype=torch.uint8)] * images,
                data_samples=[sample] * images)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('config')
parser.add_argument('--images', type=int, default=1)
parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'), help='800 1344 or 512 512 by default')
args = parser.parse_args()
cfg = config_from_file(args.config)
init_default_scope(cfg.default_scope)
detector = cfg.default_scope == 'mmdet'
shape = args.shape or ((800, 1344) if detector else (512, 512))
batch = (detection_batch if detector else segmentation_batch)(args.images, *shape)
before = peak()
model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = OptimWrapper(torch.optim.AdamW(trained, lr=1e-6))
for p in trained:
    p.grad = torch.zeros_like(p)
optimizer.step()  # makes the averages, which are there in all steps but the first
optimizer.zero_grad()
for _ in range(2):
    started = time.perf_counter()
    model.train_step(batch, optimizer)
    seconds = time.perf_counter() - started
weights, moving = (sum(p.numel() for p in some) * 4 / 1e9 for some in (model.parameters(), trained))
print(f'{args.config}, {args.images} of {shape[0]}x{shape[1]}: {peak() - before:.1f} GB, of which weights, '
      f'gradients and averages {weights + 3 * moving:.1f}; {seconds:.1f} s a step')
