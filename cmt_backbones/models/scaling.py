"""Compound scaling of CMT: an arch of any cost (arXiv 2107.06263, section 3.4)."""
from .cmt import ARCHS

ALPHA, BETA, GAMMA = 1.2, 1.3, 1.15  # depth, width and resolution, each to the power of phi


def scaled_arch(phi: float) -> dict:
    """CMT-S made deeper, wider and for larger images together, at about 2.5**phi times its FLOPs.

    The paper scales so from CMT-S (phi = 0), and its CMT-Ti, XS and B are close to phi = -2, -1 and
    1; those are adjusted by hand, and are in ``ARCHS``. Here depths are rounded, and the resolution
    to multiples of 32, which alone can change the FLOPs by a sixth. The width, whose steps are fine,
    makes up for both. The FLOPs are in benchmarks/scaling.md.

    Args:
        phi (float): Negative for something smaller than CMT-S.

    Returns:
        dict: An ``arch`` for :class:`~cmt_backbones.CMT` and the classifier.
    """
    small = ARCHS['small']
    depths = tuple(max(1, round(depth * ALPHA**phi)) for depth in small['depths'])
    size = 32 * max(1, round(small['pretrain_img_size'] * GAMMA**phi / 32))
    rounding = (sum(depths) / (sum(small['depths']) * ALPHA**phi)
                * (size / (small['pretrain_img_size'] * GAMMA**phi))**2)
    # Even, as all of the paper's are; a head is as wide as the first stage in every stage.
    width = 2 * max(1, round(small['embed_dims'][0] * BETA**phi / rounding**.5 / 2))
    return dict(stem_channels=width // 2, embed_dims=(width, 2 * width, 4 * width, 8 * width),
                depths=depths, mlp_ratio=small['mlp_ratio'], pretrain_img_size=size)
