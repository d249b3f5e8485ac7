"""Models by name, to be measured: ours, their peers, and whole models of configs; and the work of each."""
import copy
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, List, Tuple

import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from torch import Tensor, nn

from ..models import cmt, convnext
from ..models.backbone import switch_to_deploy
from ..openmmlab.configs import config_from_file
from .plain_cmt import PlainCMT

OURS = {
    **{f'cmt-{short}': (cmt.CMT, arch) for short, arch in zip(('ti', 'xs', 's', 'b'), cmt.ARCHS)},
    **{f'convnext-{short}': (convnext.ConvNeXt, arch) for short, arch in zip('tsblx', convnext.ARCHS)},
}
# Swin-T as mmdet's own configs have it; Twins as mmseg's.
PEERS = {
    'resnet-50': dict(type='mmdet.ResNet', depth=50),
    'swin-t': dict(type='mmdet.SwinTransformer', embed_dims=96, depths=[2, 2, 6, 2],
                   num_heads=[3, 6, 12, 24]),
    'pvt-s': dict(type='mmdet.PyramidVisionTransformer', num_layers=[3, 4, 6, 3]),
    'twins-pcpvt-s': dict(type='mmseg.PCPVT', embed_dims=[64, 128, 320, 512], num_heads=[1, 2, 5, 8],
                          depths=[3, 4, 6, 3], mlp_ratios=[8, 8, 4, 4], sr_ratios=[8, 4, 2, 1], qkv_bias=True,
                          norm_after_stage=False),
    'twins-svt-s': dict(type='mmseg.SVT', embed_dims=[64, 128, 256, 512], num_heads=[2, 4, 8, 16],
                        mlp_ratios=[4, 4, 4, 4], depths=[2, 2, 10, 4], sr_ratios=[8, 4, 2, 1],
                        windiow_sizes=[7, 7, 7, 7], qkv_bias=True, norm_after_stage=True),
}
OPTIONS = ('plain', 'deployed', 'with-cp', 'flat', 'channels-last', 'compiled')
KNOWN = (f'{", ".join([*OURS, *PEERS])}, timm/NAME or the path of a config, each with any of '
         f'{", ".join(":" + option for option in OPTIONS)}')


def build(spec: str) -> nn.Module:
    """A model such as ``cmt-s:deployed``, with weights that depend on its name alone.

    Raises:
        ValueError: If nothing has this name, or an option is not for it.
    """
    name, *options = spec.split(':')
    unknown = set(options) - set(OPTIONS)
    if unknown:
        raise ValueError(f'{spec}: unknown options {sorted(unknown)}; there are {OPTIONS}')
    torch.manual_seed(0)
    if name in OURS:
        kind, arch = OURS[name]
        settings = dict(bias_interpolation='flat') if 'flat' in options else {}
        model = kind(arch, with_cp='with-cp' in options, **settings)
    elif name in PEERS:
        init_default_scope('mmengine')
        import_module(PEERS[name]['type'].split('.')[0] + '.models')
        model = MODELS.build(PEERS[name])
    elif name.startswith('timm/'):
        import timm
        model = timm.create_model(name[len('timm/'):], features_only=True)
    elif Path(name).is_file():
        cfg = config_from_file(name)
        init_default_scope(cfg.default_scope)
        model = MODELS.build(cfg.model)
    else:
        raise ValueError(f'{spec}: no such model; there are {KNOWN}')
    vary_norms(model)
    if 'plain' in options:
        if not isinstance(model, cmt.CMT):
            raise ValueError(f'{spec}: only CMT has a plain form')
        model = PlainCMT(model)
    model.eval()
    if 'deployed' in options and not switch_to_deploy(model):
        raise ValueError(f'{spec}: only our backbones have a deployed form')
    if 'channels-last' in options:
        model = model.to(memory_format=torch.channels_last)
    return torch.compile(model) if 'compiled' in options else model


def vary_norms(model: nn.Module) -> None:
    """Moves BatchNorms away from where they start, at which folding them would change nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.running_var.is_meta:
            module.running_mean.normal_(0, .1, generator=generator)
            module.running_var.uniform_(.5, 2, generator=generator)


def images(spec: str, batch: int, shape: Tuple[int, int], device: torch.device,
           dtype: torch.dtype) -> Tensor:
    """Random images (batch, 3, H, W) for a model of :func:`build`, the same ones for all."""
    x = torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    return x.to(memory_format=torch.channels_last) if 'channels-last' in spec.split(':') else x


def work(model: nn.Module, x: Tensor, train: bool) -> Callable[[], Any]:
    """A callable that does the work to be measured and returns what it computed.

    Backbones compute their maps, and to train, gradients of the maps' mean squares. Detectors and
    segmentors predict, and to train, take the gradients of their losses for drawn annotations.
    """
    is_whole = hasattr(model, 'data_preprocessor')
    samples = annotations(model, x) if is_whole else None
    if not train:
        def run() -> Any:
            with torch.inference_mode():
                return model(x, copy.deepcopy(samples), mode='predict') if is_whole else model(x)
    else:
        model.train()

        def run() -> Any:
            model.zero_grad()
            if is_whole:
                loss, _ = model.parse_losses(model(x, copy.deepcopy(samples), mode='loss'))
            else:
                loss = sum(out.float().square().mean() for out in model(x))
            loss.backward()
            return loss.detach()
    return run


def annotations(model: nn.Module, x: Tensor) -> List[Any]:
    """Data samples of drawn objects, or of drawn labels, for a detector or a segmentor."""
    size = tuple(x.shape[2:])
    if hasattr(model, 'decode_head'):
        from mmseg.structures import SegDataSample
        labels = torch.randint(model.decode_head.num_classes, (len(x), 1, *size))
        about = dict(img_shape=size, ori_shape=size, pad_shape=size, padding_size=(0, ) * 4)
        return [SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=about).to(x.device)
                for label in labels]
    from mmdet.testing import demo_mm_inputs
    n = len(x)
    packed = demo_mm_inputs(n, [(3, *size)] * n, num_items=[10] * n, num_classes=80, with_mask=True)
    for sample in packed['data_samples']:
        sample.set_metainfo(dict(batch_input_shape=size, pad_shape=size))
    return [sample.to(x.device) for sample in packed['data_samples']]
