"""UperNet on a CMT in crops of 512x512."""
_base_ = './upernet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='CMT',
        # 16 crops are enough for batch statistics when they are taken over all GPUs, as mmseg's
        # ResNets do. On few GPUs, norm_eval=True keeps ImageNet's, as in our detectors.
        norm_cfg=dict(type='SyncBN')))
