"""ADE20K in crops of 640x640; 160k iterations; 8 GPUs x 2 images."""
_base_ = ['mmseg::_base_/datasets/ade20k_640x640.py', './schedule_160k.py']

train_dataloader = dict(batch_size=2)

# For tools/test.py --tta. As in the official code, the ratios are of the size that is tested at
# otherwise; in mmseg's base they are of the size of the file. The official results with scales and
# flips look at whole images: add --cfg-options model.test_cfg.mode=whole.
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(int(2560 * r), int(640 * r)), keep_ratio=True)
             for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)],
            [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0., 1.)],
            [dict(type='LoadAnnotations', reduce_zero_label=True)],
            [dict(type='PackSegInputs')]
        ])
]
