"""UperNet for the 150 classes of ADE20K, with an auxiliary FCN; the backbone is yet to be set."""
_base_ = 'mmseg::_base_/models/upernet_swin.py'

data_preprocessor = dict(size=(512, 512))
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
