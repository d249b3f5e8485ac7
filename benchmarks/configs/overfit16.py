"""16 photos of COCO (52 objects of 29 classes), learned by heart: trained and evaluated on the same.

At a short side of 192, from scratch, 30 epochs of 20 steps of 4 photos, evaluated at the end.
"""
_base_ = '../../configs/mmdet/_base_/coco_inst_1x.py'

data_root = 'data/coco_mini/'
ann_file = 'annotations/overfit16.json'
resize = dict(type='Resize', scale=(288, 192), keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True), resize,
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'), resize,
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
split = dict(
    type='CocoDataset', data_root=data_root, ann_file=ann_file, data_prefix=dict(img='images/'))
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    # An epoch costs a checkpoint and a restart of the workers, and 16 photos are 4 steps.
    dataset=dict(_delete_=True, type='RepeatDataset', times=5,
                 dataset=dict(**split, pipeline=train_pipeline)))
val_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(**split, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + ann_file)
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.), clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=30, T_max=30, eta_min=1e-5,
         convert_to_iter_based=True)
]
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=10, max_keep_ckpts=1))
randomness = dict(seed=0)
