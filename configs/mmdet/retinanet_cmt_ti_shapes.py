"""RetinaNet with CMT-Ti from scratch on the scenes of tools/make_shapes.py: the demo.

Measured: box mAP 0.517, AP50 0.876, by `make demo` in 4 min 21 s of two cores (benchmarks/set_up.md); 0.518 and 0.874
on a processor without AVX-512, in 17 minutes of one; 0.543 and 0.893 by one process with 8 images a step, on 900
scenes. By hand:

    python tools/make_shapes.py work_dirs/demo/shapes --images 800 --val 100 --seed 0 --size 128x96
    tools/dist_train.sh configs/mmdet/retinanet_cmt_ti_shapes.py 2
"""
_base_ = ['./_base_/retinanet_cmt.py', './_base_/coco_det_1x.py']

# Narrower than for COCO: small images of five classes, and a CPU.
norm_cfg = dict(type='GN', num_groups=8)  # without ImageNet's weights it learns faster
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0., norm_eval=False),
    neck=dict(in_channels=[92, 184, 368], out_channels=96, num_outs=3, norm_cfg=norm_cfg),
    bbox_head=dict(
        num_classes=5,
        in_channels=96,
        feat_channels=96,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        # In a short run boxes get tighter by their overlap than by their offsets.
        reg_decoded_bbox=True,
        loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=2.0),
        anchor_generator=dict(octave_base_scale=3, ratios=[1.0], strides=[8, 16, 32])))  # 24 to 152 pixels

data_root = 'work_dirs/demo/shapes/'
classes = ('ellipse', 'rectangle', 'triangle', 'star', 'cross')
size = dict(type='Resize', scale=(128, 96), keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True), size,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'), size,
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(data_root=data_root, ann_file='annotations/train.json',
                 data_prefix=dict(img='images/train/'), metainfo=dict(classes=classes),
                 pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(data_root=data_root, ann_file='annotations/val.json',
                 data_prefix=dict(img='images/val/'), metainfo=dict(classes=classes),
                 pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=5)
# In 500 steps a short memory of the squared gradients helps; one kernel for all parameters saves a tenth of a step.
optim_wrapper = dict(optimizer=dict(lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=5, eta_min=1e-5,
         convert_to_iter_based=True)
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
