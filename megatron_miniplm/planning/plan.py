"""A plan: the whole pipeline, the same students by other methods, and all of it as text and JSON."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron_miniplm.mcore.flops import ModelShape
from megatron_miniplm.planning.cost import Hardware, Models, PipelineCost, PipelineSettings, Stage, Work, pipeline_cost
from megatron_miniplm.runtime.text_table import aligned

#: Columns of the table of costs a student.
NUMBERS_OF_STUDENTS = (1, 2, 3, 5, 10)
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


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
    models: Models, settings: PipelineSettings, cost: PipelineCost, *, cached_bytes_per_token: float
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
    num_students = len(cost.students)
    training = sum(stage.flops for stage in cost.students) / num_students
    sampling = tokens * sum(shape.forward_flops_per_token(context) for shape in models.students.values()) / num_students
    cached_fraction = min(1.0, settings.corpus.num_tokens / tokens) if tokens else 1.0
    scores_and_views = sum(stage.disk_bytes for stage in cost.once[1:] if stage.work is not Work.TRAINING)
    return (
        Method(
            name="difference sampling",
            flops_once=cost.flops_once,
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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked, and what comes out.

    Attributes:
        cost: as asked.
        cost_without_proxy: the same if all sequences are scored; equal to `cost` without a proxy.
        methods: difference sampling, then the others.
        cached_bytes_per_token: that cached logits are taken to need.
    """

    models: Models
    settings: PipelineSettings
    hardware: Hardware
    cost: PipelineCost
    cost_without_proxy: PipelineCost
    methods: tuple[Method, ...]
    cached_bytes_per_token: float


def make_plan(models: Models, settings: PipelineSettings, hardware: Hardware, *, cached_bytes_per_token: float) -> Plan:
    """Compute a plan; see `pipeline_cost` and `compare_methods`."""
    cost = pipeline_cost(models, settings)
    return Plan(
        models=models,
        settings=settings,
        hardware=hardware,
        cost=cost,
        cost_without_proxy=pipeline_cost(replace(models, proxy=None), replace(settings, sample_fraction=1.0)),
        methods=compare_methods(models, settings, cost, cached_bytes_per_token=cached_bytes_per_token),
        cached_bytes_per_token=cached_bytes_per_token,
    )


def lines_of(plan: Plan) -> list[str]:
    """The whole plan, for a terminal."""
    return [
        *aligned(_model_rows(plan)),
        "",
        *aligned(_stage_rows(plan)),
        "",
        "FLOP a student, all stages shared out, by number of students; and what the cost of plain training buys:",
        "",
        *aligned(_method_rows(plan.methods)),
        "",
        *_break_even_lines(plan),
        *_proxy_lines(plan),
        "",
        *_assumption_lines(plan),
    ]


def _model_rows(plan: Plan) -> list[list[str]]:
    context = plan.settings.context_tokens
    rows = [["model", "parameters", "without embeddings", "forward FLOP/token", "training FLOP/token"]]
    for name, shape in _named_shapes(plan):
        training = shape.training_flops_per_token(context, recompute=plan.settings.recompute)
        rest = shape.num_parameters - shape.num_embedding_parameters
        forward = shape.forward_flops_per_token(context)
        rows.append([name, f"{shape.num_parameters:,}", f"{rest:,}", f"{forward:.3e}", f"{training:.3e}"])
    return rows


def _named_shapes(plan: Plan) -> Iterator[tuple[str, ModelShape]]:
    yield "teacher", plan.models.teacher
    yield "reference", plan.models.reference
    if plan.models.proxy is not None:
        yield "proxy", plan.models.proxy
    yield from plan.models.students.items()


def _stage_rows(plan: Plan) -> list[list[str]]:
    rows = [["stage", "tokens", "FLOP", "GPU hours", f"hours on {plan.hardware.num_devices}", "disk"]]
    rows += [_stage_row(stage, plan) for stage in (*plan.cost.once, *plan.cost.students)]
    return rows


def _stage_row(stage: Stage, plan: Plan) -> list[str]:
    if not stage.flops:
        return [stage.name, f"{stage.tokens:.3g}", "", "", "", _bytes(stage.disk_bytes)]
    hours = plan.hardware.device_hours(stage.flops, stage.work)
    wall = plan.hardware.wall_hours(stage.flops, stage.work)
    return [
        stage.name,
        f"{stage.tokens:.3g}",
        f"{stage.flops:.2e}",
        _hours(hours),
        _hours(wall),
        _bytes(stage.disk_bytes),
    ]


