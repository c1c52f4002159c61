"""A plan as text and as JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

from megatron_miniplm.evaluation.cost.comparison import Method, break_even_students
from megatron_miniplm.evaluation.cost.plan import Plan
from megatron_miniplm.evaluation.cost.road import Stage
from megatron_miniplm.flops import ModelShape
from megatron_miniplm.text_table import aligned

#: Columns of the table of costs a student.
NUMBERS_OF_STUDENTS = (1, 2, 3, 5, 10)
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


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
    rows += [_stage_row(stage, plan) for stage in (*plan.road.once, *plan.road.students)]
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
        once, full = plan.road.flops_once, plan.road_without_proxy.flops_once
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
        "stages": [_stage_json(stage, plan) for stage in (*plan.road.once, *plan.road.students)],
        "flops_once": plan.road.flops_once,
        "flops_once_without_proxy": plan.road_without_proxy.flops_once,
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
