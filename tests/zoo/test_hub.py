"""Hub ids against a server on this machine that plays the hub: revisions, what is kept, and every way to fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gossamer.folders import shown_name
from gossamer.zoo import hub
from tiny import tiny_config, tiny_llama, tiny_tensors

COMMITS = {"main": "a" * 40, "old": "b" * 40}
CODES = {
    "org/gated": (403, "GatedRepo"),
    "org/closed": (401, ""),
    "org/gone": (404, "RepoNotFound"),
    "org/broken": (503, ""),
}


class Hub(ThreadingHTTPServer):
    """Has org/tiny in two revisions, org/pickled without safetensors, and models that it does not give."""

    def __init__(self, folders: dict[str, dict[str, Path]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folders = folders
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.server.asked.append(path)
        parts = path.removeprefix("api/models/").split("/")
        repo, kind, rest = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "", parts[3:]
        if repo in CODES:
            self.answer(*CODES[repo])
            return
        revision = rest[0] if rest else "main"
        commits = {**COMMITS, **{commit: commit for commit in COMMITS.values()}}
        names = {commit: name for name, commit in COMMITS.items()}
        if repo not in self.server.folders:
            self.answer(404, "RepoNotFound")
        elif revision not in commits:
            self.answer(404, "RevisionNotFound")
        else:
            commit = commits[revision]
            self.give(self.server.folders[repo][names[commit]], repo, commit, kind, rest[1:])

    def give(self, folder: Path, repo: str, commit: str, kind: str, rest: list[str]) -> None:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if kind == "tree":
            self.answer(200, "", [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": etag(path)} for path in files
            ])  # fmt: skip
        elif kind == "resolve":
            self.file(folder / "/".join(rest), commit)
        else:
            self.answer(200, "", {"id": repo, "sha": commit, "siblings": [{"rfilename": path.name} for path in files]})

    def file(self, path: Path, commit: str) -> None:
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{etag(path)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def answer(self, status: int, code: str, document: Any = None) -> None:
        data = json.dumps({"error": code} if document is None else document).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def etag(path: Path) -> str:
    import hashlib

    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    new, old = tiny_llama(root / "new"), tiny_llama(root / "old", num_hidden_layers=1)
    (root / "pickled").mkdir()
    (root / "pickled" / "config.json").write_text("{}")
    pickled = dict.fromkeys(COMMITS, root / "pickled")
    (new / "pytorch_model.bin").write_bytes(b"nobody wants it")
    bins = tiny_llama(root / "bins")
    torch = pytest.importorskip("torch", reason="writes what it reads")
    tensors = {name: torch.from_numpy(values) for name, values in tiny_tensors(tiny_config()).items()}
    torch.save(tensors, bins / "pytorch_model.bin")
    (bins / "model.safetensors").unlink()
    server = Hub(
        {"org/tiny": {"main": new, "old": old}, "org/pickled": pickled, "org/bins": dict.fromkeys(COMMITS, bins)}
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


RUN = """
import contextlib, io, json, sys
from gossamer.cli import main
results = []
for line in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(line)
        except SystemExit as stop:
            code = stop.code
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


