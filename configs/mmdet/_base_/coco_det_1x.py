"""COCO boxes, single scale 1333x800; 12 epochs, steps at 8 and 11; AdamW; 8 GPUs x 2 images."""
_base_ = [
    'mmdet::_base_/datasets/coco_detection.py', 'mmdet::_base_/schedules/schedule_1x.py',
    './runtime.py'
]

optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4))
