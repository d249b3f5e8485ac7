"""What all our segmentors run with."""
_base_ = 'mmseg::_base_/default_runtime.py'

custom_imports = dict(imports=['cmt_backbones', 'cmt_backbones.openmmlab'], allow_failed_imports=False)
custom_hooks = [
    dict(type='ResumableRandomness'),  # a resumed run goes on as one that never stopped
    dict(type='SaveOnSigterm'),
    dict(type='FiniteLossHook'),
]
