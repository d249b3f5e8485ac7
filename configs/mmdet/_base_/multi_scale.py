"""The two ways to train at many scales; each takes the place of `Resize` in a pipeline."""
multi_scale = dict(
    type='RandomChoiceResize',
    scales=[(1333, short) for short in range(480, 801, 32)],
    keep_ratio=True)

# Of DETR and Sparse R-CNN, as in the official recipes of ConvNeXt: half of the images are cropped.
multi_scale_crop = dict(
    type='RandomChoice',
    transforms=[
        [multi_scale],
        [
            dict(type='RandomChoiceResize',
                 scales=[(1333, short) for short in (400, 500, 600)],
                 keep_ratio=True),
            dict(type='RandomCrop',
                 crop_type='absolute_range',
                 crop_size=(384, 600),  # the least and the most, of height and width alike
                 allow_negative_crop=True),
            multi_scale,
        ],
    ])
