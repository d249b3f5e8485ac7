"""RetinaNet with a last stage so wide that its weights pass the 2 GB of one ONNX file; see benchmarks/export.md."""
_base_ = '../../configs/mmdet/retinanet_convnext_t_1x.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch=dict(embed_dims=(32, 64, 128, 4096), depths=(1, 1, 1, 4), use_grn=False),
        out_indices=(1, 2, 3)),
    neck=dict(in_channels=[64, 128, 4096]))
