"""Parameters and multiply-adds of a model.

Nothing is computed: the model runs on PyTorch's meta device, under its own counter of matrix products and
convolutions, for which one multiply-add is one MAC. Attention is counted as papers do, n m d for the
logits and as much for the values; that CMT's position bias widens its heads is given apart. Counters
that go by modules, like mmcv's, leave attention out, and with it most papers' detector FLOPs.
"""
from functools import partial
from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..models.cmt import LightweightAttention


def model_without_memory(cfg: Config) -> nn.Module:
    """The model of a config in eval mode, on the meta device."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with torch.device('meta'):
        return MODELS.build(cfg.model).eval()


class AttentionCounter(TorchFunctionMode):
    """Counts the MACs of `scaled_dot_product_attention` on the heads it is given, in its stead."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Optional[dict] = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args[:3]
        self.macs += q[..., 0].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        return q.new_empty(*q.shape[:-1], v.shape[-1])


def count(model: nn.Module, shape: Tuple[int, int]) -> Dict[str, float]:
    """What a model takes for one image.

    Args:
        model (nn.Module): On the meta device, in eval mode; a backbone, a detector or a segmentor.
        shape (tuple[int, int]): Height and width in pixels.

    Returns:
        dict[str, float]: ``params_m`` in millions; ``gmacs`` and ``gmacs_without_attention_matmuls`` in
        1e9 MACs; and ``gmacs_of_widened_heads``, what the position bias adds, which they leave out.
    """
    by_the_paper = 0

    def count_attention(module: nn.Module, args: tuple) -> None:
        nonlocal by_the_paper
        x = args[0]  # (N, n, C)
        reduction = 1 if isinstance(module.reduce, nn.Identity) else module.reduce[0].stride[0]
        m = x.shape[1] // reduction**2
        by_the_paper += 2 * x.numel() * m  # n m d for q k^T, and again for the values

    hooks = [module.register_forward_pre_hook(count_attention) for module in model.modules()
             if isinstance(module, LightweightAttention)]
    forward = getattr(model, '_forward', model)  # heads included, losses and boxes not
    if hasattr(model, 'roi_head'):
        forward = partial(two_stages, model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, AttentionCounter() as attention:
        forward(torch.zeros(1, 3, *shape, device='meta'))
    for hook in hooks:
        hook.remove()
    rest = counter.get_total_flops() / 2
    return dict(
        params_m=sum(p.numel() for p in model.parameters()) / 1e6,
        gmacs=(rest + by_the_paper) / 1e9,
        gmacs_without_attention_matmuls=rest / 1e9,
        gmacs_of_widened_heads=(attention.macs - by_the_paper) / 1e9)


def two_stages(model: nn.Module, images: Tensor) -> None:
    """Every layer of an R-CNN, for as many regions as it looks at: 1000 boxes and 100 masks."""
    features = model.extract_feat(images)
    model.rpn_head(features)
    roi_head = model.roi_head
    boxes, masks = model.test_cfg.rpn.max_per_img, model.test_cfg.rcnn.max_per_img
    for regions, heads, extractors in [
            (boxes, roi_head.bbox_head, roi_head.bbox_roi_extractor),
            (masks, getattr(roi_head, 'mask_head', ()), getattr(roi_head, 'mask_roi_extractor', ()))]:
        # A cascade has one for each of its stages, and averages the masks of all.
        one = isinstance(heads, nn.Module) and not isinstance(heads, nn.ModuleList)
        for head, extractor in zip([heads] if one else heads, [extractors] if one else extractors):
            size = extractor.roi_layers[0].output_size
            head(images.new_empty(regions, extractor.out_channels, *size))
