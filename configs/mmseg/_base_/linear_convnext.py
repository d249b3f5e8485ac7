"""A linear layer on the last stage of a frozen ConvNeXt, for the 150 classes of ADE20K in crops of 512x512.

As DINOv3 evaluates (its eval/segmentation/configs/config-ade20k-linear-training.yaml): no auxiliary head, dropout of
0.1 before the layer. The LayerNorm of the output stands for the BatchNorm there; its own scale and offset, which
start anew and stay, are what a linear layer makes up for.
"""
_base_ = './upernet_convnext.py'

model = dict(
    backbone=dict(out_indices=(3, ), frozen_stages=4),
    decode_head=dict(
        _delete_=True,
        type='FCNHead',
        in_index=0,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=None)
