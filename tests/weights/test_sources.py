"""Files by URL, by name on a hub, and by mmengine's schemes: what is taken, and one line for each fault."""
import hashlib
import http.server
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from mmengine.fileio import BaseStorageBackend
from mmengine.fileio.backends import backends, prefix_to_backends, register_backend
from mmengine.logging import MMLogger
from safetensors.torch import save as safetensors
from test_pretrained import SMALL, small_state

import hub_server
import layouts
from cmt_backbones import CMT
from cmt_backbones.weights import WeightsNotFound, load_pretrained, local_file, read_checkpoint
from cmt_backbones.weights.downloads import download, file_name, sha256_in


def official_small(seed=5):
    torch.manual_seed(seed)
    return {'model': layouts.official_cmt(small_state())}


def table(seed):
    return official_small(seed)['model']['relative_pos_a']


def saved(path, content):
    torch.save(content, path)
    return path.read_bytes()


def filled(checkpoint):
    model = CMT(SMALL, init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    model.init_weights()
    return model.stages[0].relative_bias.table


@pytest.fixture
def logged():
    """The lines that mmengine's current logger gets."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


# ------------------------------------------------------------------ from the web


class Server(http.server.BaseHTTPRequestHandler):
    contents, requests = {}, 0

    def do_GET(self):
        type(self).requests += 1
        content = self.contents.get(self.path.partition('?')[0])
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[:len(content) // 2] if 'half' in self.path else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    content = saved(tmp_path / 'file.pth', official_small())
    Server.contents, Server.requests = {'/cmt.pth': content, '/half.pth': content}, 0
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def test_a_url_is_fetched_once(web, logged):
    for _ in range(2):
        assert torch.equal(filled(f'{web}/cmt.pth?download=1'), table(5))
    assert Server.requests == 1
    assert logged[0].startswith(f'downloading {web}/cmt.pth?download=1 to ')
    assert sum(line.startswith(f'{web}/cmt.pth?download=1: taking ') for line in logged) == 2


def test_two_urls_of_one_last_part_are_two_files(web, tmp_path):
    for seed, host in ((1, 'a'), (2, 'b')):
        state = {k: v.contiguous() for k, v in official_small(seed)['model'].items()}
        Server.contents[f'/{host}/model.safetensors'] = safetensors(state)
    for _ in range(2):
        for seed, host in ((1, 'a'), (2, 'b')):
            assert torch.equal(filled(f'{web}/{host}/model.safetensors'), table(seed))
    assert Server.requests == 2
    assert len({download(f'{web}/{host}/model.safetensors') for host in 'ab'}) == 2
    first, second = download(f'{web}/cmt.pth?version=1'), download(f'{web}/cmt.pth?version=2')
    assert first != second and first.name == second.name == 'cmt.pth'


def test_a_file_put_there_by_hand(web, tmp_path, logged):
    folder = tmp_path / 'torch/hub/checkpoints'
    folder.mkdir(parents=True)
    saved(folder / 'cmt_tiny.pth', official_small(9))
    assert torch.equal(filled('http://127.0.0.1:9/never/cmt_tiny.pth'), table(9))
    assert f'taking {folder}/cmt_tiny.pth, which was put there' in logged[0]

    saved(folder / 'cmt.pth', official_small(9))
    (folder / 'cmt.pth.lock').touch()  # as version 0.1.0 left it, whatever the URL was
    assert torch.equal(filled(f'{web}/cmt.pth'), table(5))
    with pytest.raises(WeightsNotFound, match=r'kept by its name alone; if it is this .* remove .*cmt.pth.lock'):
        filled('http://127.0.0.1:9/cmt.pth')


def test_a_cache_that_is_only_read(web, tmp_path):
    """As another user's: neither a lock nor a new file is needed for what is there."""
    path = download(f'{web}/cmt.pth')
    for file in path.parent.iterdir():
        if file != path:
            file.unlink()
    before = set((tmp_path / 'torch').rglob('*'))
    assert download(f'{web}/cmt.pth') == path and set((tmp_path / 'torch').rglob('*')) == before


def test_only_one_fetches(web):
    """A lock of its own for each, as for processes."""
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(download, [f'{web}/cmt.pth'] * 8))
    assert Server.requests == 1 and len(paths) == 1


def test_without_fcntl(web, monkeypatch):
    """As on Windows."""
    for name in [name for name in sys.modules if name.partition('.')[0] == 'filelock']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'fcntl', None)
    with pytest.warns(UserWarning, match='only soft file lock is available'):
        assert torch.equal(filled(f'{web}/cmt.pth'), table(5))
    assert sys.modules['filelock'].FileLock is sys.modules['filelock'].SoftFileLock


