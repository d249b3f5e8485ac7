"""Mask R-CNN with CMT-Ti from a classifier trained here; see first_hour.md."""
_base_ = ['../../configs/mmdet/_base_/mask_rcnn_cmt.py', './first_hour.py']

checkpoint = 'work_dirs/first_hour/cmt_tiny.pth'
model = dict(
    # Statistics of crops of 64x64 are not those of scenes: the BatchNorms go on learning.
    backbone=dict(arch='tiny', norm_eval=False, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[46, 92, 184, 368]),
    roi_head=dict(bbox_head=dict(num_classes=5), mask_head=dict(num_classes=5)),
    # COCO's 512 a image, a quarter of them with masks, are most of what a step computes; 5 objects need fewer.
    train_cfg=dict(rcnn=dict(sampler=dict(num=64))))
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
