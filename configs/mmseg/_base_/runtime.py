"""What all our segmentors run with."""
_base_ = 'mmseg::_base_/default_runtime.py'

custom_imports = dict(imports=['cmt_backbones'], allow_failed_imports=False)
# A resumed run draws the random numbers of one that never stopped.
custom_hooks = [dict(type='ResumableRandomness')]
