"""On a GPU that is not there: tensors of CPU and GPU do not meet, nothing waits for a value, dtypes are as expected.

A fake tensor refuses both. Autograd's engine needs a driver, so that backward passes are called node by node
(`fake_gpu.gradients`); numbers need a GPU: `make gpu-report`.
"""
import mmdet.models  # noqa: F401
import pytest
import torch
from functorch.compile import aot_module_simplified, default_partition, make_boxed_func
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.utils import get_installed_path
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fake_gpu
import operator_cases
from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.models import attention, backbone, tracing

BACKBONES = {
    'CMT': (CMT, dict(stem_channels=8, embed_dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), mlp_ratio=2,
                      pretrain_img_size=64)),
    'ConvNeXt': (ConvNeXt, dict(embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), use_grn=False)),
    'ConvNeXt V2': (ConvNeXt, dict(embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), use_grn=True)),
}


@pytest.fixture(autouse=True)
def autocast_of_a_gpu(monkeypatch):
    monkeypatch.setattr('torch.cuda.amp.common.amp_definitely_not_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *args, **kwargs: True)
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)  # a training may have left it on


class Operators(TorchDispatchMode):
    """The names and the dtypes of what was computed on the GPU."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in args if isinstance(x, torch.Tensor) and x.is_cuda]
        if tensors:
            self.seen.append((str(func).split('.')[1], tensors[0].dtype))
        return func(*args, **(kwargs or {}))

    def dtypes(self, name):
        return {dtype for operator, dtype in self.seen if operator == name}


@pytest.mark.parametrize('amp', [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', BACKBONES)
def test_backbones(name, training, amp):
    family, arch = BACKBONES[name]
    mode = FakeTensorMode()
    model = fake_gpu.move(family(arch).train(training), mode)
    with mode, torch.set_grad_enabled(training), torch.autocast('cuda', amp, enabled=amp is not None):
        x = torch.randn(2, 3, 64, 96, device='cuda')
        with Operators() as operators:
            outs = model(x)
        if training:
            with torch.autocast('cuda', enabled=False), Operators() as backward:  # as mmengine calls it
                grads = fake_gpu.gradients(outs, [*model.parameters()])
    assert all(out.is_cuda and out.dtype == torch.float32 and out.is_contiguous() for out in outs)
    for product in ('convolution', 'addmm', 'gelu'):
        assert operators.dtypes(product) <= {amp or torch.float32}, product
    assert operators.dtypes('native_layer_norm') == {torch.float32}
    flash = {amp} if amp and name == 'CMT' else set()
    assert operators.dtypes('_scaled_dot_product_flash_attention') == flash
    if training:
        assert all(grad.is_cuda and grad.dtype == p.dtype and grad.shape == p.shape
                   for grad, p in zip(grads, model.parameters()))
        for product in ('convolution_backward', 'mm', 'gelu_backward'):
            assert backward.dtypes(product) <= {amp or torch.float32}, product
        assert backward.dtypes('native_layer_norm_backward') == {torch.float32}
        assert backward.dtypes('_scaled_dot_product_flash_attention_backward') == flash


@pytest.mark.parametrize('name', ['CMT', 'ConvNeXt'])
@pytest.mark.parametrize('amp', [None, torch.bfloat16], ids=str)
def test_the_joint_graph_of_a_compiler(name, amp, monkeypatch):
    """What torch.compile traces behind its frontend: forward and backward as one graph, by PyTorch's own operations."""
    family, arch = BACKBONES[name]
    monkeypatch.setattr(torch.autograd, 'grad', fake_gpu.gradients)
    mode = FakeTensorMode()
    model = fake_gpu.move(family(arch).train(), mode)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    def partition(joint, inputs, **kwargs):
        graphs.append(joint)
        return default_partition(joint, inputs, **kwargs)
    for module in (tracing, backbone):
        monkeypatch.setattr(module, 'is_compiling', lambda: True)
    with mode, torch.autocast('cuda', amp, enabled=amp is not None):
        aot_module_simplified(model, [torch.randn(2, 3, 64, 96, device='cuda')], fw_compiler=keep, bw_compiler=keep,
                              partition_fn=partition)
    targets = [str(node.target) for node in graphs[0].graph.nodes]
    assert any('convolution_backward' in target for target in targets)
    assert not any('aten.item' in target or '_local_scalar' in target for target in targets)
    devices = {node.meta['val'].device.type for node in graphs[0].graph.nodes
               if isinstance(node.meta.get('val'), torch.Tensor)}
    assert devices == {'cuda'}


