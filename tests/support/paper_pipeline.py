"""The paper's own pipeline, as planning describes it."""

from megatron_miniplm.planning.cost import Models, PipelineSettings, pipeline_cost
from megatron_miniplm.planning.plan import Method, compare_methods
from megatron_miniplm.planning.sequences import SequenceLengths
from megatron_miniplm.planning.shapes import NAMED_SHAPES

TEACHER, REFERENCE = NAMED_SHAPES["qwen1.5-1.8b"], NAMED_SHAPES["qwen-104m"]


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