@pytest.mark.parametrize('name, message', [
    ('missing.pth', r'the download failed \(HTTP Error 404.*without internet, put the file at .*missing.pth'),
    ('half.pth', r'broke off after \d+ of \d+ bytes; try again'),
    ('cmt.pth#sha256=0123abcd', r'its SHA-256 is [0-9a-f]{64}, and 0123abcd was expected: the server sent another'),
    ('cmt.pth#sha256=short', r'#sha256= wants the first 8 to 64 digits of the SHA-256'),
])
def test_a_failed_download_leaves_nothing(web, name, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained(CMT(SMALL), f'{web}/{name}')
    assert isinstance(caught.value, OSError) == ('sha256' not in name) and '\n' not in str(caught.value)
    assert [p.name for p in (tmp_path / 'torch').rglob('*') if p.is_file() and p.suffix != '.lock'] == []


def test_checksums(web, tmp_path):
    content = Server.contents['/cmt.pth']
    sha256 = hashlib.sha256(content).hexdigest()
    assert torch.equal(filled(f'{web}/cmt.pth#sha256={sha256}'), table(5))
    Server.contents[f'/cmt-{sha256[:8]}.pth'] = content
    assert torch.equal(filled(f'{web}/cmt-{sha256[:8]}.pth'), table(5))
    Server.contents['/cmt-0123abcd.pth'] = content
    with pytest.raises(ValueError, match='and 0123abcd was expected'):
        filled(f'{web}/cmt-0123abcd.pth')
    copy = download(f'{web}/cmt.pth')
    copy.write_bytes(content + b'.')
    with pytest.raises(ValueError, match=rf'{copy} is another file or damaged; remove it to fetch it again'):
        filled(f'{web}/cmt.pth#sha256={sha256}')
    local = tmp_path / 'file.pth'
    assert torch.equal(filled(f'{local}#sha256={sha256[:12]}'), table(5))
    with pytest.raises(ValueError, match='it is another file, or damaged'):
        filled(f'{local}#sha256={"0" * 64}')


@pytest.mark.parametrize('name, sha256', [
    ('convnext-tiny_in1k_20220301-795e9634.pth', '795e9634'), ('best_epoch-20220301.pth', None),
    ('model.safetensors', None), ('cmt-deadbeef01.safetensors', 'deadbeef01'), ('cmt-s-1k.pth', None)])
def test_the_checksum_in_a_name(name, sha256):
    assert sha256_in(name) == sha256


@pytest.mark.parametrize('url, name', [
    ('https://host/a/b.pth?x=1', 'b.pth'), ('https://host/', 'weights'), ('https://host/a/%2E%2E', 'weights'),
    ('https://host/a%2Fb:c.pth', 'a_b_c.pth')])
def test_the_name_of_a_download(url, name):
    assert file_name(url) == name


def test_a_web_page_instead_of_the_file(web):
    Server.contents['/page.pth'] = b'<html>please log in</html>'
    with pytest.raises(ValueError, match=r'a web page.*its copy is .*page.pth; remove that'):
        load_pretrained(CMT(SMALL), f'{web}/page.pth')


# ------------------------------------------------------------------ from a hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server.running() as server:
        hub_server.use(server, tmp_path / 'home', monkeypatch)
        yield server


def test_names_on_a_hub(hub, tmp_path, monkeypatch):
    weights = {seed: saved(tmp_path / 'file.pth', official_small(seed)) for seed in (1, 2)}
    state = {k: v.contiguous() for k, v in official_small(3)['model'].items()}
    hub.add('me/cmt', model__safetensors=safetensors(state), old__pth=weights[1], README__md=b'#')
    hub.add('me/only', README__md=b'#', best__pth=weights[2])
    names = {'hf-hub:me/cmt': 3, 'hf-hub:me/cmt/old.pth': 1, 'hf-hub:me/cmt@v1/old.pth': 1, 'hf-hub:me/only@main': 2}
    for name, seed in names.items():
        assert torch.equal(filled(name), table(seed))
    downloads = [path for command, path in hub.requests if command == 'GET' and '/resolve/' in path]
    assert len(downloads) == 3  # by hash: v1 and main are one commit
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    asked = len(hub.requests)
    for name, seed in names.items():
        assert torch.equal(filled(name), table(seed))
    assert len(hub.requests) == asked


def test_a_name_of_timm(hub, tmp_path):
    timm = pytest.importorskip('timm')
    model = timm.create_model('convnext_atto')
    hub.add('timm/convnext_atto.d2_in1k', model__safetensors=safetensors(model.state_dict()))
    state = read_checkpoint('timm:convnext_atto.d2_in1k')
    assert torch.equal(state['stem.0.weight'], model.state_dict()['stem.0.weight'])


FAULTS = {
    'hf-hub:me/gated': r'me/gated is gated: accept its licence at http.*me/gated and log in, by `hf auth login`',
    'hf-hub:me/absent': 'there is no http.*me/absent, or it is private: check the name, or log in',
    'hf-hub:me/cmt@v9': "me/cmt has no revision 'v9'; see http.*/me/cmt/commits/main",
    'hf-hub:me/cmt/none.pth': "me/cmt has no file 'none.pth'; it has model.safetensors, README.md",
    'hf-hub:me/empty': r'me/empty has no weights \(.safetensors, .pth, .pt, .bin\); it has README.md',
    'hf-hub:me/two': 'several files of weights; name one of them: hf-hub:me/two/a.pth, hf-hub:me/two/b.pth',
    'hf-hub:me/pieces': 'me/pieces has its weights in several pieces',
    'hf-hub:cmt': "'cmt' is no name on a hub: expected hf-hub:OWNER/NAME, with @REVISION and /FILE",
    'hf-hub:me/--cmt.': "'me/--cmt.' is no name on a hub",
    'hf-hub:me/cmt/README.md': "'me/cmt/README.md' is no name on a hub",
    'timm:resnet_9000': "timm .* has no weights of the name 'resnet_9000'",
    'timm:convnext_tiny.mine': "has no weights of the name 'convnext_tiny.mine'; it has convnext_tiny.dinov3",
    'gopher://cmt.pth': 'nothing here reads gopher://; expected a path, a URL, hf-hub:OWNER/NAME, timm:MODEL',
    's3://bucket/cmt.pth': "mmengine's backend for s3:// cannot read it",
    'open-mmlab://resnet5_caffe': "table of open-mmlab:// has no 'resnet5_caffe'; it has .*resnet50_caffe",
    'file:///nowhere/cmt.pth': 'there is no such file',
    'nowhere/cmt.pth': 'there is no such file',
    'http://127.0.0.1:9/never.pth': 'the download failed .*without internet, put the file at .*never.pth',
}


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_is_one_line(name, hub):
    hub.add('me/cmt', model__safetensors=b'x', README__md=b'#')
    hub.add('me/gated', model__safetensors=b'x')
    hub.gated.add('me/gated')
    hub.add('me/empty', README__md=b'#')
    hub.add('me/two', a__pth=b'x', b__pth=b'y')
    hub.add('me/pieces', **{'model__safetensors__index__json': b'{}', 'model-00001-of-2__safetensors': b''})
    with pytest.raises(WeightsNotFound, match=FAULTS[name]) as caught:
        filled(name)
    assert isinstance(caught.value, FileNotFoundError) and isinstance(caught.value, ValueError)
    assert '\n' not in str(caught.value) and str(caught.value).startswith(f'cannot load {name!r} into CMT: ')


def test_offline_without_a_copy(hub, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    for name in ('hf-hub:me/cmt', 'hf-hub:me/cmt/model.safetensors'):
        with pytest.raises(WeightsNotFound, match='HF_HUB_OFFLINE is set, and the cache .* has no copy of me/cmt'):
            filled(name)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(WeightsNotFound, match='cannot be reached, and the cache .*, or HF_ENDPOINT for a mirror'):
        filled('hf-hub:me/cmt')


def test_a_file_of_a_hub_that_is_not_the_one(hub):
    hub.add('me/cmt', **{'cmt-0123abcd__pth': b'another'})
    with pytest.raises(ValueError, match=r'and 0123abcd was expected: .*cmt-0123abcd.pth is another file or damaged'):
        filled('hf-hub:me/cmt')


@pytest.mark.parametrize('package, name', [('huggingface_hub', 'hf-hub:me/cmt'), ('timm', 'timm:convnext_atto')])
def test_what_a_name_needs(package, name, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(WeightsNotFound, match=f'needs `pip install {package}`'):
        filled(name)


# ------------------------------------------------------------------ by the schemes of mmengine


class Store(BaseStorageBackend):
    """A project's own store of files."""
    contents = {}

    def get(self, filepath):
        return self.contents[filepath]

    def get_text(self, filepath, encoding='utf-8'):
        return self.get(filepath).decode(encoding)


@pytest.fixture
def store(tmp_path, monkeypatch):
    for known in (backends, prefix_to_backends):
        monkeypatch.delitem(known, 'store', raising=False)
    register_backend('store', Store, prefixes='store', force=True)
    Store.contents = {'store://x/cmt.pth': saved(tmp_path / 'file.pth', official_small())}
    yield
    backends.pop('store'), prefix_to_backends.pop('store')


def test_what_a_backend_of_mmengine_reads(store, tmp_path):
    assert torch.equal(filled('store://x/cmt.pth'), table(5))
    with local_file('store://x/cmt.pth') as path:
        assert path.read_bytes() == Store.contents['store://x/cmt.pth']
    assert not path.exists()
    state = {k: v.contiguous() for k, v in official_small()['model'].items()}
    Store.contents['store://x/of_no_name'] = safetensors(state)
    assert torch.equal(filled('store://x/of_no_name'), table(5))
    with pytest.raises(WeightsNotFound, match="mmengine's backend for store:// cannot read it"):
        filled('store://x/other.pth')


def test_a_file_url(tmp_path):
    path = tmp_path / 'with space.pth'
    saved(path, official_small())
    assert torch.equal(filled(path.as_uri()), table(5))
    assert torch.equal(filled(str(path)), table(5)) and Path(path.as_uri()[7:]) != path


def test_a_name_of_mmengines_tables(web, monkeypatch):
    from mmengine.runner import checkpoint
    monkeypatch.setattr(checkpoint, 'get_external_models', lambda: {'mine/cmt': f'{web}/cmt.pth'})
    assert torch.equal(filled('open-mmlab://mine/cmt'), table(5))
    assert torch.equal(filled('openmmlab://mine/cmt'), table(5))
