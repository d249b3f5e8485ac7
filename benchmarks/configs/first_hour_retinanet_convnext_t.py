"""RetinaNet with ConvNeXt-T from a classifier trained here; see first_hour.md."""
_base_ = ['../../configs/mmdet/_base_/retinanet_convnext.py', './first_hour.py']

checkpoint = 'work_dirs/first_hour/convnext_tiny.pth'
norm_cfg = dict(type='GN', num_groups=32)  # a neck and a head that start anew learn much sooner with it
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[192, 384, 768], norm_cfg=norm_cfg),
    bbox_head=dict(num_classes=5, norm_cfg=norm_cfg))
train_cfg = dict(max_epochs=5, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=6e-4))
