"""Split a corpus at random into a reference part and a pool, as views: no token is copied."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_miniplm.artifacts.data_args import write_data_args
from megatron_miniplm.artifacts.directories import sole_writer
from megatron_miniplm.artifacts.fingerprint import Fingerprint, digest_values
from megatron_miniplm.artifacts.manifest import ArtifactInput, Manifest, input_of, is_prefix, refuse_another
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus, write_view

REFERENCE, POOL = "reference", "pool"


def split_reference(
    prefixes: Sequence[Path], output_dir: Path, *, reference_fraction: float, seed: int
) -> dict[str, int]:
    """Put a random share of all sequences into `output_dir/reference`, the rest into `output_dir/pool`.

    The reference model trains on the first, and the second is scored: scores of text that the reference model has seen
    would say little. The choice depends on the seed and the number of sequences alone.

    Args:
        prefixes: the corpus.
        output_dir: gets two directories, each with a view a prefix and a `data_args.txt`.
        reference_fraction: share of the sequences, in (0, 1), rounded to whole sequences.
        seed: of NumPy's PCG64.

    Returns:
        Number of sequences by part.
    """
    if not 0 < reference_fraction < 1:
        raise InputError(f"--reference-fraction {reference_fraction} must lie in (0, 1)")
    if is_prefix(output_dir):
        raise InputError(f"{output_dir} is the prefix of a .bin/.idx pair: give another --output")
    if not prefixes:
        raise InputError("there is no prefix to split: give prefixes, or a directory that holds some, to --input")
    if not 0 <= seed < 1 << 63:
        raise InputError(f"--seed {seed} must lie in [0, 2^63)")
    corpora = [IndexedCorpus.open(prefix) for prefix in prefixes]
    num_sequences = sum(len(corpus) for corpus in corpora)
    num_reference = round(reference_fraction * num_sequences)
    if not 0 < num_reference < num_sequences:
        raise InputError(
            f"--reference-fraction {reference_fraction} of {num_sequences} sequences leaves one part empty"
        )
    settings = {"reference_fraction": reference_fraction, "seed": seed}
    fingerprints = [corpus.verified_fingerprint() for corpus in corpora]
    fingerprint = digest_values("split", fingerprints, settings)
    inputs = tuple(
        input_of("corpus", corpus.prefix, found, relative_to=output_dir)
        for corpus, found in zip(corpora, fingerprints, strict=True)
    )
    counts = {"num_reference_sequences": num_reference, "num_pool_sequences": num_sequences - num_reference}
    manifest = Manifest(kind="split", fingerprint=fingerprint, counts=counts, settings=settings, inputs=inputs)
    with sole_writer(output_dir):
        refuse_another(output_dir, "split", fingerprint)
        is_reference_N = np.zeros(num_sequences, bool)
        is_reference_N[np.random.default_rng(seed).permutation(num_sequences)[:num_reference]] = True
        for part, is_part_N in ((REFERENCE, is_reference_N), (POOL, ~is_reference_N)):
            with sole_writer(output_dir / part):  # removes what a kill has left there, too
                _write_part(output_dir / part, part, corpora, is_part_N, fingerprint, settings)
        manifest.write(output_dir)
    return counts


def _write_part(
    directory: Path,
    part: str,
    corpora: Sequence[IndexedCorpus],
    is_part_N: np.ndarray,
    fingerprint: Fingerprint,
    settings: dict[str, float],
) -> None:
    """One view a prefix, the blend, and the part's own manifest; the caller holds the lock of the directory above."""
    weighted, parents, start = [], [], 0
    for corpus in corpora:
        indices_K = np.flatnonzero(is_part_N[start : start + len(corpus)])
        prefix = write_view(corpus, indices_K, directory, label=part, settings=dict(settings))
        weighted.append((int(corpus.lengths_N[indices_K].sum(dtype=np.int64)), prefix))
        parents.append(
            ArtifactInput(role="view", path=prefix.name, fingerprint=IndexedCorpus.open(prefix).fingerprint())
        )
        start += len(corpus)
    write_data_args(directory, weighted)
    Manifest(
        kind="views",
        fingerprint=digest_values(part, fingerprint),
        counts={"num_sequences": int(is_part_N.sum()), "num_tokens": sum(num_tokens for num_tokens, _ in weighted)},
        settings=dict(settings),
        inputs=tuple(parents),
    ).write(directory)
