"""What RoIAlign is given. mmcv's (2.1.0) takes any layout for NCHW, without a word (mmcv#2203)."""
import pytest
import torch
from mmcv.ops import roi_align
from mmdet.models.necks import FPN

from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.openmmlab.operators import compiled

BACKBONES = dict(
    CMT=lambda: CMT(dict(stem_channels=4, embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1),
                         mlp_ratio=2, pretrain_img_size=64)),
    ConvNeXt=lambda: ConvNeXt(dict(embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), use_grn=False)))
ROIS = torch.tensor([[0., 3., 5., 60., 40.], [1., 20., 1., 90., 63.], [1., 50., 30., 70., 45.]])


def pooled(x, stride):
    return roi_align(x, ROIS, 7, 1 / stride, 0, 'avg', True)


@pytest.mark.parametrize('size', [(64, 96), (70, 90)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('name', BACKBONES)
def test_reads_the_maps_of_backbones_and_necks_right(name, layout, size):
    backbone, neck = BACKBONES[name](), FPN([8, 16, 32, 64], 8, num_outs=4)
    images = torch.randn(2, 3, *size).contiguous(memory_format=layout)
    from_backbone = backbone(images)
    from_neck = neck(from_backbone)
    for stride, *maps in zip((4, 8, 16, 32), from_backbone, from_neck):
        for x in maps:
            # Rebuilt element by element, which contiguous() would not do where strides look right.
            expected = pooled(torch.tensor(x.tolist()), stride)
            assert torch.equal(pooled(x, stride), expected) and expected.abs().sum() > 0


def test_the_fault_is_there():
    """If this fails, mmcv has been mended, and the backbones may return what layout they like.

    Its own operators have it; torchvision's, which take their place, read any layout.
    """
    x = torch.randn(2, 8, 16, 24)
    right = torch.equal(pooled(x.contiguous(memory_format=torch.channels_last), 4), pooled(x, 4))
    assert right != compiled()
