"""Mask R-CNN with CMT-B: 36 epochs at short sides of 480 to 800, otherwise the recipe of PVT.

No published result. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmdet/mask_rcnn_cmt_b_ms_3x.py 8
"""
_base_ = ['./_base_/mask_rcnn_cmt.py', './_base_/coco_inst_ms_3x.py']

checkpoint = 'https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/cmt_base.pth'
model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.25,  # as in the ImageNet training
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[76, 152, 304, 608]))

optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4))
