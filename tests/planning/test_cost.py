"""Stages and comparison by hand, and the paper's own figures."""

import math

import numpy as np
import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.flops import ModelShape
from megatron_miniplm.planning.cost import Hardware, Models, PipelineSettings, Work, peak_flops_of, pipeline_cost
from megatron_miniplm.planning.plan import Method, break_even_students, compare_methods
from megatron_miniplm.planning.sequences import SequenceLengths
from megatron_miniplm.planning.shapes import NAMED_SHAPES
from megatron_miniplm.scoring.rows import cut_windows

TEACHER, REFERENCE = NAMED_SHAPES["qwen1.5-1.8b"], NAMED_SHAPES["qwen-104m"]
STUDENTS = ("qwen-200m", "qwen-500m", "qwen-1.2b")


def paper(student: str = "qwen-200m") -> tuple[Models, PipelineSettings]:
    """5 of 105 billion tokens for the reference, half of the rest kept, rows of 1,024 (arXiv 2410.17215, section 3)."""
    models = Models(teacher=TEACHER, reference=REFERENCE, students={student: NAMED_SHAPES[student]})
    settings = PipelineSettings(
        corpus=SequenceLengths.all_equal(105e9, 1025),
        reference_fraction=5 / 105,
        ratio=0.5,
        context_tokens=1024,
        overlap_tokens=256,
    )
    return models, settings


def methods_of(student: str) -> dict[str, Method]:
    models, settings = paper(student)
    found = compare_methods(models, settings, pipeline_cost(models, settings), cached_bytes_per_token=500)
    return {method.name: method for method in found}


def test_teacher_scores_of_100_billion_tokens() -> None:
    models, settings = paper()
    (stage,) = [stage for stage in pipeline_cost(models, settings).once if stage.name == "score with the teacher"]
    assert stage.tokens == pytest.approx(100e9)
    # Between 2 N without embeddings (2.4e20) and 2 N with both matrices (3.7e20), by Kaplan et al. 2020.
    assert 2e20 < stage.flops < 3.6e20


# Steps of 100,000 that cost the same as the plain training of the student: arXiv 2410.17215, in thousands.
@pytest.mark.parametrize(
    ("student", "method", "published", "tolerance"),
    [
        ("qwen-200m", "online KD", 25, 0.16),
        ("qwen-500m", "online KD", 45, 0.08),
        ("qwen-1.2b", "online KD", 65, 0.02),
        ("qwen-200m", "MiniLLM", 15, 0.08),
        ("qwen-500m", "MiniLLM", 30, 0.06),
        ("qwen-1.2b", "MiniLLM", 40, 0.04),
    ],
)
def test_steps_that_the_paper_affords(student: str, method: str, published: float, tolerance: float) -> None:
    methods = methods_of(student)
    steps = 100 * methods["plain training"].flops_per_student / methods[method].flops_per_student
    assert steps == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize(("student", "published"), zip(STUDENTS, (25, 45, 65), strict=True))
def test_the_paper_seems_to_count_six_operations_for_every_parameter(student: str, published: float) -> None:
    """With 6 N and 2 N of all parameters, embeddings included, its steps come out when rounded to 5,000."""
    own = 6 * NAMED_SHAPES[student].num_parameters
    steps = 100 * own / (own + 2 * TEACHER.num_parameters)
    assert 5 * round(steps / 5) == published


@pytest.mark.parametrize("num_students", [1, 2, 3, 7])
def test_break_even_is_where_totals_cross(num_students: int) -> None:
    ours = Method(name="ours", flops_once=10.0, flops_per_student=3.0)
    other = Method(name="other", flops_once=0.0, flops_per_student=3.0 + 10.0 / (num_students - 0.5))
    assert break_even_students(ours, other) == num_students
    assert ours.flops_a_student(num_students) < other.flops_a_student(num_students)
    if num_students > 1:
        assert ours.flops_a_student(num_students - 1) > other.flops_a_student(num_students - 1)


def test_break_even_at_the_edges() -> None:
    ours = Method(name="ours", flops_once=10.0, flops_per_student=3.0)
    assert break_even_students(ours, Method(name="plain", flops_once=0.0, flops_per_student=3.0)) is None
    assert break_even_students(ours, Method(name="cached", flops_once=20.0, flops_per_student=3.0)) == 1
    assert break_even_students(ours, Method(name="dear", flops_once=99.0, flops_per_student=5.0)) == 1
    # At exactly the same cost, one student more.
    assert break_even_students(ours, Method(name="equal", flops_once=0.0, flops_per_student=5.0)) == 6


