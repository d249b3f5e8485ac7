"""UperNet with mmseg's ResNet-18 from scratch on CamVid; see benchmarks/camvid.md."""
_base_ = ['mmseg::_base_/models/upernet_r50.py', './camvid.py']

data_preprocessor = dict(size=(128, 160))
model = dict(
    data_preprocessor=data_preprocessor,
    pretrained=None,
    backbone=dict(depth=18),
    decode_head=dict(in_channels=[64, 128, 256, 512], channels=64, num_classes=11),
    auxiliary_head=dict(in_channels=256, channels=64, num_classes=11))
