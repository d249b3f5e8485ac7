"""RetinaNet with CMT-S: 12 epochs at one scale, the recipe of PVT (AdamW 1e-4, weight decay 1e-4).

Paper (arXiv 2107.06263, table 6): 44.3 box AP on COCO val2017. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmdet/retinanet_cmt_s_1x.py 8
"""
_base_ = ['./_base_/retinanet_cmt.py', './_base_/coco_det_1x.py']

checkpoint = 'https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/cmt_small.pth'
model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.1,  # as in the ImageNet training
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[128, 256, 512]))

optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4))
