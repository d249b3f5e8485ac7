"""torch.compile takes either backbone as one graph, for images of any size."""
import copy
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.models import cmt

CMT_ARCH = dict(stem_channels=4, embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), mlp_ratio=2,
                pretrain_img_size=64)
CONVNEXT_ARCH = dict(embed_dims=(4, 8, 16, 32), depths=(1, 1, 1, 1), use_grn=False)


@pytest.mark.timeout(1200)  # the compiler's own time, on slow processors minutes
@pytest.mark.parametrize('family, arch, with_cp', [
    (partial(CMT, out_indices=(0, 1)), CMT_ARCH, True),
    (ConvNeXt, CONVNEXT_ARCH, False),
    (ConvNeXt, dict(CONVNEXT_ARCH, use_grn=True), True),
], ids=['CMT', 'ConvNeXt', 'ConvNeXt V2'])
def test_one_graph_for_many_sizes(family, arch, with_cp, monkeypatch):
    # Two stages have every operation of CMT's four, and the compiler takes minutes for each: keys from a smaller map,
    # as in the first three, and from the map itself, as in the last.
    monkeypatch.setattr(cmt, 'REDUCTIONS', (8, 1))
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = family(arch, drop_path_rate=0., with_cp=with_cp)
    eager = copy.deepcopy(model)
    # aot_eager: all of the compiler but its code generation, which takes minutes.
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend='aot_eager')
    counters.clear()
    for size in [(96, 128), (160, 96)]:
        x = torch.randn(2, 3, *size)
        outs, expected = compiled(x), eager(x)
        for out, want in zip(outs, expected):
            assert out.is_contiguous() and (out - want).norm() < 1e-5 * want.norm()
        for some in (outs, expected):
            sum(out.square().mean() for out in some).backward()
    assert counters['stats']['unique_graphs'] == 1
    whole = torch.cat([p.grad.flatten() for p in eager.parameters()]).norm()
    for p, want in zip(model.parameters(), eager.parameters()):
        assert (p.grad - want.grad).norm() < 2e-5 * want.grad.norm() + 1e-6 * whole
    # and running averages count every batch once
    for buffer, want in zip(model.buffers(), eager.buffers()):
        assert torch.allclose(buffer, want, rtol=1e-4, atol=1e-5)
