"""Config files of a small segmentor and a small detector."""
import tool

ARCHS = dict(
    # Position bias of 2x2 to 16x16 queries: 64x64 is the size that nothing is resized at.
    CMT=dict(stem_channels=8, embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), mlp_ratio=2,
             pretrain_img_size=64),
    ConvNeXt=dict(embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), use_grn=False))
SEGMENTOR = """
_base_ = '{root}/configs/mmseg/upernet_cmt_ti_shapes.py'
model = dict(
    backbone=dict(_delete_=True, type='{backbone}', arch={arch}),
    decode_head=dict(in_channels=[8, 16, 32, 64], channels=16),
    auxiliary_head=dict(in_channels=32, channels=16))
"""
DETECTOR = """
_base_ = '{root}/configs/mmdet/mask_rcnn_convnext_t_1x.py'
model = dict(
    backbone=dict(_delete_=True, type='{backbone}', arch={arch}),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16)),
    test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(score_thr=0., max_per_img=5)))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
"""


def segmentor(folder, backbone):
    """The path of a config of UperNet with 'CMT' or 'ConvNeXt', written to a folder."""
    return write(folder, SEGMENTOR, backbone)


def detector(folder):
    """The path of a config of Mask R-CNN with ConvNeXt, written to a folder."""
    return write(folder, DETECTOR, 'ConvNeXt')


def write(folder, text, backbone):
    path = folder / f'{backbone}.py'
    path.write_text(text.format(root=tool.ROOT, backbone=backbone, arch=ARCHS[backbone]))
    return str(path)
