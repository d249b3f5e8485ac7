"""UperNet on a ConvNeXt in crops of 512x512."""
_base_ = './upernet.py'

model = dict(backbone=dict(_delete_=True, type='ConvNeXt'))
