"""Mask R-CNN on the strides 4 to 32 of a ConvNeXt."""
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(backbone=dict(_delete_=True, type='ConvNeXt', out_indices=(0, 1, 2, 3)))
