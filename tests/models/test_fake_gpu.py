"""On a GPU that is not there: tensors of CPU and GPU do not meet, nothing waits for a value, dtypes are as expected.

A fake tensor refuses both. Backward passes need a driver, and numbers a GPU: `make gpu-report`.
"""
import mmdet.models  # noqa: F401
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.utils import get_installed_path
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fake_gpu
from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.models import attention

BACKBONES = {
    'CMT': (CMT, dict(stem_channels=8, embed_dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), mlp_ratio=2,
                      pretrain_img_size=64)),
    'ConvNeXt': (ConvNeXt, dict(embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), use_grn=False)),
    'ConvNeXt V2': (ConvNeXt, dict(embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), use_grn=True)),
}


@pytest.fixture(autouse=True)
def autocast_of_a_gpu(monkeypatch):
    monkeypatch.setattr('torch.cuda.amp.common.amp_definitely_not_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *args, **kwargs: True)


class Operators(TorchDispatchMode):
    """The names and the dtypes of what was computed on the GPU."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in args if isinstance(x, torch.Tensor) and x.is_cuda]
        if tensors:
            self.seen.append((str(func).split('.')[1], tensors[0].dtype))
        return func(*args, **(kwargs or {}))

    def dtypes(self, name):
        return {dtype for operator, dtype in self.seen if operator == name}


@pytest.mark.parametrize('amp', [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', BACKBONES)
def test_backbones(name, training, amp):
    family, arch = BACKBONES[name]
    mode = FakeTensorMode()
    model = fake_gpu.move(family(arch).train(training), mode)
    with mode, torch.set_grad_enabled(training), torch.autocast('cuda', amp, enabled=amp is not None):
        x = torch.randn(2, 3, 64, 96, device='cuda')
        with Operators() as operators:
            outs = model(x)
    assert all(out.is_cuda and out.dtype == torch.float32 and out.is_contiguous() for out in outs)
    for product in ('convolution', 'addmm', 'gelu'):
        assert operators.dtypes(product) <= {amp or torch.float32}, product
    assert operators.dtypes('native_layer_norm') == {torch.float32}
    if name == 'CMT':
        flash = operators.dtypes('_scaled_dot_product_flash_attention')
        assert flash == ({amp} if amp else set())


@pytest.mark.parametrize('fixed, kind', [(False, attention.Flash), (True, attention.NarrowValues)])
def test_images_of_few_sizes_take_another_way(fixed, kind, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', fixed)
    mode = FakeTensorMode()
    stage = fake_gpu.move(CMT(BACKBONES['CMT'][1]), mode).stages[0]
    with mode, torch.autocast('cuda', torch.bfloat16):
        x = torch.randn(1, 16, 16, 24, device='cuda')
        bias = attention.prepare_bias(stage.relative_bias, ((16, 24), (2, 3)), 16, x)
    assert isinstance(bias, kind) and bias.query.dtype == torch.bfloat16 and bias.query.shape == (1, 384, 8)


@pytest.mark.parametrize('amp', [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', ['CMT', 'ConvNeXt'])
@pytest.mark.parametrize('base', ['retinanet_r50_fpn', 'mask-rcnn_r50_fpn'])
def test_detectors(base, name, training, amp):
    """Up to what the heads predict; what follows takes as many boxes as there are, and waits for their number."""
    cfg = Config.fromfile(f'{get_installed_path("mmdet")}/.mim/configs/_base_/models/{base}.py').model
    family, arch = BACKBONES[name]
    cfg.backbone = dict(type=family.__name__, arch=arch)
    cfg.neck.in_channels, cfg.neck.out_channels = list(arch['embed_dims']), 16
    head = cfg.get('rpn_head') or cfg.bbox_head
    head.in_channels, head.feat_channels = 16, 16
    if 'roi_head' in cfg:
        for part in ('bbox_roi_extractor', 'mask_roi_extractor'):
            cfg.roi_head[part].out_channels = 16
        cfg.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16)
        cfg.roi_head.mask_head.update(in_channels=16, conv_out_channels=16)
    mode = FakeTensorMode()
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = fake_gpu.move(MODELS.build(cfg).train(training), mode)
    with mode, torch.set_grad_enabled(training), torch.autocast('cuda', amp, enabled=amp is not None):
        maps = model.extract_feat(torch.randn(2, 3, 64, 96, device='cuda'))
        predicted = (model.rpn_head if 'roi_head' in cfg else model.bbox_head)(maps)
    assert all(x.is_cuda and x.dtype == (amp or torch.float32) for maps in predicted for x in maps)
