"""RetinaNet with ConvNeXt-B: 12 epochs at one scale.

The recipe is ours: that of the official Mask R-CNN with ConvNeXt-T, but for the schedule, the scale
and the drop path (0.4).

No published result. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmdet/retinanet_convnext_b_1x.py 8
"""
_base_ = ['./_base_/retinanet_convnext.py', './_base_/coco_det_1x.py']

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_base_1k_224.pth'
model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[256, 512, 1024]))

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='cmt_backbones.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.95, decay_type='layer_wise', num_layers=12))
