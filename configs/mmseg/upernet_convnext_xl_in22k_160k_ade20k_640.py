"""UperNet with ConvNeXt-XL (IN-22K) on ADE20K: 640x640, 160k iterations, the official recipe.

Facebook's README: 53.6 mIoU, 54.0 with scales and flips. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmseg/upernet_convnext_xl_in22k_160k_ade20k_640.py 8
"""
_base_ = ['./_base_/upernet_convnext_640.py', './_base_/ade20k_640_160k.py']

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_xlarge_22k_224.pth'
model = dict(
    backbone=dict(
        arch='xlarge',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024))

optim_wrapper = dict(
    type='OptimWrapper',  # float32, as in the official recipe
    optimizer=dict(lr=8e-5, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='cmt_backbones.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise', num_layers=12))
