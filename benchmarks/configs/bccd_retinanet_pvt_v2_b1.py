"""RetinaNet with mmdet's PVTv2-B1 on BCCD; see benchmarks/real_photos.md."""
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', './bccd.py']

model = dict(
    backbone=dict(_delete_=True, type='PyramidVisionTransformerV2', embed_dims=64, num_layers=[2, 2, 2, 2],
                  drop_path_rate=0.),
    neck=dict(in_channels=[64, 128, 320, 512]),
    bbox_head=dict(num_classes=3))
