"""Parameters and multiply-adds of the model of a config: `python tools/get_flops.py CONFIG --shape 800 1280`.

Nothing is computed: the model runs on PyTorch's meta device, under its own counter of matrix products and
convolutions, for which one multiply-add is one MAC. Attention is counted as papers do, n m d for the
logits and as much for the values; that CMT's position bias widens its heads is given apart. Counters
that go by modules, like mmcv's, leave attention out, and with it most papers' detector FLOPs.
"""
import argparse
import json

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from cmt_backbones import openmmlab  # noqa: F401  (finds `mmseg::` bases under any distribution name)
from cmt_backbones.models.cmt import LightweightAttention


class AttentionCounter(TorchFunctionMode):
    """Counts the MACs of `scaled_dot_product_attention` on the heads it is given, in its stead."""

    def __init__(self):
        super().__init__()
        self.macs = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args[:3]
        self.macs += q[..., 0].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        return q.new_empty(*q.shape[:-1], v.shape[-1])


def count(model, shape):
    """What a model takes for one image.

    Args:
        model (nn.Module): On the meta device, in eval mode; a backbone, a detector or a segmentor.
        shape (tuple[int, int]): Height and width in pixels.

    Returns:
        dict[str, float]: ``params_m`` in millions; ``gmacs`` and ``gmacs_without_attention_matmuls`` in
        1e9 MACs; and ``gmacs_of_widened_heads``, what the position bias adds, which they leave out.
    """
    by_the_paper = 0

    def count_attention(module, args):
        nonlocal by_the_paper
        x, _, bias = args
        m = bias.shape[-1] if isinstance(bias, torch.Tensor) else bias.key.shape[0]
        by_the_paper += 2 * x.numel() * m  # n m d for q k^T, and again for the values

    for module in model.modules():
        if isinstance(module, LightweightAttention):
            module.register_forward_pre_hook(count_attention)
    if hasattr(model, 'roi_head'):
        def forward(images):
            return two_stages(model, images)
    else:
        forward = getattr(model, '_forward', model)  # heads included, losses and boxes not
    with torch.no_grad(), FlopCounterMode(display=False) as counter, AttentionCounter() as attention:
        forward(torch.zeros(1, 3, *shape, device='meta'))
    rest = counter.get_total_flops() / 2
    return dict(
        params_m=sum(p.numel() for p in model.parameters()) / 1e6,
        gmacs=(rest + by_the_paper) / 1e9,
        gmacs_without_attention_matmuls=rest / 1e9,
        gmacs_of_widened_heads=(attention.macs - by_the_paper) / 1e9)


def two_stages(model, images):
    """Every layer of an R-CNN, for as many regions as it looks at: 1000 boxes and 100 masks."""
    features = model.extract_feat(images)
    model.rpn_head(features)
    roi_head = model.roi_head
    boxes, masks = model.test_cfg.rpn.max_per_img, model.test_cfg.rcnn.max_per_img
    for regions, heads, extractors in [
            (boxes, roi_head.bbox_head, roi_head.bbox_roi_extractor),
            (masks, getattr(roi_head, 'mask_head', ()), getattr(roi_head, 'mask_roi_extractor', ()))]:
        # A cascade has one for each of its stages, and averages the masks of all.
        one = isinstance(heads, torch.nn.Module) and not isinstance(heads, torch.nn.ModuleList)
        for head, extractor in zip([heads] if one else heads, [extractors] if one else extractors):
            size = extractor.roi_layers[0].output_size
            head(images.new_empty(regions, extractor.out_channels, *size))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('--shape', type=int, nargs='+', default=[800, 1280], metavar='PIXELS',
                        help='height and width, or the side of a square (default: 800 1280)')
    parser.add_argument('--backbone', action='store_true', help='count the backbone alone')
    parser.add_argument('--json', action='store_true', help='print JSON')
    args = parser.parse_args(argv)
    if len(args.shape) > 2 or min(args.shape) < 32:
        parser.error(f'--shape takes a height and a width of at least 32, not {args.shape}')
    shape = tuple(args.shape * 2)[:2]

    cfg = Config.fromfile(args.config)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with torch.device('meta'):
        model = MODELS.build(cfg.model).eval()
    result = count(model.backbone if args.backbone else model, shape)
    if args.json:
        print(json.dumps(dict(config=args.config, height=shape[0], width=shape[1], **result)))
    else:
        print(f'{args.config} at {shape[0]}x{shape[1]}')
        for name, value in result.items():
            print(f'  {name:34} {value:10.2f}')


if __name__ == '__main__':
    main()
