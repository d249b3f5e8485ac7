"""UperNet on a ConvNeXt in crops of 640x640."""
_base_ = './upernet_convnext.py'

data_preprocessor = dict(size=(640, 640))
model = dict(
    data_preprocessor=data_preprocessor,
    test_cfg=dict(crop_size=(640, 640), stride=(426, 426)))
