"""The detector of the demo on scenes of its own, by one process; see benchmarks/transfer.md."""
_base_ = '../../configs/mmdet/retinanet_cmt_ti_shapes.py'

# What the demo had when this was measured.
model = dict(bbox_head=dict(reg_decoded_bbox=False, loss_bbox=dict(_delete_=True, type='L1Loss', loss_weight=1.0)))
root = 'work_dirs/transfer/scenes/'
load = dict(type='LoadImageFromFile')
boxes = dict(type='LoadAnnotations', with_bbox=True)
size = dict(type='Resize', scale=(160, 128), keep_ratio=True)
train_dataloader = dict(  # the demo's two processes have 4 each
    batch_size=8,
    dataset=dict(data_root=root, pipeline=[load, boxes, size, dict(type='RandomFlip', prob=0.5),
                                           dict(type='PackDetInputs')]))
val_dataloader = dict(dataset=dict(data_root=root, pipeline=[load, size, boxes, dict(
    type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))
val_evaluator = dict(ann_file=root + 'annotations/val.json')
test_evaluator = dict(ann_file=root + 'annotations/val.json')
train_cfg = dict(max_epochs=5, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=5, eta_min=1e-5,
         convert_to_iter_based=True)
]
