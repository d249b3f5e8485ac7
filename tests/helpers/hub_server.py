"""A hub on 127.0.0.1 that the real huggingface_hub reads from and publishes to."""
import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import threading
from urllib.parse import unquote, urlparse

COMMIT = '0123456789abcdef' * 2 + '01234567'  # the only one


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by name, each a dict of contents by file; `gated` ones list their files and give none."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.repositories, self.gated, self.requests, self.read_only = {}, set(), [], False
        self.endpoint = f'http://127.0.0.1:{self.server_port}'

    def add(self, name, **files):
        self.repositories[name] = {file.replace('__', '.'): content for file, content in files.items()}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def answer(self, content, status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {'Content-Length': len(content), **headers}.items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)

    def refuse(self, status, code):
        self.answer({'error': code}, status, X_Error_Code=code, X_Error_Message=code)

    def files_of(self, repository, revision):
        """The files of a repository, or None after an answer that there are none."""
        if repository not in self.server.repositories:
            return self.refuse(404, 'RepoNotFound')
        if revision not in ('main', 'v1', COMMIT):
            return self.refuse(404, 'RevisionNotFound')
        return self.server.repositories[repository]

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        self.server.requests.append((self.command, path))
        listed = re.fullmatch(r'/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/([^/]+))?(/.*)?', path)
        file = re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path)
        if listed:
            files = self.files_of(listed[1], listed[2] or 'main')
            if files is not None and '/tree/' in path:
                self.answer([dict(type='file', path=name, size=len(content), oid=hashlib.sha1(content).hexdigest())
                             for name, content in files.items()])
            elif files is not None:
                self.answer(dict(id=listed[1], modelId=listed[1], sha=COMMIT, private=False, tags=[],
                                 siblings=[dict(rfilename=name) for name in files]))
        elif file:
            files = self.files_of(file[1], file[2])
            if files is None:
                return
            if file[1] in self.server.gated:
                self.refuse(401 if 'Authorization' not in self.headers else 403, 'GatedRepo')
            elif file[3] not in files:
                self.answer({'error': 'EntryNotFound'}, 404, X_Error_Code='EntryNotFound', X_Repo_Commit=COMMIT)
            else:
                content = files[file[3]]
                self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=COMMIT)
        else:
            self.answer({'error': path}, 404)

    do_HEAD = do_GET

    def do_POST(self):
        path = unquote(urlparse(self.path).path)
        self.server.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        commit = re.fullmatch(r'/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/]+)', path)
        if self.server.read_only:
            self.answer({'error': 'no right to write'}, 403)
        elif path == '/api/repos/create':
            told = json.loads(body)
            name = '/'.join(filter(None, [told.get('organization') or 'me', told['name'].split('/')[-1]]))
            status = 409 if name in self.server.repositories else 200
            self.server.repositories.setdefault(name, {})
            self.answer(dict(url=f'{self.server.endpoint}/{name}', name=name), status)
        elif commit and commit[2] == 'preupload':
            self.answer(dict(files=[dict(path=file['path'], uploadMode='regular', shouldIgnore=False)
                                    for file in json.loads(body)['files']]))
        elif commit:
            for line in map(json.loads, body.splitlines()):
                if line['key'] == 'file':
                    content = base64.b64decode(line['value']['content'])
                    self.server.repositories[commit[1]][line['value']['path']] = content
            self.answer(dict(success=True, commitOid=COMMIT, commitUrl=f'{self.server.endpoint}/{commit[1]}'))
        elif path == '/api/validate-yaml':
            self.answer(dict(errors=[], warnings=[]))
        else:
            self.answer({'error': path}, 404)


@contextlib.contextmanager
def running():
    """A hub that serves."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def environment(hub, home):
    """The variables of another machine: its own empty cache, and this hub."""
    return dict(os.environ, HF_ENDPOINT=hub.endpoint, HF_HOME=str(home), HF_HUB_DISABLE_XET='1',
                HF_HUB_DISABLE_PROGRESS_BARS='1')


def use(hub, home, monkeypatch):
    """The same for this process, where huggingface_hub is imported already."""
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'ENDPOINT', hub.endpoint)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE',
                        hub.endpoint + '/{repo_id}/resolve/{revision}/{filename}')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(home / 'hub'))
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(home / 'token'))
