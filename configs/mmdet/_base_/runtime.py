"""What all our detectors run with."""
_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['cmt_backbones', 'cmt_backbones.openmmlab'], allow_failed_imports=False)
# A checkpoint is whole or not there, whatever ends the process that writes it.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, backend_args=dict(backend='whole')))
custom_hooks = [
    dict(type='ResumableRandomness'),  # a resumed run goes on as one that never stopped
    dict(type='SaveOnSigterm'),
    dict(type='FiniteLossHook'),
    # Otherwise a class too many is an error inside a CUDA kernel.
    dict(type='NumClassCheckHook'),
]
