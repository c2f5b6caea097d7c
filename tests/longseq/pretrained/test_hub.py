"""The hub's own client against a server of this machine that answers as the hub does."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from longseq.errors import CheckpointError
from longseq.pretrained import load_pretrained
from tests.longseq.pretrained.test_sources import CONFIG, mamba_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."})
REFUSED = {
    "someone/gated": GATED,
    "someone/missing": (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"}),
    "someone/private": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"}),
    "someone/broken": (500, {}),
}


class Hub(BaseHTTPRequestHandler):
    """Answers for one repository, `someone/mamba`, and refuses others as the hub refuses them."""

    folder: Path
    requests: list[str]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        self.requests.append(self.path)
        repository = "/".join(self.path.removeprefix("/api/models").split("/")[1:3])
        if repository in REFUSED:
            status, headers = REFUSED[repository]
            self._send(status, b"{}", headers, body=body)
        elif "/revision/" in self.path and not self.path.endswith(("/main", COMMIT)):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
        elif "/tree/" in self.path:
            listed = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0"} for p in self.folder.iterdir()]
            self._send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"}, body=body)
        elif self.path.startswith("/api/models/"):
            names = [{"rfilename": path.name} for path in self.folder.iterdir()]
            told = {"_id": "1", "id": repository, "sha": COMMIT, "siblings": names, "tags": [], "private": False}
            self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"}, body=body)
        elif not (file := self.folder / self.path.rpartition("/")[2]).is_file():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body=body)
        else:
            content = file.read_bytes()
            etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body=body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the console."""


@pytest.fixture
def hub(write_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {"folder": write_checkpoint(CONFIG, mamba_weights()), "requests": []})
    (handler.folder / "modeling_mamba.py").write_text("raise SystemExit")  # type: ignore[attr-defined]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    yield handler  # type: ignore[misc]
    server.shutdown()
    server.server_close()


def test_a_repository_is_fetched_once_and_its_commit_is_kept(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, report = load_pretrained("someone/mamba")
    assert report.revision == COMMIT and COMMIT in str(report).splitlines()[0]
    assert model.config["pretrained"] == {"source": "someone/mamba", "format": "mamba", "revision": COMMIT}
    assert not any("modeling_mamba.py" in path for path in hub.requests)
    # Without a network what was fetched is found, by the branch and by the commit.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    ids = torch.randint(8, (1, 9))
    for revision in (None, COMMIT):
        again, _ = load_pretrained("someone/mamba", revision=revision)
        assert torch.equal(again(ids), model(ids))
    assert not hub.requests
    with pytest.raises(CheckpointError, match=r"hf download someone/other --local-dir other.*give its path"):
        load_pretrained("someone/other")
    # The folder that was fetched is a checkpoint like any other.
    folder = next((tmp_path / "hub").rglob(COMMIT))
    assert torch.equal(load_pretrained(folder)[0](ids), model(ids))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("someone/gated", r"someone/gated is gated: accept its terms at https://huggingface\.co/someone/gated"),
        ("someone/missing", r"neither a folder here nor a repository on the hub"),
        ("someone/private", r"if it is private, run `hf auth login`"),
        ("someone/broken", r"could not be fetched.*hf download someone/broken --local-dir broken"),
    ],
)
def test_what_the_hub_refuses_is_said(hub: type[Hub], source: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(CheckpointError, match=problem):
        load_pretrained(source)
    assert hub.requests


def test_a_revision_that_is_not_there(hub: type[Hub]) -> None:
    with pytest.raises(CheckpointError, match="someone/mamba has no revision 'v9'"):
        load_pretrained("someone/mamba", revision="v9")


def test_a_server_that_is_not_there(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        CheckpointError, match=r"could not be fetched.*On a machine with internet run `hf download someone/mamba"
    ):
        load_pretrained("someone/mamba")
    assert not hub.requests and huggingface_hub.constants.ENDPOINT.endswith(":9")
