"""Mask R-CNN on the strides 4 to 32 of a CMT."""
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='CMT',
        out_indices=(0, 1, 2, 3),
        # Two images a GPU are too few for batch statistics; ImageNet's are kept, as mmdet's ResNets
        # do. The paper does not say.
        norm_eval=True))
