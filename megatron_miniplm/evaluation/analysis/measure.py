"""All measures of several data sets."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.analysis.data import Dataset, check_tokenizers
from megatron_miniplm.evaluation.analysis.diversity import (
    Embedding,
    log_determinant_distance,
    mean_and_error,
    mean_cosine_distance,
    measure_vocabulary,
)
from megatron_miniplm.evaluation.analysis.exact import (
    Lengths,
    Origin,
    Scan,
    different_ngrams,
    measure_lengths,
    measure_origin,
    scan,
)
from megatron_miniplm.runtime.progress import Progress

#: Disjoint parts of a sample that are measured one by one, so that every number has a standard error.
NUM_PARTS = 8
#: Most sequences of a part that enter its determinant.
DETERMINANT_SEQUENCES = 256
COSINE_DISTANCE, DETERMINANT_DISTANCE = "mean_cosine_distance", "log_determinant_distance"
VOCABULARY = ("distinct", "entropy_bits", "covering", "distinct_2")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is sampled and what is scanned.

    Attributes:
        num_sampled: sequences that are drawn from each data set.
        max_tokens: of a drawn sequence, its first ones.
        max_scanned_tokens: a data set or held-out corpus with more is not scanned.
    """

    num_sampled: int
    max_tokens: int
    seed: int
    max_scanned_tokens: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Mean over the parts of a sample, and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is known of one data set.

    Attributes:
        scan: None where it has too many tokens.
        sampled: by name: VOCABULARY, COSINE_DISTANCE, DETERMINANT_DISTANCE.
    """

    lengths: Lengths
    origin: Origin
    scan: Scan | None
    sampled: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Measures of several data sets, the first of which is what the others are compared with.

    Attributes:
        datasets: by name.
        part_sequences, part_tokens: what every part of every sample has of each, so that numbers are comparable.
        determinant_sequences: of these, what the determinant is of.
        embedding: what distances are measured in.
        read_tokens: tokens that were read, of which `seconds` tells the speed.
    """

    datasets: dict[str, Measures]
    settings: Settings
    part_sequences: int
    part_tokens: int
    determinant_sequences: int
    embedding: str
    read_tokens: int
    seconds: float


def analyze(
    datasets: Sequence[Dataset],
    settings: Settings,
    make_embedding: Callable[[Sequence[np.ndarray]], Embedding],
    held_out: Sequence[Dataset] = (),
) -> Analysis:
    """Measure all data sets.

    Args:
        make_embedding: is given the sample of the first data set.
        held_out: corpora whose n-grams are looked for.

    Raises:
        InputError: a data set has too few sequences, or a held-out corpus too many tokens.
        FingerprintMismatchError: two data sets have different tokenizers.
        CorruptArtifactError: a sidecar is of another corpus.
    """
    check_tokenizers([*datasets, *held_out])
    started = time.monotonic()
    samples = {dataset.name: _sample(dataset, settings) for dataset in datasets}
    part_sequences = min(map(len, samples.values())) // NUM_PARTS
    starts = range(0, NUM_PARTS * part_sequences, part_sequences)
    parts = {name: [sample[at : at + part_sequences] for at in starts] for name, sample in samples.items()}
    part_tokens = min(sum(map(len, part)) for of_name in parts.values() for part in of_name)
    embedding = make_embedding(samples[datasets[0].name])
    scans = _scans(datasets, _ngrams_of(held_out, settings), settings)
    measures = {}
    with Progress(len(datasets) * NUM_PARTS * part_sequences, " sequences", title="diversity") as progress:
        for dataset in datasets:
            measures[dataset.name] = Measures(
                lengths=measure_lengths(dataset.lengths()),
                origin=measure_origin(dataset),
                scan=scans.get(dataset.name),
                sampled=_measure_sample(parts[dataset.name], part_tokens, embedding, progress),
            )
    sampled_tokens = sum(len(tokens_T) for sample in samples.values() for tokens_T in sample)
    return Analysis(
        datasets=measures,
        settings=settings,
        part_sequences=part_sequences,
        part_tokens=part_tokens,
        determinant_sequences=min(part_sequences, DETERMINANT_SEQUENCES),
        embedding=embedding.description,
        read_tokens=sampled_tokens + sum(found.num_tokens for found in scans.values()),
        seconds=time.monotonic() - started,
    )


def _sample(dataset: Dataset, settings: Settings) -> list[np.ndarray]:
    sample = dataset.sample(settings.num_sampled, seed=settings.seed, max_tokens=settings.max_tokens)
    if len(sample) < 2 * NUM_PARTS:
        raise InputError(
            f"{dataset.name} gave a sample of {len(sample)} sequences with tokens, expected at least {2 * NUM_PARTS}: "
            "raise --sample, or analyse more data"
        )
    return sample


def _ngrams_of(held_out: Sequence[Dataset], settings: Settings) -> dict[str, np.ndarray]:
    for corpus in held_out:
        if corpus.num_tokens > settings.max_scanned_tokens:
            raise InputError(
                f"{corpus.name} has {corpus.num_tokens:,} tokens, more than --scan-tokens "
                f"{settings.max_scanned_tokens:,}: raise it (8 bytes of memory a token), or leave --heldout out"
            )
    return {corpus.name: different_ngrams(corpus) for corpus in held_out}


def _scans(datasets: Sequence[Dataset], ngrams: Mapping[str, np.ndarray], settings: Settings) -> dict[str, Scan]:
    """Of the data sets that are small enough."""
    small = [dataset for dataset in datasets if dataset.num_tokens <= settings.max_scanned_tokens]
    with Progress(sum(dataset.num_tokens for dataset in small), " tokens", title="copies") as progress:
        return {dataset.name: scan(dataset, ngrams, progress.advance) for dataset in small}


def _measure_sample(
    parts: Sequence[Sequence[np.ndarray]], part_tokens: int, embedding: Embedding, progress: Progress
) -> dict[str, Estimate]:
    values: dict[str, list[float]] = {name: [] for name in (*VOCABULARY, COSINE_DISTANCE, DETERMINANT_DISTANCE)}
    for part in parts:
        vocabulary = measure_vocabulary(part, part_tokens)
        for name in VOCABULARY:
            values[name].append(getattr(vocabulary, name))
        unit_SD = embedding.embed(part)
        values[COSINE_DISTANCE].append(mean_cosine_distance(unit_SD))
        values[DETERMINANT_DISTANCE].append(log_determinant_distance(unit_SD[:DETERMINANT_SEQUENCES]))
        progress.advance(len(part))
    found = {name: mean_and_error(of_name) for name, of_name in values.items()}
    return {name: Estimate(value=mean, standard_error=error) for name, (mean, error) in found.items()}