def _method_rows(methods: Sequence[Method]) -> list[list[str]]:
    plain = next(method for method in methods if method.name == "plain training")
    rows = [["method", *map(str, NUMBERS_OF_STUDENTS), "tokens for plain cost", "kept on disk"]]
    for method in methods:
        costs = [f"{method.flops_a_student(number):.2e}" for number in NUMBERS_OF_STUDENTS]
        share = f"{plain.flops_per_student / method.flops_per_student:.1%}"
        rows.append([method.name, *costs, share, _bytes(method.disk_bytes) if method.disk_bytes else ""])
    return rows


def _break_even_lines(plan: Plan) -> Iterator[str]:
    ours, *others = plan.methods
    for other in others:
        number = break_even_students(ours, other)
        if number is None:
            extra = (ours.flops_a_student(1) - other.flops_a_student(1)) / other.flops_a_student(1)
            yield f"against {other.name}: never fewer FLOP, {extra:+.0%} for one student"
        else:
            students = "the first student" if number == 1 else f"{number} students"
            yield f"against {other.name}: fewer FLOP from {students} on"


def _proxy_lines(plan: Plan) -> Iterator[str]:
    if plan.models.proxy is not None:
        once, full = plan.cost.flops_once, plan.cost_without_proxy.flops_once
        yield f"with the proxy, what is done once costs {once:.2e} FLOP, without it {full:.2e}: {once / full:.0%}"


def _assumption_lines(plan: Plan) -> Iterator[str]:
    hardware, settings = plan.hardware, plan.settings
    training = hardware.peak_flops * hardware.training_utilisation
    scoring = hardware.peak_flops * hardware.scoring_utilisation
    yield (
        f"assumed: {training:.3g} FLOP/s a GPU in training ({hardware.training_utilisation:.0%} of "
        f"{hardware.peak_flops:.4g}), {scoring:.3g} in scoring ({hardware.scoring_utilisation:.0%})"
    )
    mean = settings.corpus.num_tokens / max(settings.corpus.num_sequences, 1)
    yield (
        f"         {settings.corpus.num_sequences:,} sequences of {mean:,.1f} tokens on average, kept ones as long as "
        f"others; checkpoints in bfloat16 with"
    )
    yield (
        f"         Adam's state in float32, one each; cached logits of {plan.cached_bytes_per_token:g} bytes a token; "
        "tools (no model) cost no GPU hours"
    )


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _bytes(num_bytes: float) -> str:
    """In SI units, three digits."""
    for unit in _UNITS:
        if num_bytes < 999.5 or unit == _UNITS[-1]:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    raise AssertionError


def as_json(plan: Plan) -> dict[str, Any]:
    """All numbers of a plan, with units in their names."""
    ours, *others = plan.methods
    hardware, settings = plan.hardware, plan.settings
    return {
        "models": {name: _model_json(shape, plan) for name, shape in _named_shapes(plan)},
        "stages": [_stage_json(stage, plan) for stage in (*plan.cost.once, *plan.cost.students)],
        "flops_once": plan.cost.flops_once,
        "flops_once_without_proxy": plan.cost_without_proxy.flops_once,
        "methods": {method.name: _method_json(method) for method in plan.methods},
        "break_even_students": {other.name: break_even_students(ours, other) for other in others},
        "assumptions": {
            "num_devices": hardware.num_devices,
            "peak_flops_per_second": hardware.peak_flops,
            "training_utilisation": hardware.training_utilisation,
            "scoring_utilisation": hardware.scoring_utilisation,
            "num_sequences": settings.corpus.num_sequences,
            "corpus_tokens": settings.corpus.num_tokens,
            "cached_bytes_per_token": plan.cached_bytes_per_token,
        },
    }


def _model_json(shape: ModelShape, plan: Plan) -> dict[str, float]:
    context = plan.settings.context_tokens
    return {
        "num_parameters": shape.num_parameters,
        "num_embedding_parameters": shape.num_embedding_parameters,
        "forward_flops_per_token": shape.forward_flops_per_token(context),
        "training_flops_per_token": shape.training_flops_per_token(context, recompute=plan.settings.recompute),
    }


def _stage_json(stage: Stage, plan: Plan) -> dict[str, Any]:
    return {
        "name": stage.name,
        "work": stage.work.value,
        "tokens": stage.tokens,
        "flops": stage.flops,
        "device_hours": plan.hardware.device_hours(stage.flops, stage.work),
        "wall_hours": plan.hardware.wall_hours(stage.flops, stage.work),
        "disk_bytes": stage.disk_bytes,
        "num_parameters": stage.parameters,
    }


def _method_json(method: Method) -> dict[str, Any]:
    return {
        "flops_once": method.flops_once,
        "flops_per_student": method.flops_per_student,
        "disk_bytes": method.disk_bytes,
        "flops_a_student": {str(number): method.flops_a_student(number) for number in NUMBERS_OF_STUDENTS},
    }
