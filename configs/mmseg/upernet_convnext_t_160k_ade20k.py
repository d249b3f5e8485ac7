"""UperNet with ConvNeXt-T on ADE20K: 512x512, 160k iterations, the official recipe.

Facebook's README: 46.0 mIoU, 46.7 with scales and flips. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmseg/upernet_convnext_t_160k_ade20k.py 8
"""
_base_ = ['./_base_/upernet_convnext.py', './_base_/ade20k_160k.py']

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth'
model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='cmt_backbones.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise', num_layers=6))