def test_break_even_of_the_paper_in_closed_form() -> None:
    """Scoring reads 1 / ratio times what a student is trained on: two students pay the teacher, one more the rest."""
    methods = methods_of("qwen-200m")
    teacher = methods["online KD"].flops_per_student - methods["plain training"].flops_per_student
    exact = methods["difference sampling"].flops_once / teacher
    assert exact == pytest.approx(2 * (1 + REFERENCE.forward_flops([1024]) / TEACHER.forward_flops([1024])), rel=0.02)
    assert break_even_students(methods["difference sampling"], methods["online KD"]) == math.floor(exact) + 1 == 3


def test_bytes_by_hand() -> None:
    models, _ = paper()
    settings = PipelineSettings(
        corpus=SequenceLengths.all_equal(1000 * 100, 100),
        reference_fraction=0.2,
        ratio=0.5,
        context_tokens=64,
        overlap_tokens=16,
    )
    cost = pipeline_cost(models, settings)
    index = 34 + 8  # an .idx without sequences: header, and the boundary 0
    found = {stage.name: stage.disk_bytes for stage in cost.once}
    assert found["preprocess"] == 4 * 100_000 + (index + 20 * 1000) + (index + 20 * 200) + (index + 20 * 800)
    assert found["select"] == index + 20 * 400 + 400 * (8 + 8 + 4)
    # 20 blocks of 41 sequences, 64 windows of tokens each: headers, digest, checksum, and its copy in the list
    assert found["score with the teacher"] == 8 * 800 + 20 * (128 + 128 + 16 + 4 + 4)
    assert cost.students[0].disk_bytes == 14 * 203_437_824
    assert cost.students[0].tokens == 400 * 100


def test_cached_logits_are_500_bytes_a_token_that_is_read() -> None:
    cached = methods_of("qwen-200m")["cached logits"]
    assert cached.disk_bytes == pytest.approx(50e9 * 500)


def test_a_proxy_spares_teacher_and_reference() -> None:
    models, settings = paper()
    full = pipeline_cost(models, settings)
    with_proxy = pipeline_cost(
        Models(teacher=TEACHER, reference=REFERENCE, students=models.students, proxy=REFERENCE),
        PipelineSettings(**{**vars(settings), "sample_fraction": 0.05}),
    )
    flops = {stage.name: stage.flops for stage in with_proxy.once}
    expected = {stage.name: stage.flops for stage in full.once}
    assert flops["score with the teacher"] == pytest.approx(0.05 * expected["score with the teacher"])
    # It makes no logits: what is left of the reference's pass, once over the pool, and thrice over the sample.
    layers = 100e9 * 1024 / 1025 * (REFERENCE.forward_flops_per_token(1024) - 2 * 512 * 151_936)
    assert flops["predict with the proxy"] == pytest.approx(layers)
    assert flops["fit the proxy"] == pytest.approx(3 * 0.05 * layers)
    assert with_proxy.flops_once < 0.1 * full.flops_once


def test_a_reference_that_is_there_is_not_trained() -> None:
    models, settings = paper()
    cost = pipeline_cost(models, PipelineSettings(**{**vars(settings), "reference_tokens": 0}))
    assert "train the reference" not in [stage.name for stage in cost.once]


def test_windows_are_those_that_scoring_cuts() -> None:
    lengths_N = np.array([0, 1, 2, 64, 65, 66, 113, 114, 500, 500])
    windows = cut_windows(lengths_N, context_tokens=64, overlap_tokens=16)
    planned = SequenceLengths.of(lengths_N).windows(context_tokens=64, overlap_tokens=16)
    shape = ModelShape(num_layers=1, hidden_size=4, ffn_hidden_size=4, num_attention_heads=1, vocab_size=4)
    assert planned.num_tokens == windows.num_inputs_W.sum()
    assert planned.forward_flops(shape) == shape.forward_flops(windows.num_inputs_W.tolist())


def test_hours() -> None:
    hardware = Hardware(num_devices=4, peak_flops=1e12, training_utilisation=0.5, scoring_utilisation=0.25)
    assert hardware.device_hours(3.6e15, Work.TRAINING) == 2
    assert hardware.wall_hours(3.6e15, Work.SCORING) == 1
    assert hardware.device_hours(3.6e15, Work.TOOLS) == 0
    assert peak_flops_of("NVIDIA H100 80GB HBM3") == 989.4e12
    with pytest.raises(InputError, match=r"--gpu T4 is not known, expected one of H100, .*: or give --peak-flops"):
        peak_flops_of("T4")
