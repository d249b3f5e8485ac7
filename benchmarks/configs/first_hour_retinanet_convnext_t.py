"""RetinaNet with ConvNeXt-T from a classifier trained here; see first_hour.md."""
_base_ = ['../../configs/mmdet/_base_/retinanet_convnext.py', './first_hour.py']

checkpoint = 'work_dirs/first_hour/convnext_tiny.pth'
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[192, 384, 768]),
    bbox_head=dict(num_classes=5))
