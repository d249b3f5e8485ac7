"""Mask R-CNN with ConvNeXt-T from scratch on 16 photos of COCO; see benchmarks/overfit16.md."""
_base_ = ['../../configs/mmdet/_base_/mask_rcnn_convnext.py', './overfit16.py']

# The backbone is the real one. The heads are narrower and see fewer regions than for COCO, where
# they would take most of the time: few objects, small images, a CPU.
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.),
    neck=dict(in_channels=[96, 192, 384, 768], out_channels=128),
    rpn_head=dict(
        in_channels=128, feat_channels=128,
        anchor_generator=dict(scales=[4])),  # of half the size, as the images
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128),
        bbox_head=dict(in_channels=128, fc_out_channels=512),
        mask_roi_extractor=dict(out_channels=128),
        mask_head=dict(in_channels=128, conv_out_channels=128, num_convs=2)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)))
