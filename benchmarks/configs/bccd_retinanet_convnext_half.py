"""RetinaNet with a ConvNeXt-T of half the widths on BCCD; see benchmarks/real_photos.md."""
_base_ = './bccd_retinanet_convnext_t.py'

model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=(48, 96, 192, 384), depths=(3, 3, 9, 3), use_grn=False)),
    neck=dict(in_channels=[96, 192, 384]))
