"""RetinaNet on the strides 8, 16 and 32 of a ConvNeXt."""
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        # Not (0, 1, 2, 3) with start_level=1: norm0 would get no gradient, which
        # DistributedDataParallel refuses.
        out_indices=(1, 2, 3)),
    neck=dict(start_level=0))
