"""UperNet with CMT-B on ADE20K: 512x512, 160k iterations.

The recipe is ours: that of UperNet with Swin-T (AdamW 6e-5, weight decay 0.01), but for a drop path
of 0.25 instead of 0.3.

No published result. 8 GPUs x 2 images:

    tools/dist_train.sh configs/mmseg/upernet_cmt_b_160k_ade20k.py 8
"""
_base_ = ['./_base_/upernet_cmt.py', './_base_/ade20k_160k.py']

checkpoint = 'https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/cmt_base.pth'
model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.25,  # as in the ImageNet training
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    decode_head=dict(in_channels=[76, 152, 304, 608]),
    auxiliary_head=dict(in_channels=304))

optim_wrapper = dict(
    optimizer=dict(lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(
        norm_decay_mult=0., custom_keys={'relative_bias.table': dict(decay_mult=0.)}))
