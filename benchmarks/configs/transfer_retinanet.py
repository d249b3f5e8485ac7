"""The detector of the demo on scenes of its own, by one process; see benchmarks/transfer.md."""
_base_ = '../../configs/mmdet/retinanet_cmt_ti_shapes.py'

root = 'work_dirs/transfer/scenes/'
train_dataloader = dict(batch_size=8, dataset=dict(data_root=root))  # the demo's two processes have 4 each
val_dataloader = dict(dataset=dict(data_root=root))
test_dataloader = dict(dataset=dict(data_root=root))
val_evaluator = dict(ann_file=root + 'annotations/val.json')
test_evaluator = dict(ann_file=root + 'annotations/val.json')
train_cfg = dict(val_interval=1)
