"""RetinaNet with CMT-Ti from scratch on BCCD; see benchmarks/bccd.md."""
_base_ = ['../../configs/mmdet/_base_/retinanet_cmt.py', './bccd.py']

model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0., norm_eval=False),
    neck=dict(in_channels=[92, 184, 368]),
    bbox_head=dict(num_classes=3))
