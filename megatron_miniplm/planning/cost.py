"""Models and corpus -> floating point operations, hours and bytes of every stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from megatron_miniplm.artifacts.score_blocks import BlockPlan, default_block_sequences
from megatron_miniplm.artifacts.selected_arrays import INDEX_DTYPE, VALUE_DTYPE, WEIGHT_DTYPE
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed.layout import IndexHeader, optimal_dtype
from megatron_miniplm.mcore.flops import PEAK_FLOPS, TRAINING_PASSES, ModelShape
from megatron_miniplm.planning.sequences import SequenceLengths

#: Of a block's checksum in the store's list of them.
CHECKSUM_BYTES = 4
#: A parameter in a checkpoint of Megatron's distributed optimizer: bfloat16, and float32 master, mean and variance.
CHECKPOINT_BYTES_PER_PARAMETER = 2 + 3 * 4


class Work(Enum):
    """What a stage does with a device; the share of the peak that it reaches depends on that."""

    TRAINING = "training"
    SCORING = "scoring"
    TOOLS = "tools"


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Devices and what they reach.

    Attributes:
        peak_flops: of one device, in a second.
        training_utilisation, scoring_utilisation: share of the peak that the model's own operations reach (MFU).
    """

    num_devices: int
    peak_flops: float
    training_utilisation: float
    scoring_utilisation: float

    def device_hours(self, flops: float, work: Work) -> float:
        """Of one device; 0 for tools, which need none."""
        if work is Work.TOOLS:
            return 0.0
        utilisation = self.training_utilisation if work is Work.TRAINING else self.scoring_utilisation
        return flops / (self.peak_flops * utilisation) / 3600

    def wall_hours(self, flops: float, work: Work) -> float:
        """Of all devices together."""
        return self.device_hours(flops, work) / self.num_devices


def peak_flops_of(device: str) -> float:
    """Of a device by its name, such as `H100`, in a second.

    Raises:
        InputError: not in `PEAK_FLOPS`.
    """
    found = next((flops for part, flops in PEAK_FLOPS.items() if part in device.upper()), None)
    if found is None:
        raise InputError(f"--gpu {device} is not known, expected one of {', '.join(PEAK_FLOPS)}: or give --peak-flops")
    return found


