"""RetinaNet with mmdet's ResNet-18 from scratch on BCCD; see benchmarks/bccd.md."""
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', './bccd.py']

model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512]),
    bbox_head=dict(num_classes=3))
