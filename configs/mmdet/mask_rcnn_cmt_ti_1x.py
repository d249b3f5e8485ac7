"""Mask R-CNN with CMT-Ti: 12 epochs at one scale, PVT's recipe (AdamW 2e-4, weight decay 1e-4).

No published result. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmdet/mask_rcnn_cmt_ti_1x.py 8
"""
_base_ = ['./_base_/mask_rcnn_cmt.py', './_base_/coco_inst_1x.py']

checkpoint = 'https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/cmt_tiny.pth'
model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.1,  # as in the ImageNet training
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[46, 92, 184, 368]))

optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4))
