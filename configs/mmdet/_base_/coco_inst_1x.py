"""COCO boxes and masks, single scale 1333x800; 12 epochs."""
_base_ = ['mmdet::_base_/datasets/coco_instance.py', './schedule_1x.py', './runtime.py']
