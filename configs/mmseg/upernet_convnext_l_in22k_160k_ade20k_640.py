"""UperNet with ConvNeXt-L (IN-22K) on ADE20K: 640x640, 160k iterations, the official recipe.

Facebook's README: 53.2 mIoU, 53.7 with scales and flips. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmseg/upernet_convnext_l_in22k_160k_ade20k_640.py 8
"""
_base_ = ['./_base_/upernet_convnext_640.py', './_base_/ade20k_640_160k.py']

checkpoint = 'https://dl.fbaipublicfiles.com/convnext/convnext_large_22k_224.pth'
model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768))

optim_wrapper = dict(
    type='OptimWrapper',  # float32, as in the official recipe
    optimizer=dict(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='cmt_backbones.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise', num_layers=12))
