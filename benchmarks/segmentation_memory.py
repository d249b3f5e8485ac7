"""Peak memory of whole-image inference: `python benchmarks/segmentation_memory.py CONFIG HEIGHT WIDTH`."""
import resource
import sys

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from cmt_backbones.openmmlab import config_from_file

config, height, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
cfg = config_from_file(config)
init_default_scope('mmseg')
cfg.model.test_cfg = dict(mode='whole')
model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


before = peak()
with torch.no_grad():
    out = model(torch.randn(1, 3, height, width))
print(f'{config} at {height}x{width}: {tuple(out.shape)}, peak {peak():.1f} GB, '
      f'{peak() - before:.1f} above the model')
