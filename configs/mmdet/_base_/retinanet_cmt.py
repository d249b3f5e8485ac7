"""RetinaNet on the strides 8, 16 and 32 of a CMT."""
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='CMT',
        # Not (0, 1, 2, 3) with start_level=1: a first stage nobody reads gets no gradient in its
        # last layers' outputs, which DistributedDataParallel refuses.
        out_indices=(1, 2, 3),
        # Two images a GPU are too few for batch statistics; ImageNet's are kept, as mmdet's ResNets
        # do. The paper does not say.
        norm_eval=True),
    neck=dict(start_level=0))
