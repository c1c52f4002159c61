"""The instruments of benchmarks/: what they read must be known in advance."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import bench
import measurement
import real_text

from megatron_miniplm.errors import InputError

IN_A_CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
BURN = "import time\nwhile time.process_time() < 0.5: pass"
HOLD = "import time; held = b'x' * 150_000_000; time.sleep(0.4)"


def measure_below(code: str, tmp_path: Path) -> measurement.Cost:
    """Cost of a process whose child runs the code."""
    return measurement.measure([sys.executable, "-c", IN_A_CHILD, code], tmp_path / "log.txt")


def test_cpu_time_of_processes_further_down_is_counted(tmp_path: Path) -> None:
    cost = measure_below(BURN, tmp_path)
    assert 0.5 <= cost.cpu_seconds <= cost.wall_seconds + 0.1


def test_memory_of_processes_further_down_is_counted(tmp_path: Path) -> None:
    cost = measure_below(HOLD, tmp_path)
    assert 150e6 < cost.peak_bytes < 200e6
    assert cost.cpu_seconds < cost.wall_seconds


def test_a_command_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^exit code 1 of .*python.* -c 1 / 0, its last lines: Traceback ") as caught:
        measurement.measure([sys.executable, "-c", "1 / 0"], tmp_path / "log.txt")
    assert str(caught.value).endswith(" | ZeroDivisionError: division by zero")


def test_files_with_other_bytes_are_told_apart(tmp_path: Path) -> None:
    one, same, other, longer = (tmp_path / name for name in ("one", "same", "other", "longer"))
    for path, data in ((one, b"abcd"), (same, b"abcd"), (other, b"abxd"), (longer, b"abcde")):
        path.write_bytes(data)
    assert bench.difference(one, same) is None
    assert bench.difference(one, other) == f"{one} {other} differ: byte 3, line 1"
    assert (bench.difference(one, longer) or "").startswith(f"cmp: EOF on {one}")
    assert bench.difference(one, tmp_path / "none") is not None


def test_the_collected_text_has_no_duplicates_links_or_files_of_other_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    kept = {f"{number}.md": f"{number}: äöü\r\n" * 20 for number in range(5)}
    files = {name: text.encode() for name, text in kept.items()}
    files |= {"same.txt": files["1.md"], "small.md": b"x" * 63, "large.md": b"x" * 1_000_001, "other.so": b"x" * 100}
    files |= {"latin.txt": "ä".encode("latin-1") * 100}
    for name, data in files.items():
        (source / name).write_bytes(data)
    (source / "link.md").symlink_to(source / "0.md")
    monkeypatch.setattr(real_text, "source_directories", lambda: [source])
    output = tmp_path / "text.jsonl"
    with pytest.raises(InputError, match=r"^this machine has [\d,]+ bytes of text, 100,000 are wanted: lower --bytes"):
        real_text.collect_text(output, 100_000)
    assert not output.exists()
    everything = sum(len(json.dumps(text, ensure_ascii=False).encode()) for text in kept.values())
    assert real_text.collect_text(output, everything + 1) == 5
    documents = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert sorted(document["text"] for document in documents) == sorted(kept.values())
    assert {document["domain"] for document in documents} <= {"md", "txt"}
    assert [document["id"] for document in documents] == ["d0", "d1", "d2", "d3", "d4"]
