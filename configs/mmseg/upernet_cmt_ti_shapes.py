"""UperNet with CMT-Ti from scratch on the scenes of tools/make_shapes.py: the demo.

    python tools/make_shapes.py work_dirs/demo/large_shapes --images 800 --val 100 --size 160x128
    tools/dist_train.sh configs/mmseg/upernet_cmt_ti_shapes.py 2
"""
_base_ = ['./_base_/upernet_cmt.py', './_base_/schedule_160k.py']

# Narrower than for ADE20K: small images of six classes, and a CPU.
norm_cfg = dict(type='GN', num_groups=8)  # four images a process are few for the heads' statistics
data_preprocessor = dict(size=(128, 160))
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(arch='tiny', drop_path_rate=0.),
    decode_head=dict(
        in_channels=[46, 92, 184, 368], channels=64, num_classes=6, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=184, channels=64, num_classes=6, norm_cfg=norm_cfg),
    test_cfg=dict(_delete_=True, mode='whole'))

metainfo = dict(
    classes=('background', 'ellipse', 'rectangle', 'triangle', 'star', 'cross'),
    palette=[[70, 70, 70], [230, 60, 60], [60, 120, 230], [60, 190, 80], [240, 200, 40],
             [190, 90, 210]])
data = dict(type='BaseSegDataset', data_root='work_dirs/demo/large_shapes', metainfo=metainfo)
size = dict(type='Resize', scale=(160, 128), keep_ratio=True)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **data, data_prefix=dict(img_path='images/train', seg_map_path='labels/train'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), size,
                  dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]))
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **data, data_prefix=dict(img_path='images/val', seg_map_path='labels/val'),
        pipeline=[dict(type='LoadImageFromFile'), size, dict(type='LoadAnnotations'),
                  dict(type='PackSegInputs')]))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

train_cfg = dict(max_iters=500, val_interval=500)
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=500)
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=500, max_keep_ckpts=1))
randomness = dict(seed=0)