def run(home: Path, endpoint: str, *lines: str, **environment: str) -> list[tuple[int, str, str]]:
    """Runs commands in one process whose hub is at `endpoint`; returns exit code, stdout and stderr of each."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "GOSSAMER_HOME": str(home / "gossamer")}
    settings |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    foreign = ("hf_", "hugging", "http_proxy", "https_proxy", "all_proxy")
    inherited = {key: value for key, value in os.environ.items() if not key.lower().startswith(foreign)}
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps([line.split() for line in lines])],
        env={**inherited, **settings, **environment}, cwd=home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


def endpoint(server: Hub) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_revisions_and_what_is_kept(server: Hub, tmp_path: Path) -> None:
    results = run(
        tmp_path,
        endpoint(server),
        "inspect org/tiny --json",
        "inspect org/tiny@old --json",
        "inspect org/tiny --revision old --json",
        f"inspect org/tiny@{'b' * 40} --json",
        "convert org/tiny@old packed --json",
        "inspect org/tiny@old --revision main",
        "models --json",
        "models",
        "models remove org/tiny --json",
        "models --json",
    )
    codes = [code for code, _, _ in results]
    assert codes == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0], results
    layers = [json.loads(out)["totals"]["matrices"] for _, out, _ in results[:4]]
    assert layers == [16, 9, 9, 9]
    assert results[5][2] == "gossamer: error: org/tiny@old: names one revision, and main is asked for\n"
    (entry,) = [entry for entry in json.loads(results[6][1])["models"] if entry["kind"] == "hub"]
    assert entry["name"] == "org/tiny"
    stored = sum((server.folders["org/tiny"][name] / "model.safetensors").stat().st_size for name in COMMITS)
    assert stored < entry["bytes"] < 2 * stored
    (folder,) = entry["paths"]
    assert folder.startswith(str(tmp_path / "hf"))
    assert [word for word in ("org/tiny", folder, f"{entry['bytes'] / 1e6:.1f}") if word not in results[7][1]] == []
    assert json.loads(results[8][1]) == {"removed": [entry]}
    assert not Path(folder).exists()
    assert [entry["kind"] for entry in json.loads(results[9][1])["models"]] == ["built in", "built in"]
    packed = json.loads((tmp_path / "packed" / "gossamer.json").read_text("utf-8"))
    assert (packed["info"]["name"], packed["info"]["source"]) == ("org/tiny", "org/tiny")


def test_what_somebody_else_fetched_is_not_removed(server: Hub, tmp_path: Path) -> None:
    theirs = tmp_path / "hf" / "hub" / "models--org--tiny"
    theirs.mkdir(parents=True)
    _, listed, removed = run(
        tmp_path, endpoint(server), "inspect org/tiny --json", "models --json", "models remove org/tiny"
    )
    assert "org/tiny" not in listed[1]
    assert removed[::2] == (1, "gossamer: error: org/tiny: is not among what gossamer fetched from the hub\n")
    assert (theirs / "snapshots").is_dir()


def test_pickles_are_fetched_where_there_is_nothing_else(server: Hub, tmp_path: Path) -> None:
    results = run(tmp_path, endpoint(server), "inspect org/bins", "inspect org/tiny")
    assert [code for code, _, _ in results] == [0, 0], results
    asked = {path for path in server.asked if path.endswith(".bin")}
    assert asked == {f"org/bins/resolve/{COMMITS['main']}/pytorch_model.bin"}


REFUSED = {
    "generate a -m org/gone": "org/gone: no such file or folder, and no such model on the hub; a private one needs",
    "convert org/gone out": "org/gone: no such file or folder, and no such model on the hub; a private one needs",
    "inspect org/gated": "org/gated: is gated: accept its conditions on its page at the hub, then log in with",
    "inspect org/closed": "org/closed: ",
    "inspect org/broken": "org/broken: the hub answers with status 503; try again later",
    "inspect org/tiny@new": "org/tiny@new: the hub has no revision new of it",
    "prune org/tiny out --revision new": "org/tiny@new: the hub has no revision new of it",
    "inspect org/pickled": "org/pickled: holds no safetensors and no pytorch_model.bin on the hub",
    "inspect org/two--dashes": "org/two--dashes: no such file or folder, and no valid hub id",
    "inspect smollm2-135m-instruct --revision x": "smollm2-135m-instruct: is a built-in model and has no revision x",
    "inspect . --revision x": ".: lies on disk and has no revision x; only models of the hub have some",
    "inspect smollm2-135m": "smollm2-135m: no such file or folder, no built-in model (",
}


def test_what_the_hub_refuses_is_one_line_of_ours(server: Hub, tmp_path: Path) -> None:
    results = run(tmp_path, endpoint(server), *REFUSED)
    for (line, start), (code, out, err) in zip(REFUSED.items(), results, strict=True):
        told = err.splitlines()[-1] if err else ""
        assert (code, out) == (1, ""), line
        assert told.startswith(f"gossamer: error: {start}"), told
        assert err.count("\n") == 1, err
    assert "; did you mean smollm2-135m-instruct or smollm2-135m-instruct-dense?" in results[-1][2]
    assert not (tmp_path / "out").exists()
    hub_notes = [path.name for path in (tmp_path / "gossamer").rglob("*.json")]
    assert hub_notes in ([], ["org--pickled.json"], ["org--pickled.json", "org--tiny.json"])


def test_no_network_and_no_leave_to_use_it(server: Hub, tmp_path: Path) -> None:
    ((code, _, err),) = run(tmp_path, "http://127.0.0.1:9", "inspect org/tiny")
    assert code == 1
    assert err.splitlines()[-1].startswith(
        "gossamer: error: org/tiny: no such file or folder, and the hub cannot be reached (http://127.0.0.1:9): "
    )
    ((code, _, err),) = run(tmp_path, endpoint(server), "inspect org/tiny", HF_HUB_OFFLINE="1")
    assert code == 1
    assert err == "gossamer: error: org/tiny: is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it\n"
    ((code, _, _),) = run(tmp_path, endpoint(server), "inspect org/tiny")
    assert code == 0
    for settings in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        ((code, _, _),) = run(tmp_path, endpoint(server), "inspect org/tiny", **settings)
        assert code == 0, "what is in the cache needs no network"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("org/name", ("org/name", None)),
        ("org/na.me_1@v1.0", ("org/na.me_1", "v1.0")),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        ("org/name.gguf", None),
        ("org/name@", None),
        ("org/name@-x", None),
        ("name", None),
        ("a/b/c", None),
        ("../name", None),
        ("org/name@a@b", None),
    ],
)
def test_ids(name: str, parts: tuple[str, str | None] | None) -> None:
    assert hub.parse(name) == parts


def test_names_of_models_on_disk() -> None:
    assert shown_name("/cache/models--org--na.me/snapshots/abc") == "org/na.me"
    assert shown_name("/cache/models/snapshots/abc") == "abc"
    assert shown_name("models/spider.gguf") == "spider.gguf"
