"""Files of prompts on a Ray of this machine: the answers of `gossamer batch`, each written once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import gossamer
from gossamer.errors import GossamerError
from gossamer.generation.batch_files import batch_file

ray: Any = pytest.importorskip("ray")
pytest.importorskip("ray.data")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("cluster")]  # of Ray and what it stands on

NEW = 40
LINES = [
    {"prompt": "The spider"},
    {"id": "q2", "messages": [{"role": "user", "content": "Numbers?"}], "max_new_tokens": 5},
    {"prompt": "A thread", "temperature": 1.0},
    {"prompt": "A net", "temperature": 1.0, "seed": 4},
    {"prompt": "Wrong", "temprature": 1.0},
    {"messages": []},
    {"prompt": "The weaver", "stop": ["e"]},
]
JOB = """
import sys, ray
from gossamer.distributed import answer_file
address, model, src, dst = sys.argv[1:]
ray.init(address, configure_logging=False, log_to_driver=False)
answer_file(model, src, dst, threads=1, rows=2, batch=2, chat=False, max_new_tokens=2000, temperature=1.0, seed=7)
"""


def answered(folder: Path, src: Path, dst: Path, **options: Any) -> Any:
    from gossamer.distributed import answer_file

    return answer_file(folder, src, dst, **{"threads": 1, "rows": 2, "max_new_tokens": NEW, **options})


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def alone(folder: Path, src: Path, dst: Path, **options: Any) -> bytes:
    """What `gossamer batch` writes."""
    model = gossamer.load(folder, threads=1)
    chat = options.pop("chat", None)
    batch_file(model, src, dst, model.defaults().changed({"max_new_tokens": NEW, **options}), chat=chat)
    return dst.read_bytes()


def test_answers_are_those_of_batch(folder: Path, tmp_path: Path) -> None:
    src = write_lines(tmp_path / "in.jsonl", LINES)
    src.write_text(src.read_text() + "not JSON\n\n")
    seen: list[tuple[int, int]] = []
    result = answered(
        folder, src, tmp_path / "out.jsonl", replicas=2, progress=lambda done, total, _: seen.append((done, total))
    )
    assert (tmp_path / "out.jsonl").read_bytes() == alone(folder, src, tmp_path / "alone.jsonl")
    assert (result.lines, result.errors, result.resumed) == (9, 4, 0)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert result.new_tokens == sum(record.get("new_tokens", 0) for record in records) > 0
    assert (seen[0], seen[-1]) == ((0, 9), (9, 9))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.jsonl", "in.jsonl", "out.jsonl"]


def test_tables(folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [{**line, "max_new_tokens": 6} for line in LINES if "temprature" not in line and line.get("messages") != []]
    src = write_lines(tmp_path / "in.jsonl", lines)
    columns = {name for line in lines for name in line}
    table = pa.table({name: [line.get(name) for line in lines] for name in sorted(columns)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    answered(folder, tmp_path / "in.parquet", tmp_path / "out.parquet", rows=3)
    expected = [json.loads(line) for line in alone(folder, src, tmp_path / "alone.jsonl").splitlines()]
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [{name: value for name, value in row.items() if value is not None} for row in found] == expected


def test_a_job_that_is_killed_goes_on_and_writes_each_row_once(folder: Path, tmp_path: Path) -> None:
    src = write_lines(tmp_path / "in.jsonl", [{"prompt": f"Spider {number}"} for number in range(16)])
    dst, parts = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
    address = ray.get_runtime_context().gcs_address
    job = subprocess.Popen([sys.executable, "-c", JOB, address, str(folder), str(src), str(dst)])
    end = time.monotonic() + 90
    while len(made := list(parts.glob("0*.jsonl"))) < 2:
        assert time.monotonic() < end, "the job made no part"
        assert job.poll() is None
        time.sleep(0.002)
    job.kill()
    job.wait()
    assert not dst.exists()
    kept = {path.name: path.stat().st_ino for path in made}
    options: dict[str, Any] = {"chat": False, "max_new_tokens": 2000, "temperature": 1.0, "seed": 7}
    with pytest.raises(GossamerError, match="other options; --force"):
        answered(folder, src, dst, **{**options, "seed": 8})
    assert {path.name: path.stat().st_ino for path in made} == kept
    result = answered(folder, src, dst, batch=2, **options)
    assert result.resumed >= 4
    assert result.resumed < 16, "the job was not killed in time"
    assert dst.read_bytes() == alone(folder, src, tmp_path / "alone.jsonl", **options)
    assert [json.loads(line)["line"] for line in dst.read_text().splitlines()] == list(range(1, 17))
    assert not parts.exists()


def test_what_is_there_is_kept(folder: Path, tmp_path: Path) -> None:
    src = write_lines(tmp_path / "in.jsonl", LINES[:1])
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(GossamerError, match="exists already"):
        answered(folder, src, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "mine"
