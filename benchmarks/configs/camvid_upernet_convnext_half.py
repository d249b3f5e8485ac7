"""UperNet with a ConvNeXt-T of half the widths on CamVid; see benchmarks/real_photos.md."""
_base_ = './camvid_upernet_convnext_t.py'

model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=(48, 96, 192, 384), depths=(3, 3, 9, 3), use_grn=False)),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192))
