"""RetinaNet with ConvNeXt-S: 12 epochs at one scale.

The recipe is ours: that of the official Mask R-CNN with ConvNeXt-T, but for the schedule, the scale
and the drop path (0.3).

No published result. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmdet/retinanet_convnext_s_1x.py 8
"""
_base_ = ['./_base_/retinanet_convnext.py', './_base_/coco_det_1x.py']

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_small_1k_224.pth'
model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[192, 384, 768]))

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='cmt_backbones.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.95, decay_type='layer_wise', num_layers=12))
