"""AdamW, 160k iterations: warmup of 1500, then linearly to 0. The rates are for 16 images."""
_base_ = ['mmseg::_base_/schedules/schedule_160k.py', './runtime.py']

optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW'))
# The two multiply. As in the official ConvNeXt and Swin code the decay starts with the warmup;
# mmseg's own configs let it start afterwards.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=160000)
]
# A checkpoint is whole or not there, whatever ends the process that writes it.
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=3, save_best='mIoU', backend_args=dict(backend='whole')))
auto_scale_lr = dict(enable=False, base_batch_size=16)
