"""61 drawn scenes of 320x240 with polygons, 20 to look at; what the two detectors of first_hour.md share."""
_base_ = '../../configs/mmdet/_base_/small_data.py'

classes = ('ellipse', 'rectangle', 'triangle', 'star', 'cross')
root = 'work_dirs/first_hour/scenes/'
load = dict(type='LoadImageFromFile')
resize = dict(type='Resize', scale=(320, 240), keep_ratio=True)
boxes = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
train = dict(
    data_root=root, ann_file='annotations/train.json', data_prefix=dict(img='images/train/'),
    metainfo=dict(classes=classes),
    pipeline=[load, boxes, resize, dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')])
val = dict(
    data_root=root, ann_file='annotations/val.json', data_prefix=dict(img='images/val/'),
    metainfo=dict(classes=classes),
    pipeline=[load, resize, boxes, dict(
        type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))])
train_dataloader = dict(batch_size=2, num_workers=1, dataset=train)  # more steps in ten minutes than with 4
val_dataloader = dict(num_workers=1, dataset=val)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=root + 'annotations/val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=8, val_interval=8)
optim_wrapper = dict(optimizer=dict(lr=4e-4))
randomness = dict(seed=0)
