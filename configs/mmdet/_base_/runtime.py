"""What all our detectors run with."""
_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['cmt_backbones'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
# A resumed run draws the random numbers of one that never stopped.
custom_hooks = [dict(type='ResumableRandomness')]
