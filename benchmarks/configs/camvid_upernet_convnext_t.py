"""UperNet with ConvNeXt-T from scratch on CamVid; see benchmarks/camvid.md."""
_base_ = ['../../configs/mmseg/_base_/upernet_convnext.py', './camvid.py']

data_preprocessor = dict(size=(128, 160))
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(arch='tiny', drop_path_rate=0.),
    decode_head=dict(in_channels=[96, 192, 384, 768], channels=64, num_classes=11),
    auxiliary_head=dict(in_channels=384, channels=64, num_classes=11),
    test_cfg=dict(_delete_=True, mode='whole'))
