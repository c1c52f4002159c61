"""The same students by other methods, and from how many students on difference sampling is cheaper."""

import math
from dataclasses import dataclass

from megatron_miniplm.evaluation.cost.hardware import Work
from megatron_miniplm.evaluation.cost.road import Models, Road, RoadSettings


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a way to train students costs.

    Attributes:
        flops_once: whatever the number of students.
        flops_per_student: mean over the students of the plan.
        disk_bytes: that it keeps beside corpus and checkpoints.
    """

    name: str
    flops_once: float
    flops_per_student: float
    disk_bytes: float = 0.0

    def flops_a_student(self, num_students: int) -> float:
        """All operations, shared out over so many students."""
        return self.flops_once / num_students + self.flops_per_student


def compare_methods(
    models: Models, settings: RoadSettings, road: Road, *, cached_bytes_per_token: float
) -> tuple[Method, ...]:
    """Difference sampling first, then the others; every student is trained on the same number of tokens by each.

    - plain training: nothing but the students.
    - online KD: the teacher reads every training token of every student.
    - cached logits: the teacher reads the training tokens once, and its largest probabilities are kept on disk; a token
      that is trained on twice is kept once. Students share the teacher's tokenizer.
    - MiniLLM (Gu et al. 2024, arXiv 2306.08543): the student writes the text that it is trained on, with teacher-mixed
      sampling, so that both models read every token once to write it, and the teacher once more to judge it.

    Args:
        cached_bytes_per_token: of the cached logits.
    """
    tokens, context = settings.tokens_of_student, settings.context_tokens
    teacher = tokens * models.teacher.forward_flops_per_token(context)
    num_students = len(road.students)
    training = sum(stage.flops for stage in road.students) / num_students
    sampling = tokens * sum(shape.forward_flops_per_token(context) for shape in models.students.values()) / num_students
    cached_fraction = min(1.0, settings.corpus.num_tokens / tokens) if tokens else 1.0
    scores_and_views = sum(stage.disk_bytes for stage in road.once[1:] if stage.work is not Work.TRAINING)
    return (
        Method(
            name="difference sampling",
            flops_once=road.flops_once,
            flops_per_student=training,
            disk_bytes=scores_and_views,
        ),
        Method(name="plain training", flops_once=0.0, flops_per_student=training),
        Method(name="online KD", flops_once=0.0, flops_per_student=training + teacher),
        Method(
            name="cached logits",
            flops_once=teacher * cached_fraction,
            flops_per_student=training,
            disk_bytes=tokens * cached_fraction * cached_bytes_per_token,
        ),
        Method(name="MiniLLM", flops_once=0.0, flops_per_student=training + sampling + 2 * teacher),
    )


def break_even_students(ours: Method, other: Method) -> int | None:
    """The least number of students from which on `ours` costs less than `other`; None if it never does.

    n students cost once + n x each. So ours is cheaper where n > (once of ours - once of other) / (each of other - each
    of ours).
    """
    extra_once = ours.flops_once - other.flops_once
    saved = other.flops_per_student - ours.flops_per_student
    if saved <= 0:
        return 1 if extra_once < 0 and saved == 0 else None
    return max(1, math.floor(extra_once / saved) + 1)
