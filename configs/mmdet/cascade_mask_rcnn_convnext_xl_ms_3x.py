"""Cascade Mask R-CNN with ConvNeXt-XL of ImageNet-22K: 36 epochs at many scales, official recipe.

Paper (arXiv 2201.03545, table 3): 55.2 box AP, 47.7 mask AP on COCO val2017. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmdet/cascade_mask_rcnn_convnext_xl_ms_3x.py 8
"""
_base_ = ['./_base_/cascade_mask_rcnn_convnext.py', './_base_/coco_inst_ms_crop_3x.py']

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_xlarge_22k_224.pth'
model = dict(
    backbone=dict(
        arch='xlarge',
        drop_path_rate=0.8,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[256, 512, 1024, 2048]))

optim_wrapper = dict(
    type='OptimWrapper',  # float32, as in the official recipe
    optimizer=dict(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='cmt_backbones.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.7, decay_type='layer_wise', num_layers=12))