@dataclass(frozen=True, kw_only=True)
class Models:
    """Who takes part.

    Attributes:
        students: by name, in order.
        proxy: predicts the differences of sequences that teacher and reference do not score; None without one.
    """

    teacher: ModelShape
    reference: ModelShape
    students: Mapping[str, ModelShape]
    proxy: ModelShape | None = None


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """Settings of the whole pipeline; the defaults are those of the tools.

    Attributes:
        corpus: before the reference's part is split off.
        reference_fraction: of the corpus, for the reference to train on; the rest is scored.
        reference_tokens: that the reference is trained on; None: one epoch of its part; 0: it is there already.
        ratio: share of the scored sequences that is kept.
        student_tokens: that each student is trained on; None: one epoch of what is kept.
        context_tokens, overlap_tokens: `--seq-length` of scoring and training, `--window-overlap`.
        sample_fraction: of the scored sequences, which teacher and reference read where there is a proxy.
        proxy_sequences: that the proxy is fitted on, repetitions included; None: each of the sample once.
        recompute: training with `--recompute-granularity full`.
    """

    corpus: SequenceLengths
    reference_fraction: float
    ratio: float
    context_tokens: int
    overlap_tokens: int
    reference_tokens: float | None = None
    student_tokens: float | None = None
    sample_fraction: float = 1.0
    proxy_sequences: float | None = None
    recompute: bool = False

    @property
    def pool(self) -> SequenceLengths:
        """What is scored."""
        return self.corpus.part(1 - self.reference_fraction)

    @property
    def sample(self) -> SequenceLengths:
        """What teacher and reference score: all of the pool without a proxy."""
        return self.pool.part(self.sample_fraction)

    @property
    def tokens_of_reference(self) -> float:
        return self._given(self.reference_tokens, self.corpus.num_tokens * self.reference_fraction)

    @property
    def tokens_of_student(self) -> float:
        return self._given(self.student_tokens, self.pool.num_tokens * self.ratio)

    @staticmethod
    def _given(value: float | None, default: float) -> float:
        return default if value is None else value


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        tokens: read or trained on, repetitions included; windows repeat none here.
        flops: 0 for what does not compute with a model.
        disk_bytes: of what it leaves.
        parameters: of the model, None where there is none.
    """

    name: str
    work: Work
    tokens: float
    flops: float
    disk_bytes: float
    parameters: int | None = None


@dataclass(frozen=True, kw_only=True)
class PipelineCost:
    """All stages in order: those that run once, and one for each student."""

    once: tuple[Stage, ...]
    students: tuple[Stage, ...]

    @property
    def flops_once(self) -> float:
        return sum(stage.flops for stage in self.once)


def pipeline_cost(models: Models, settings: PipelineSettings) -> PipelineCost:
    """The stages in the order in which they run; those without work (a reference that is there) are left out."""
    once = [_preprocessing(models, settings)]
    if settings.tokens_of_reference:
        once.append(_training("train the reference", models.reference, settings.tokens_of_reference, settings))
    once.append(_scoring("score with the teacher", models.teacher, settings))
    once.append(_scoring("score with the reference", models.reference, settings))
    if models.proxy is not None:
        once += [_proxy_fit(models.proxy, settings), _proxy_prediction(models.proxy, settings)]
    once.append(_selection(settings))
    students = tuple(
        _training(f"train {name}", shape, settings.tokens_of_student, settings)
        for name, shape in models.students.items()
    )
    return PipelineCost(once=tuple(once), students=students)


def _preprocessing(models: Models, settings: PipelineSettings) -> Stage:
    """Tokens and their index, and the index-only views of the split between reference and pool."""
    corpus = settings.corpus
    token_dtype = optimal_dtype(models.teacher.vocab_size)
    disk_bytes = corpus.num_tokens * token_dtype.itemsize + _index_bytes(corpus.num_sequences, token_dtype)
    if settings.reference_fraction:
        for part in (corpus.part(settings.reference_fraction), settings.pool):
            disk_bytes += _index_bytes(part.num_sequences, token_dtype)
    return Stage(name="preprocess", work=Work.TOOLS, tokens=corpus.num_tokens, flops=0.0, disk_bytes=disk_bytes)


def _index_bytes(num_sequences: int, token_dtype: np.dtype) -> int:
    """Of an `.idx` in which each sequence is a document."""
    header = IndexHeader(token_dtype=token_dtype, num_sequences=num_sequences, num_boundaries=num_sequences + 1)
    return header.size_bytes


def _scoring(name: str, shape: ModelShape, settings: PipelineSettings) -> Stage:
    return Stage(
        name=name,
        work=Work.SCORING,
        tokens=settings.sample.num_tokens,
        flops=_windows(settings.sample, settings).forward_flops(shape),
        disk_bytes=_store_bytes(settings, settings.sample.num_tokens),
        parameters=shape.num_parameters,
    )


def _windows(sequences: SequenceLengths, settings: PipelineSettings) -> SequenceLengths:
    return sequences.windows(context_tokens=settings.context_tokens, overlap_tokens=settings.overlap_tokens)


def _store_bytes(settings: PipelineSettings, num_scored_tokens: float) -> int:
    """Of a score store of the pool, but for its manifest; a sequence that was left out has an entry, too."""
    num_sequences = settings.pool.num_sequences
    block_sequences = default_block_sequences(
        num_sequences=num_sequences, num_tokens=round(num_scored_tokens), context_tokens=settings.context_tokens
    )
    plan = BlockPlan(num_sequences=num_sequences, block_sequences=block_sequences)
    if not plan.num_blocks:
        return 0
    last = plan.num_blocks - 1
    return last * plan.block_bytes(0) + plan.block_bytes(last) + plan.num_blocks * CHECKSUM_BYTES


def _proxy_fit(shape: ModelShape, settings: PipelineSettings) -> Stage:
    sample = settings.sample
    num_sequences = sample.num_sequences if settings.proxy_sequences is None else settings.proxy_sequences
    read = sample.part(num_sequences / max(sample.num_sequences, 1))
    return Stage(
        name="fit the proxy",
        work=Work.TRAINING,
        tokens=read.num_tokens,
        flops=TRAINING_PASSES * _without_output(shape, _windows(read, settings)),
        disk_bytes=shape.num_parameters * CHECKPOINT_BYTES_PER_PARAMETER,
        parameters=shape.num_parameters,
    )


def _proxy_prediction(shape: ModelShape, settings: PipelineSettings) -> Stage:
    return Stage(
        name="predict with the proxy",
        work=Work.SCORING,
        tokens=settings.pool.num_tokens,
        flops=_without_output(shape, _windows(settings.pool, settings)),
        disk_bytes=_store_bytes(settings, settings.pool.num_tokens),
        parameters=shape.num_parameters,
    )


def _without_output(shape: ModelShape, windows: SequenceLengths) -> float:
    """Forward operations without those of the logits, which a proxy does not make."""
    return windows.forward_flops(shape) - windows.num_tokens * shape.output_flops_per_token


def _selection(settings: PipelineSettings) -> Stage:
    """Views, and beside them index, value and weight of each kept sequence."""
    kept = settings.pool.part(settings.ratio)
    arrays = INDEX_DTYPE.itemsize + VALUE_DTYPE.itemsize + WEIGHT_DTYPE.itemsize
    disk_bytes = _index_bytes(kept.num_sequences, np.dtype("<i4")) + kept.num_sequences * arrays
    return Stage(name="select", work=Work.TOOLS, tokens=kept.num_tokens, flops=0.0, disk_bytes=disk_bytes)


def _training(name: str, shape: ModelShape, num_tokens: float, settings: PipelineSettings) -> Stage:
    flops = shape.training_flops_per_token(settings.context_tokens, recompute=settings.recompute)
    return Stage(
        name=name,
        work=Work.TRAINING,
        tokens=num_tokens,
        flops=num_tokens * flops,
        disk_bytes=shape.num_parameters * CHECKPOINT_BYTES_PER_PARAMETER,
        parameters=shape.num_parameters,
    )
