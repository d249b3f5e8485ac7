"""COCO boxes and masks, short side 480 to 800, half of the images cropped first; 36 epochs."""
_base_ = [
    'mmdet::_base_/datasets/coco_instance.py',
    './multi_scale.py',
    './schedule_3x.py',
    './runtime.py',
]

train_pipeline = [
    _base_.multi_scale_crop if step.type == 'Resize' else step for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
