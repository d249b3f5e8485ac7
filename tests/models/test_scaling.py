"""Compound scaling: the paper's factors, its FLOPs, and archs that build."""
import pytest
import torch
from hypothesis import given, settings, strategies as st

from cmt_backbones import CMT
from cmt_backbones.analysis.flops import count
from cmt_backbones.classifier import CMTClassifier
from cmt_backbones.models.cmt import ARCHS, NUM_HEADS
from cmt_backbones.models.options import check_cmt_arch
from cmt_backbones.models.scaling import ALPHA, BETA, GAMMA, scaled_arch


def gmacs(arch):
    with torch.device('meta'):
        model = CMTClassifier(arch).eval()
    return count(model, (arch['pretrain_img_size'], ) * 2)['gmacs']


def test_zero_is_cmt_s():
    assert scaled_arch(0) == ARCHS['small']


@settings(max_examples=60)
@given(st.floats(-6, 4))
def test_factors_and_what_must_divide(phi):
    arch = check_cmt_arch(scaled_arch(phi), NUM_HEADS)
    assert all(dim % heads == 0 for dim, heads in zip(arch['embed_dims'], NUM_HEADS))
    assert all(abs(d - s * ALPHA**phi) <= 0.5 or d == 1 for d, s in zip(arch['depths'], (3, 3, 16, 3)))
    assert abs(arch['pretrain_img_size'] - 224 * GAMMA**phi) <= 16
    if abs(phi) <= 3:  # the width makes up for the rounding of the others, a sixth at most
        assert 0.85 < arch['embed_dims'][0] / (64 * BETA**phi) < 1.18


@pytest.mark.parametrize('phi', [-3, -2, -1, -0.5, 0.5, 1, 2, 3])
def test_flops_follow_the_papers_law(phi):
    # alpha beta^1.5 gamma^2 is 2.35, which the paper takes for about 2.5: its tolerance by unit of phi.
    tolerance = (2.5 / (ALPHA * BETA**1.5 * GAMMA**2))**abs(phi)
    assert 1 / tolerance < gmacs(scaled_arch(phi)) / gmacs(ARCHS['small']) / 2.5**phi < tolerance


def test_backbone_and_classifier_build_from_it():
    arch, x = scaled_arch(-5), torch.randn(1, 3, 64, 96)
    maps, model = CMT(arch).eval()(x), CMTClassifier(arch, num_classes=3).eval()
    assert [m.shape[1] for m in maps] == list(arch['embed_dims']) and model(x).shape == (1, 3)
