"""docs/formats.md, executed: its example bytes and its commands."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from megatron_miniplm.indexed import IndexedWriter

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def test_example_bytes(tmp_path):
    example = re.search(r"as uint16:\n\n```\n(\.bin.*?)(\.idx.*?)```", PAGE, re.DOTALL)
    with IndexedWriter(tmp_path / "example", np.dtype("<u2")) as writer:
        writer.append(np.array([10, 11, 20]), np.array([2, 0, 1]))
        writer.close()
    for text in example.groups():
        suffix, digits = text[:4], re.sub("#.*", "", text[4:])
        assert (tmp_path / f"example{suffix}").read_bytes() == bytes.fromhex(digits)


def test_commands_write_a_manifest_like_the_one_shown(tmp_path):
    commands = re.search(r"```sh\n(miniplm.*?)```", PAGE, re.DOTALL)[1]
    shown = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])
    lines = (json.dumps({"text": f"{number} is followed by {number + 1}."}) for number in range(2000))
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    commands = commands.replace("miniplm ", f"{Path(sys.executable).with_name('miniplm')} ")
    process = subprocess.run(
        ["bash", "-ec", commands.replace("--vocab-size 1000", "--vocab-size 300")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("ok\n")
    written = json.loads((tmp_path / "corpus" / "topics_text_document.manifest.json").read_text())
    assert keys(written) == keys(shown)


def keys(value):
    """The structure of a JSON value: its keys in order, without the values."""
    if isinstance(value, dict):
        return [(name, keys(inner)) for name, inner in value.items()]
    return [keys(inner) for inner in value] if isinstance(value, list) else None
