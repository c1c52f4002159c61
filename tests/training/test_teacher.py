"""Flags and teachers that are refused, and the teacher's layout."""

from argparse import Namespace
from pathlib import Path

import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.training import teacher as teacher_module
from megatron_miniplm.training.teacher import TeacherCheckpoint, check_flags, check_teacher


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(InputError, match=r"--miniplm-kd-alpha is .*: expected a share between 0 and 1"):
        check_flags(Namespace(miniplm_kd_alpha=alpha))


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        ("virtual_pipeline_model_parallel_size", 2, "--virtual-pipeline-model-parallel-size"),
        ("mtp_num_layers", 1, "--mtp-num-layers"),
        ("cuda_graph_impl", "local", "--cuda-graph-impl local"),
    ],
)
def test_flags_that_change_the_output_layer_or_the_schedule(flag: str, value: object, named: str) -> None:
    args = Namespace(miniplm_kd_alpha=0.5, mtp_num_layers=None, cuda_graph_impl="none")
    check_flags(args)
    setattr(args, flag, value)
    with pytest.raises(InputError, match=f"^{named}: not possible with --miniplm-kd-teacher"):
        check_flags(args)


STUDENT = Namespace(
    padded_vocab_size=128,
    tokenizer_type="HuggingFaceTokenizer",
    tokenizer_model="student.json",
    vocab_size=None,
    pipeline_model_parallel_size=2,
    seq_length=64,
)


def checkpoint(tokenizer: dict[str, object] | None = None, **architecture: object) -> TeacherCheckpoint:
    return TeacherCheckpoint(
        directory=Path("teacher/iter_0000001"),
        architecture={"padded_vocab_size": 128, "num_layers": 4, "position_embedding_type": "rope"} | architecture,
        tokenizer={"tokenizer_type": None, "tokenizer_model": None, "vocab_size": 100} | (tokenizer or {}),
    )


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (checkpoint(padded_vocab_size=256), "a vocabulary padded to 256, the student one to 128: "),
        (
            checkpoint({"tokenizer_type": "TikTokenizer"}),
            "with --tokenizer-type TikTokenizer, the student with HuggingFaceTokenizer: ",
        ),
        (checkpoint(num_layers=5), "5 layers, which 2 pipeline stages cannot share evenly: "),
        (
            checkpoint(position_embedding_type="learned_absolute", max_position_embeddings=32),
            "knows 32 positions, the student's --seq-length is 64",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_named_with_both_values(teacher: TeacherCheckpoint, message: str) -> None:
    check_teacher(STUDENT, checkpoint())
    with pytest.raises(InputError, match=f"^the teacher teacher/iter_0000001 .*{message}"):
        check_teacher(STUDENT, teacher)


def test_tokenizers_are_compared_by_content(tmp_path: Path) -> None:
    for name, content in {"a": "one", "b": "one", "c": "other"}.items():
        (tmp_path / name).write_text(content)
    args = Namespace(**vars(STUDENT) | {"tokenizer_model": str(tmp_path / "a")})
    check_teacher(args, checkpoint({"tokenizer_model": str(tmp_path / "b")}))
    with pytest.raises(InputError, match=r"--tokenizer-model .*/c, the student with .*/a: "):
        check_teacher(args, checkpoint({"tokenizer_model": str(tmp_path / "c")}))


def test_ids_alone_are_compared_by_the_size_of_the_vocabulary() -> None:
    args = Namespace(**vars(STUDENT) | {"tokenizer_type": "NullTokenizer", "vocab_size": 100})
    check_teacher(args, checkpoint({"tokenizer_type": "HuggingFaceTokenizer"}))
    args.vocab_size = 101
    with pytest.raises(InputError, match="--vocab-size 100, the student with 101: "):
        check_teacher(args, checkpoint())


def test_a_teacher_without_a_record_of_its_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a Megatron checkpoint: it has no latest_checkpointed_iteration\.txt"):
        TeacherCheckpoint.open(str(tmp_path))
    (tmp_path / "iter_0000001").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    with pytest.raises(InputError, match="needs a checkpoint in the format torch_dist"):
        TeacherCheckpoint.open(str(tmp_path))


def test_a_teacher_is_built_in_the_students_layout() -> None:
    student = Namespace(
        num_layers=2, bf16=True, pipeline_model_parallel_size=2, decoder_last_pipeline_num_layers=1, load="student"
    )
    args = checkpoint(num_layers=4, rotary_base=500).args_of(student)
    assert (args.num_layers, args.rotary_base, args.load) == (4, 500, "teacher")
    assert (args.bf16, args.pipeline_model_parallel_size) == (True, 2)
    assert args.decoder_last_pipeline_num_layers is None
    assert (student.num_layers, student.load) == (2, "student")
    assert not set(teacher_module.UNSET_FOR_TEACHER) & set(teacher_module.FURTHER_ARCHITECTURE)
