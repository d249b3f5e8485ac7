"""Mask R-CNN with CMT-Ti from scratch on 16 photos of COCO; see benchmarks/overfit16.md."""
_base_ = './overfit16_mask_rcnn_convnext_t.py'

model = dict(
    backbone=dict(_delete_=True, type='CMT', arch='tiny', drop_path_rate=0.),
    neck=dict(in_channels=[46, 92, 184, 368]))
