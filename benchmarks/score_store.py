#!/usr/bin/env python3
"""What a large directory of scores costs to list, check, read and finish, in one process.

  python benchmarks/score_store.py --directory /tmp          # 200 million sequences, 1.6 GB, deleted afterwards

The store is built first, which also brings it into the page cache. Blocks are written without fsync there (and only
there): what is measured is reading. The table goes to --output, and a line of JSON is the last that is printed.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import Section, Target, machine_markdown

from megatron_miniplm.artifacts.atomic import write_text
from megatron_miniplm.artifacts.leases import Leases
from megatron_miniplm.artifacts.manifest import ArtifactInput
from megatron_miniplm.artifacts.score_blocks import SCORE_DTYPE, encode_block
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.cli import report
from megatron_miniplm.errors import InputError, MiniPLMError, unusable_path

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
BLOCK_SEQUENCES = 4096
LIMIT_SECONDS = 10.0
SPARE_FRACTION = 1.5  # of the size of the store; small files take more than they hold


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR")
    parser.add_argument("--sequences", type=int, default=200_000_000, metavar="N")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "score_store.md", metavar="FILE")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        machine = machine_markdown(sys.argv)
        require_space(arguments.directory, arguments.sequences)
        with tempfile.TemporaryDirectory(prefix="score-store-", dir=arguments.directory) as directory:
            seconds, store = measure(Path(directory), arguments.sequences)
    except MiniPLMError as error:
        return report(error)
    except OSError as error:
        return report(unusable_path(error))
    section = table(seconds, store)
    write_text(arguments.output, "\n\n".join(["# Score store", machine, HOW_TO_READ, section.markdown()]))
    print(section.markdown())
    print(json.dumps({"num_sequences": arguments.sequences, "num_bytes": store.num_bytes, "seconds": seconds}))
    return 0


HOW_TO_READ = """\
- One process, blocks of 4,096 sequences, files in the page cache. s: wall time of the first and only run.
- MB/s: of the bytes of all blocks, where all of them are read. MB are 10^6 bytes.
- Building writes without fsync; a scoring run syncs every block."""


def require_space(directory: Path, num_sequences: int) -> None:
    """Refuse to fill a disk.

    Raises:
        InputError: there is too little space.
    """
    needed_bytes = int(num_sequences * SCORE_DTYPE.itemsize * SPARE_FRACTION)
    if (free_bytes := shutil.disk_usage(directory).free) < needed_bytes:
        raise InputError(f"{directory} has {free_bytes:,} bytes free, {needed_bytes:,} are needed: lower --sequences")


def measure(directory: Path, num_sequences: int) -> tuple[dict[str, float], ScoreStore]:
    """Seconds of each step, in order."""
    identity: dict[str, Any] = {
        "model": {"weights": "0" * 32, "architecture": {}},
        "corpus": [{"name": "corpus", "fingerprint": "0" * 32, "num_sequences": num_sequences}],
        "settings": {"block_sequences": BLOCK_SEQUENCES},
    }
    inputs = (ArtifactInput(role="corpus", path="../corpus", fingerprint="0" * 32),)
    store = ScoreStore.create_or_resume(directory, identity)
    seconds: dict[str, float] = {}

    def timed[Result](name: str, step: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = step()
        seconds[name] = time.perf_counter() - start
        logger.info("%s: %.2f s", name, seconds[name])
        return result

    timed("build", lambda: build(store))
    assert timed("list missing blocks", store.missing_blocks) == []
    timed("finish: read, check, write manifest", lambda: store.finish(inputs, {}))
    store = timed("open", lambda: ScoreStore.open(directory))
    timed("completeness: listing, sizes, manifest", store.require_complete)
    assert len(timed("first read: 1 million sequences", lambda: store.read(range(min(10**6, num_sequences))))) > 0
    scores = timed("full read, checked", store.read_all)
    assert int(scores["num_tokens"].sum(dtype=np.int64)) == 1000 * num_sequences
    del scores
    assert timed("full verification", store.verify) == {}
    with Leases(directory / "elsewhere") as one, Leases(directory / "elsewhere") as other:
        num_held = min(4000, store.plan.num_blocks - 1)
        assert all(one.claim(block) for block in range(num_held))
        assert timed(f"claim a block beside {num_held:,} of others", lambda: other.claim(num_held))
    return seconds, store


def build(store: ScoreStore) -> None:
    """All blocks, of random NLLs over 1,000 tokens a sequence."""
    rng = np.random.default_rng(0)
    store.block_path(0).parent.mkdir()
    for block in range(store.plan.num_blocks):
        scores = np.empty(len(store.plan.sequences(block)), SCORE_DTYPE)
        scores["nll"] = rng.random(len(scores), np.float32) * 1000
        scores["num_tokens"] = 1000
        with open(store.block_path(block), "wb") as stream:
            stream.write(encode_block(scores, store.seal))
    os.sync()


def table(seconds: dict[str, float], store: ScoreStore) -> Section:
    whole = ("build", "finish: read, check, write manifest", "full read, checked", "full verification")
    rows = [
        {"step": name, "s": f"{time_s:.3f}", "MB/s": f"{store.num_bytes / time_s / 1e6:,.0f}" if name in whole else "-"}
        for name, time_s in seconds.items()
    ]
    to_first_read = ("list missing blocks", "open", "completeness: listing, sizes, manifest")
    total = sum(seconds[name] for name in (*to_first_read, "first read: 1 million sequences"))
    return Section(
        title=f"{store.plan.num_sequences:,} sequences in {store.plan.num_blocks:,} blocks, {store.num_bytes:,} bytes",
        rows=rows,
        targets=[
            Target(figure="listed, complete, open, first read", value=total, unit="s", at_most=LIMIT_SECONDS),
            Target(
                figure="full verification",
                value=store.num_bytes / seconds["full verification"] / 1e9,
                unit="GB/s",
                at_least=1,
            ),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
