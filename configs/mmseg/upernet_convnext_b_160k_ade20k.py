"""UperNet with ConvNeXt-B on ADE20K: 512x512, 160k iterations, the official recipe.

Facebook's README: 49.1 mIoU, 49.9 with scales and flips. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmseg/upernet_convnext_b_160k_ade20k.py 8
"""
_base_ = ['./_base_/upernet_convnext.py', './_base_/ade20k_160k.py']

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_base_1k_224.pth'
model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='cmt_backbones.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise', num_layers=12))
