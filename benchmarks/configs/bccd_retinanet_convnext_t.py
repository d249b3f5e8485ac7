"""RetinaNet with ConvNeXt-T from scratch on BCCD; see benchmarks/export.md."""
_base_ = ['../../configs/mmdet/_base_/retinanet_convnext.py', './bccd.py']

model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.),
    neck=dict(in_channels=[192, 384, 768]),
    bbox_head=dict(num_classes=3))