@pytest.mark.parametrize('fixed, kind', [(False, attention.Flash), (True, attention.NarrowValues)])
def test_images_of_few_sizes_take_another_way(fixed, kind, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', fixed)
    mode = FakeTensorMode()
    stage = fake_gpu.move(CMT(BACKBONES['CMT'][1]), mode).stages[0]
    with mode, torch.autocast('cuda', torch.bfloat16):
        x = torch.randn(1, 16, 16, 24, device='cuda')
        bias = attention.prepare_bias(stage.relative_bias, ((16, 24), (2, 3)), 16, x)
    assert isinstance(bias, kind) and bias.query.dtype == torch.bfloat16 and bias.query.shape == (1, 384, 8)


@pytest.mark.parametrize('amp', [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', ['CMT', 'ConvNeXt'])
@pytest.mark.parametrize('base', ['retinanet_r50_fpn', 'mask-rcnn_r50_fpn'])
def test_detectors(base, name, training, amp, monkeypatch):
    """Up to what the heads predict, and back from the terms of their losses for targets that are given.

    What lies between cannot be faked: mmdet's choice of targets, of proposals and of the level of each region takes
    as many as there are, and waits for their number. Regions are therefore taken from the first level.
    """
    operator_cases.take_ours(monkeypatch)  # compiled ones know no fake tensors
    cfg = Config.fromfile(f'{get_installed_path("mmdet")}/.mim/configs/_base_/models/{base}.py').model
    family, arch = BACKBONES[name]
    first = cfg.neck.pop('start_level', 0)
    cfg.backbone = dict(type=family.__name__, arch=arch, out_indices=range(first, 4))
    cfg.neck.in_channels, cfg.neck.out_channels = list(arch['embed_dims'][first:]), 16
    head = cfg.get('rpn_head') or cfg.bbox_head
    head.in_channels, head.feat_channels, head.stacked_convs = 16, 16, 1
    if 'roi_head' in cfg:
        head.pop('stacked_convs')
        for part in ('bbox_roi_extractor', 'mask_roi_extractor'):
            cfg.roi_head[part].out_channels = 16
        cfg.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16)
        cfg.roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_convs=1)
    mode = FakeTensorMode()
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = fake_gpu.move(MODELS.build(cfg).train(training), mode)
    with mode, torch.set_grad_enabled(training), torch.autocast('cuda', amp, enabled=amp is not None):
        maps = model.extract_feat(torch.randn(2, 3, 64, 96, device='cuda'))
        dense = model.rpn_head if 'roi_head' in cfg else model.bbox_head
        predicted = dense(maps)
        terms = [term for one in zip(*predicted) for term in dense_losses(dense, *one)]
        if 'roi_head' in cfg:
            found, losses = regions(model.roi_head, maps)
            predicted, terms = (*predicted, found), [*terms, *losses]
        assert all(term.is_cuda and term.dtype == torch.float32 and term.shape == () for term in terms)
        if training:
            with torch.autocast('cuda', enabled=False):
                grads = fake_gpu.gradients([sum(terms)], [*model.parameters()], allow_unused=True)
            assert not [name for (name, _), grad in zip(model.named_parameters(), grads) if grad is None]
            assert all(grad.is_cuda and grad.dtype == torch.float32 for grad in grads)
    assert all(x.is_cuda and x.dtype == (amp or torch.float32) for maps in predicted for x in maps)


def dense_losses(head, scores, boxes):
    """Both terms of a level for targets that are given."""
    scores = scores.permute(0, 2, 3, 1).reshape(-1, head.cls_out_channels)
    boxes = boxes.permute(0, 2, 3, 1).reshape(-1, 4)
    # Of one class: in the shape of the scores, else mmdet would look for those that are not background.
    labels = torch.zeros(scores.shape[:1 + (scores.shape[1] == 1)], dtype=torch.long, device='cuda')
    return head.loss_cls(scores, labels), head.loss_bbox(boxes.float(), torch.zeros_like(boxes, dtype=torch.float32))


def regions(head, maps):
    """What the heads of four regions predict, and the terms of their losses."""
    places = torch.rand(4, 5, device='cuda')
    scores, boxes = head.bbox_head(head.bbox_roi_extractor.roi_layers[0](maps[0], places))
    masks = head.mask_head(head.mask_roi_extractor.roi_layers[0](maps[0], places))
    labels = torch.zeros(4, dtype=torch.long, device='cuda')
    losses = (head.bbox_head.loss_cls(scores, labels),
              head.bbox_head.loss_bbox(boxes.float(), torch.zeros_like(boxes, dtype=torch.float32)),
              head.mask_head.loss_mask(masks, torch.rand(4, 28, 28, device='cuda'), labels).sum())
    return (scores, boxes, masks), losses
