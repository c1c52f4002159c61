"""The comparison of methods, by hand and with the paper's own figures."""

import math

import pytest
from paper_pipeline import REFERENCE, TEACHER, methods_of

from megatron_miniplm.planning.plan import Method, break_even_students
from megatron_miniplm.planning.shapes import NAMED_SHAPES

STUDENTS = ("qwen-200m", "qwen-500m", "qwen-1.2b")


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
