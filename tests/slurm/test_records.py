"""Reading what the scripts write, also while they write it."""

from pathlib import Path

import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.slurm.records import Attempt, Outcome, Pipeline, Records, Stage, read_pipeline

HEADER = "# miniplm pipeline 1\tpile-3f2a9c\n"
TOKENIZER = "tokenizer\ttokenizer\t0\t-\t/data/tokenizer\t-\t3f\n"
TRAIN = "train-teacher\ttrain\t0\ttokenizer\tteacher/checkpoint\t450\ta0\n"
ARRAY = Stage(name="pool", kind="preprocess", tasks=2, after=(), output=Path("data"), total=None, key="3f")
SHARED = Stage(name="score-teacher", kind="score", tasks=2, after=(), output=Path("scores"), total=None, key="3f")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_stages(tmp_path: Path) -> None:
    write(tmp_path / "slurm/pipeline.tsv", HEADER + TOKENIZER + TRAIN)
    tokenizer = Stage(
        name="tokenizer", kind="tokenizer", tasks=0, after=(), output=Path("/data/tokenizer"), total=None, key="3f"
    )
    train = Stage(
        name="train-teacher",
        kind="train",
        tasks=0,
        after=("tokenizer",),
        output=Path("teacher/checkpoint"),
        total=450,
        key="a0",
    )
    pipeline = read_pipeline(tmp_path)
    assert pipeline == Pipeline(tag="pile-3f2a9c", stages=(tokenizer, train))
    assert pipeline.job_name(train) == "pile-3f2a9c.train-teacher"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 is '', expected '# miniplm pipeline 1', a tab, the tag"),
        ("name,value\n", "line 1 is 'name,value', expected"),
        (HEADER.replace("1", "2", 1), "line 1: format 2, this release reads 1: use the release of submit_pipeline.sh"),
        (HEADER, "line 2 is missing, expected at least one stage"),
        (HEADER + "tokenizer\ttokenizer\n", "line 2 has 2 columns, expected 7 between tabs (stage, kind, tasks, after"),
        (HEADER + TOKENIZER * 2, "line 3 is a second stage tokenizer, expected each stage once"),
        (HEADER + TRAIN, "line 2 needs tokenizer, expected stages of this file in column 4 (after)"),
        (HEADER + TOKENIZER.replace("\t0\t", "\tmany\t"), "line 2 has 'many' as tasks, expected a number from 0"),
        (HEADER + TOKENIZER.replace("\ttok", "\tbok"), "line 2 has 'bokenizer' as kind, expected one of tokenizer,"),
        (HEADER + TOKENIZER.replace("3f", "key"), "line 2 has 'key' as key, expected a hex digest"),
        (HEADER + TOKENIZER.replace("tokenizer", "../a", 1), "line 2 has '../a' as stage, expected letters"),
        (HEADER + TOKENIZER + TRAIN.replace("450", "4.5"), "line 3 has '4.5' as total, expected a number from 0, or -"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "slurm/pipeline.tsv", text)
    with pytest.raises(InputError) as found:
        read_pipeline(tmp_path)
    assert str(found.value).startswith(f"{tmp_path}/slurm/pipeline.tsv, {message}")
    assert "submit" in str(found.value)


def test_no_text(tmp_path: Path) -> None:
    write(tmp_path / "slurm/pipeline.tsv", "")
    (tmp_path / "slurm/pipeline.tsv").write_bytes(b"\xff\x00")
    with pytest.raises(InputError, match="line 1 is not text, expected UTF-8"):
        read_pipeline(tmp_path)


def test_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"is not the directory of a submitted pipeline: it has no slurm/pipeline\.tsv"
    ):
        read_pipeline(tmp_path / "nothing")


def test_markers(tmp_path: Path) -> None:
    write(tmp_path / "slurm/done/pool.1", "3f\n")
    write(tmp_path / "slurm/done/score-teacher", "a0\n")
    write(tmp_path / "slurm/done/pool.0", "")  # it is being written
    records = Records(tmp_path)
    assert [records.marker(ARRAY, task) for task in range(2)] == [None, "3f"]
    assert [records.marker(SHARED, task) for task in range(2)] == ["a0", "a0"]
    assert Records(tmp_path / "nothing").marker(ARRAY, 0) is None


def test_attempts_in_the_order_of_their_starts(tmp_path: Path) -> None:
    attempts = tmp_path / "slurm/attempts/pool.1"
    write(attempts / "9.0", "start 1000 node1 8_1 /logs/with a space.log\nend 1500 75 interrupted\n")
    write(attempts / "9.1", "start 2000 node[2-3] 8_1 -\nend 2500 1 failed\n")
    write(attempts / "12.0", "start 3000 node4 12_1 /logs/12.log\n")
    write(attempts / ".12.0.tmp", "start")
    assert Records(tmp_path).attempts(ARRAY, 0) == []
    assert Records(tmp_path).attempts(ARRAY, 1) == [
        Attempt(
            job_id=9,
            restart=0,
            start_seconds=1000,
            nodes="node1",
            job="8_1",
            log_path=Path("/logs/with a space.log"),
            end_seconds=1500,
            exit_code=75,
            outcome=Outcome.INTERRUPTED,
        ),
        Attempt(
            job_id=9,
            restart=1,
            start_seconds=2000,
            nodes="node[2-3]",
            job="8_1",
            end_seconds=2500,
            exit_code=1,
            outcome=Outcome.FAILED,
        ),
        Attempt(job_id=12, restart=0, start_seconds=3000, nodes="node4", job="12_1", log_path=Path("/logs/12.log")),
    ]


@pytest.mark.parametrize(
    ("text", "start_seconds", "outcome"),
    [
        ("", None, None),
        ("start 10", None, None),
        ("start 1000 node1 8_1 /log\nend 15", 1000, None),
        ("start ? node1\n", None, None),
        ("start\nend\n", None, None),
        ("start 1000 node1 8_1 /log\nend 1500 3 surprised\n", 1000, Outcome.FAILED),
    ],
)
def test_an_attempt_that_is_being_written(
    tmp_path: Path, text: str, start_seconds: float | None, outcome: Outcome | None
) -> None:
    path = tmp_path / "slurm/attempts/pool.0/9.0"
    write(path, text)
    (attempt,) = Records(tmp_path).attempts(ARRAY, 0)
    assert attempt.start_seconds == (start_seconds or path.stat().st_mtime)
    assert attempt.outcome is outcome


def test_an_attempt_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "slurm/attempts/pool.0/9.0").mkdir(parents=True)
    write(tmp_path / "slurm/attempts/pool.0/10.0", "start 1000 node1 10_0 -\n")
    assert [attempt.job_id for attempt in Records(tmp_path).attempts(ARRAY, 0)] == [10]


def test_the_logs_of_a_run_that_was_moved(tmp_path: Path) -> None:
    write(tmp_path / "slurm/attempts/pool.0/9.0", "start 1000 node1 9_0 /not/mounted/here/9_0.log\n")
    write(tmp_path / "slurm/logs/9_0.log", "")
    (attempt,) = Records(tmp_path).attempts(ARRAY, 0)
    assert attempt.log_path == tmp_path / "slurm/logs/9_0.log"
