"""RetinaNet with CMT-Ti: 12 epochs at one scale, the recipe of PVT (AdamW 1e-4, weight decay 1e-4).

No published result. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmdet/retinanet_cmt_ti_1x.py 8
"""
_base_ = ['./_base_/retinanet_cmt.py', './_base_/coco_det_1x.py']

checkpoint = 'https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/cmt_tiny.pth'
model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.1,  # as in the ImageNet training
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[92, 184, 368]))

optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4))
