"""Ten faults, planted one at a time: the tests that should notice each do. `make mutations`, about ten minutes.

    python tests/mutations.py [NAME ...] [--repository DIR]

Each fault replaces one piece of source in a copy of the repository. The named tests must fail there; `make test` shows
that they pass without the fault. If the source of a fault is not found, the code has moved on, and this table must
follow.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
#: What a copy needs.
COPIED = ("megatron_miniplm", "tests", "tools", "examples", "benchmarks", "docs", "pyproject.toml", "README.md")


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One fault.

    Attributes:
        file: below `megatron_miniplm`.
        before, after: the source, which is there once, and what replaces it.
        tests: below `tests`; each of them must fail.
    """

    file: str
    before: str
    after: str
    tests: tuple[str, ...]


MUTATIONS = {
    "sign of the difference": Mutation(
        file="selection/difference.py",
        before="value_N = reference_nll_N.astype(np.float64)\n                value_N -= teacher_nll_N",
        after="value_N = teacher_nll_N.astype(np.float64)\n                value_N -= reference_nll_N",
        tests=("selection/test_difference.py", "selection/test_independence.py"),
    ),
    "query, key and value not interleaved by group": Mutation(
        file="mcore/huggingface/mapping.py",
        before="for group in range(architecture.num_groups)\n            for name, count in heads.items()",
        after="for name, count in heads.items()\n            for group in range(architecture.num_groups)",
        tests=("contract/test_huggingface_conversion.py",),
    ),
    "a window scores one token twice": Mutation(
        file="scoring/rows.py",
        before="num_context_W=np.where(start_W > 0, overlap_tokens, 0)",
        after="num_context_W=np.where(start_W > 0, overlap_tokens - 1, 0)",
        tests=("scoring/test_rows.py", "contract/test_scoring_layouts.py"),
    ),
    "vocabulary offset of a rank": Mutation(
        file="scoring/nll.py",
        before="_target_logits(hidden_TH, rows_VH, target_T - first_row)",
        after="_target_logits(hidden_TH, rows_VH, target_T)",
        tests=("scoring/test_nll.py", "contract/test_scoring_layouts.py"),
    ),
    "loss weights count as tokens": Mutation(
        file="training/step.py",
        before="mask = (weighted_mask != 0).to(weighted_mask.dtype)",
        after="mask = weighted_mask",
        tests=("contract/test_loss_weights.py",),
    ),
    "cache key without the selection": Mutation(
        file="training/dataset.py",
        before="self.unique_description_hash = md5(self.unique_description.encode(), usedforsecurity=False)",
        after="_ = md5(self.unique_description.encode(), usedforsecurity=False)",
        tests=("training/test_index_cache.py",),
    ),
    "claims never expire": Mutation(
        file="artifacts/leases.py",
        before="before_ns - mtime_ns > expiry_ns",
        after="before_ns - mtime_ns > expiry_ns * 1e6",
        tests=("artifacts/test_leases.py",),
    ),
    "exit code of an interruption": Mutation(
        file="errors.py",
        before="EXIT_RESUMABLE = 75",
        after="EXIT_RESUMABLE = 1",
        tests=("end_to_end/test_scoring_recovery.py",),
    ),
    "temperature of the teacher": Mutation(
        file="training/vocab_parallel_kl.py",
        before="teacher_TV = torch.mm(hidden_TH[chunk], weight_VH.t()).float()",
        after="teacher_TV = torch.mm(hidden_TH[chunk], weight_VH.t()).float() / 2",
        tests=("training/test_vocab_parallel_kl.py", "contract/test_distillation_training.py"),
    ),
    "pointers of what is appended": Mutation(
        file="indexed/writer.py",
        before="yield np.concatenate(([position_bytes], stops_C[:-1]))",
        after="yield stops_C",
        tests=("indexed/test_merge.py", "contract/test_merge_against_megatron.py"),
    ),
}


def survivors(name: str, repository: Path) -> list[str]:
    """Plant a fault in a copy of the repository; returns the tests that did not notice."""
    mutation = MUTATIONS[name]
    with tempfile.TemporaryDirectory(prefix="mutation-") as temporary:
        copy = Path(temporary)
        for entry in COPIED:
            source = repository / entry
            if source.is_dir():
                shutil.copytree(source, copy / entry, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / entry)
        path = copy / "megatron_miniplm" / mutation.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutation.before) != 1:
            sys.exit(f"{name}: the source is {text.count(mutation.before)} times in {mutation.file}, expected once")
        path.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")
        return [test for test in mutation.tests if passes(copy, test)]


def passes(copy: Path, test: str) -> bool:
    """Whether a test file passes in a copy; anything but passed or failed tests is an error."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test}"]
    process = subprocess.run(
        command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True
    )
    print(*re.findall(r"^(?:FAILED|ERROR) (.*)", process.stdout, re.MULTILINE)[:1], sep="\n", flush=True)
    if process.returncode not in (0, 1):
        sys.exit(f"{test} could not run:\n{process.stdout[-3000:]}{process.stderr[-3000:]}")
    return process.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MUTATIONS)}; all by default")
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    arguments = parser.parse_args()
    unnoticed = 0
    for name in arguments.names or MUTATIONS:
        missed_by = survivors(name, arguments.repository)
        found_by = [test for test in MUTATIONS[name].tests if test not in missed_by]
        print(f"{name}: found by {', '.join(found_by) or 'nothing'}", *(f"MISSED BY {test}" for test in missed_by))
        unnoticed += len(missed_by)
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
