"""UperNet with mmdet's PVTv2-B1 on CamVid; see benchmarks/real_photos.md."""
_base_ = ['mmseg::_base_/models/upernet_r50.py', './camvid.py']

data_preprocessor = dict(size=(128, 160))
model = dict(
    data_preprocessor=data_preprocessor,
    pretrained=None,
    backbone=dict(_delete_=True, type='mmdet.PyramidVisionTransformerV2', embed_dims=64, num_layers=[2, 2, 2, 2],
                  drop_path_rate=0.),
    decode_head=dict(in_channels=[64, 128, 320, 512], channels=64, num_classes=11),
    auxiliary_head=dict(in_channels=320, channels=64, num_classes=11))
