"""Training and evaluating classifiers by command: every recipe part, killed, resumed, by two processes."""
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

import tool
from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.data.classification import eval_loader, eval_transform, open_set
from cmt_backbones.models.scaling import scaled_arch
from cmt_backbones.training.evaluation import evaluate, read_classifier
from cmt_backbones.training.recipes import settings

PHI = -6
SMALL = ['--phi', str(PHI), '--img-size', '64', '--workers', '0']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Two classes of 24 + 7 drawn images: bright above, or bright below."""
    root = tmp_path_factory.mktemp('classes')
    generator = torch.Generator().manual_seed(0)
    for split, count in (('train', 24), ('val', 7)):
        for name in ('above', 'below'):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = 90 * torch.rand(48, 48, 3, generator=generator)
                pixels[:24] += 120 * (name == 'above')
                pixels[24:] += 120 * (name == 'below')
                Image.fromarray(pixels.byte().numpy()).save(root / split / name / f'{i}.png')
    return root


def start(*command):
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=tool.ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, env=dict(os.environ, OMP_NUM_THREADS='1'))


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def log(out):
    return [json.loads(line) for line in (out / 'log.jsonl').open()]


def read(path):
    return torch.load(path, weights_only=True)


def main(*argv):
    torch.set_num_threads(1)  # as the other processes, for sums in one order
    tool.run('train_classifier', *argv)


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('plain') / 'out'
    main(data, out, '--preset', 'plain', '--epochs', 6, '--lr', 3e-2, '--batch-size', 8, *SMALL)
    return out


def test_it_learns_and_is_evaluated(data, trained, capsys):
    lines = log(trained)
    assert [line['epoch'] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]['loss'] < lines[0]['loss']
    best = max(line['top1'] for line in lines)
    assert best > 85 and read(trained / 'best.pth')['classes'] == ['above', 'below']

    capsys.readouterr()
    tool.run('eval_imagenet', data, trained / 'best.pth', '--workers', '0', '--crop-pct', '1')
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result['images'] == 14 and result['size'] == [64, 64] and abs(result['top1'] - best) < 1e-3
    for bias in ('geometric', 'flat'):
        tool.run('eval_imagenet', data, trained / 'best.pth', '--workers', '0', '--img-size', '64', '96',
                 '--squash', '--bias-interpolation', bias)
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result['size'] == [64, 96] and result['bias'] == bias
        assert 0 <= result['top1'] <= result['top5'] == 100


def test_the_checkpoint_fills_a_backbone(trained):
    backbone = CMT(dict(scaled_arch(PHI), pretrain_img_size=64),
                   init_cfg=dict(type='Pretrained', checkpoint=str(trained / 'last.pth')))
    backbone.init_weights()
    state = read(trained / 'last.pth')['state_dict']
    assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())


def test_a_model_of_timm(data, tmp_path):
    out = tmp_path / 'out'
    arch = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    options = ['--preset', 'plain', '--batch-size', 8, '--img-size', '64', '--workers', '0', '--epochs', 2, '--model',
               'convnext_atto', '--model-kwargs', *(f'{k}={v}'.replace(' ', '') for k, v in arch.items())]
    main(data, out, *options, 'conv_mlp=False')
    assert [line['epoch'] for line in log(out)] == [1, 2]
    backbone = ConvNeXt(dict(depths=arch['depths'], embed_dims=arch['dims'], use_grn=False),
                        init_cfg=dict(type='Pretrained', checkpoint=str(out / 'best.pth')))
    backbone.init_weights()
    stem = read(out / 'best.pth')['state_dict']['stem.0.weight']
    assert torch.equal(backbone.downsample_layers[0][0].weight, stem)
    with pytest.raises(SystemExit, match=r"other settings of \['model_kwargs'\]"):
        main(data, out, *options, 'conv_mlp=True', '--resume')


EPOCHS = 5
RECIPE = ['--preset', 'small', '--epochs', EPOCHS, '--warmup-epochs', 1, '--cooldown-epochs', 0, '--ema', 0.9,
          '--batch-size', 8, '--clip-grad', 1, '--layer-decay', 0.8, '--amp', '--with-cp', *SMALL]


def test_a_killed_and_resumed_training_ends_with_the_same_weights(data, tmp_path):
    """With all parts: RandAugment, erasing, mixup, cutmix, repeated augmentation, EMA, drop path."""
    main(data, tmp_path / 'whole', *RECIPE)
    process = start('tools/train_classifier.py', data, tmp_path / 'killed', *RECIPE)
    deadline = time.time() + 200
    while not (tmp_path / 'killed' / 'last.pth').exists():
        assert process.poll() is None and time.time() < deadline, process.communicate()[0][-3000:]
        time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert read(tmp_path / 'killed' / 'last.pth')['epoch'] < EPOCHS

    main(data, tmp_path / 'killed', *RECIPE, '--resume')
    whole, resumed = (read(tmp_path / name / 'last.pth') for name in ('whole', 'killed'))
    for part in ('state_dict', 'training'):
        a, b = (saved[part] if part == 'state_dict' else saved[part]['model'] for saved in (whole, resumed))
        assert a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=1e-5, atol=1e-6) for k in a)
    ema, model = whole['state_dict'], whole['training']['model']
    assert any(not torch.equal(ema[k], model[k]) for k in ema)
    with pytest.raises(SystemExit, match=r"other settings of \['mixup'\]: {'mixup': 0.8}"):
        main(data, tmp_path / 'killed', *RECIPE, '--resume', '--mixup', 0.5)


def test_two_processes_see_each_image_once(data, trained, tmp_path):
    output = finish(start('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', 2,
                          'tools/train_classifier.py', data, tmp_path / 'out', '--preset', 'plain',
                          '--epochs', 1, '--batch-size', 8, '--pretrained', trained / 'best.pth', *SMALL))
    line, = log(tmp_path / 'out')
    assert line['top1'] * 14 / 100 == pytest.approx(round(line['top1'] * 14 / 100), abs=1e-3), output
    # Running averages are those of both processes: the file gives the accuracy that they found together.
    model = read_classifier(str(tmp_path / 'out' / 'best.pth'))
    val = open_set('folder', data, False, eval_transform(64, crop_pct=1.))
    alone = evaluate(model, eval_loader(val, 5, 0), torch.device('cpu'))
    assert alone['images'] == 14 and alone['top1'] == pytest.approx(line['top1'], abs=1e-3)


def test_presets_are_the_official_recipes():
    tiny, base = settings('tiny'), settings('base', epochs=5)
    assert (tiny.img_size, tiny.epochs, tiny.lr, tiny.min_lr, tiny.ema) == (160, 800, 8e-4, 1e-5, 0)
    assert (base.batch_size, base.drop_path, base.min_lr, base.ema, base.epochs) == (64, .25, 2e-5, .99996, 5)
    assert settings('small', phi=1).img_size == 256


@pytest.mark.parametrize('flags, message', [
    (['--batch-size', 7], 'must be even, not 7'),
    (['--batch-size', 64], '48 images are less than a step takes, 64 on each of 1 processes'),
    (['--preset', 'huge'], 'invalid choice'),
    (['--dataset', 'cifar10'], "cannot read the data set 'cifar10'"),
    (['--resume'], 'cannot resume .*last.pth'),
    (['--model', 'convnext_huge'], "timm cannot build 'convnext_huge' .*Unknown model"),
    (['--model', 'resnet18', '--model-kwargs', 'dims=3'], "timm cannot build 'resnet18' .*dims"),
    (['--model', 'resnet18', '--pretrained', 'x.pth'], '--pretrained is for CMT'),
])
def test_wrong_trainings(data, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as error:
        main(data, tmp_path / 'out', *SMALL, '--batch-size', 8, *flags)
    assert re.search(message, str(error.value) + capsys.readouterr().err)


def test_wrong_data(data, trained, tmp_path):
    with pytest.raises(SystemExit, match='cannot read the data set'):
        main(tmp_path, tmp_path / 'out', '--batch-size', 8, *SMALL)
    with pytest.raises(SystemExit, match=r'{\'below\'} are in one only'):
        (tmp_path / 'val').mkdir()
        (tmp_path / 'train').symlink_to(data / 'train')
        (tmp_path / 'val' / 'above').symlink_to(data / 'val' / 'above')
        main(tmp_path, tmp_path / 'out', '--batch-size', 8, *SMALL)
    with pytest.raises(SystemExit, match='has 2 classes, and the data set 1'):
        tool.run('eval_imagenet', tmp_path, trained / 'best.pth')
    torch.save(CMT(scaled_arch(PHI)).state_dict(), tmp_path / 'backbone.pth')
    with pytest.raises(SystemExit, match='it holds no classifier, only a backbone'):
        tool.run('eval_imagenet', data, tmp_path / 'backbone.pth')
