"""Cascade Mask R-CNN with ConvNeXt-T: 36 epochs at many scales, the official recipe.

Paper (arXiv 2201.03545, table 3): 50.4 box AP, 43.7 mask AP on COCO val2017. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmdet/cascade_mask_rcnn_convnext_t_ms_3x.py 8
"""
_base_ = ['./_base_/cascade_mask_rcnn_convnext.py', './_base_/coco_inst_ms_crop_3x.py']

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth'
model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[96, 192, 384, 768]))

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='cmt_backbones.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.7, decay_type='layer_wise', num_layers=6))
