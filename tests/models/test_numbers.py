"""Half precision, forward and backward, on inputs from a thousandth to a thousand."""
import pytest
import torch

from cmt_backbones import CMT, ConvNeXt

SHORT = dict(embed_dims=(96, 192, 384, 768), depths=(1, 1, 3, 1), use_grn=False)
BACKBONES = dict(cmt=lambda: CMT('tiny'), convnext=lambda: ConvNeXt(SHORT),
                 convnext_v2=lambda: ConvNeXt('v2_atto'))


@pytest.mark.parametrize('scale', [1e-3, 1., 1e3])
@pytest.mark.parametrize('way', ['autocast', 'pure'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bf16', 'fp16'])
@pytest.mark.parametrize('name', BACKBONES)
def test_half_precision_stays_finite(name, dtype, way, scale):
    torch.manual_seed(0)
    backbone, images = BACKBONES[name](), scale * torch.randn(2, 3, 32, 64)
    if way == 'pure':
        backbone, images = backbone.to(dtype), images.to(dtype)
    with torch.autocast('cpu', dtype=dtype, enabled=way == 'autocast'):
        outs = backbone(images)
    assert all(out.isfinite().all() for out in outs)
    sum(out.float().mean() for out in outs).backward()
    wrong = [key for key, parameter in backbone.named_parameters() if not parameter.grad.isfinite().all()]
    assert not wrong
