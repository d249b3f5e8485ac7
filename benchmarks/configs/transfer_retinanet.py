"""The detector of the demo on scenes of its own, by one process; see benchmarks/transfer.md."""
_base_ = '../../configs/mmdet/retinanet_cmt_ti_shapes.py'

root = 'work_dirs/transfer/scenes/'
train_dataloader = dict(batch_size=8, dataset=dict(data_root=root))  # the demo's two processes have 4 each
val_dataloader = dict(dataset=dict(data_root=root))
test_dataloader = dict(dataset=dict(data_root=root))
val_evaluator = dict(ann_file=root + 'annotations/val.json')
test_evaluator = dict(ann_file=root + 'annotations/val.json')
train_cfg = dict(max_epochs=5, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=5, eta_min=1e-5,
         convert_to_iter_based=True)
]
