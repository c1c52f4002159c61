"""The generation run: what is asked for, every replica's blocks, and the corpus that they are put together to."""

import argparse
import importlib.metadata
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed

from megatron_miniplm.artifacts.block_queue import BlockQueue
from megatron_miniplm.artifacts.leases import Leases
from megatron_miniplm.artifacts.manifest import ArtifactInput, Manifest, input_of
from megatron_miniplm.artifacts.score_blocks import BlockPlan
from megatron_miniplm.baselines.generation import TokenGenerator, refuse_layout
from megatron_miniplm.baselines.generation_parts import Part, Parts, parts_directory
from megatron_miniplm.baselines.generation_plan import (
    GenerationSettings,
    batch_seed,
    batches,
    chosen_sequences,
    prompt_of,
)
from megatron_miniplm.errors import InputError, Interrupted, MiniPLMError, unusable_path
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter, merge
from megatron_miniplm.indexed.existing import existing_corpus
from megatron_miniplm.indexed.layout import idx_path
from megatron_miniplm.indexed.prefix_files import prefix_lock
from megatron_miniplm.indexed.reader import Pool, fingerprint_of
from megatron_miniplm.mcore import cpu_emulation, models, program
from megatron_miniplm.mcore.identity import ModelIdentity, TokenizerIdentity, identity_of_inputs
from megatron_miniplm.mcore.replica import Replica, StopRequest
from megatron_miniplm.runtime.progress import Progress, scaled

POLL_SECONDS = 1.0
#: What the writer tells its replica instead of a block: all that is missing is in other hands.
_WAIT = -1


def generate_corpus(
    args: argparse.Namespace,
    prefixes: Sequence[Path],
    output_prefix: Path,
    model: ModelIdentity,
    tokenizer: TokenizerIdentity,
    settings: GenerationSettings,
) -> None:
    """Continue the chosen sequences of `prefixes` with samples of the model, into a new corpus; a collective call.

    Args:
        args: Megatron's, validated and initialised, with our flags.
        prefixes: of the corpus, in the order that defines the global sequence ids.
        model, tokenizer: from `commands.scored_model.model_and_tokenizer`.

    Raises:
        MiniPLMError: corpus, model, layout or output cannot be used, or a signal asked to stop (`Interrupted`).
    """
    with program.alike_on_all_ranks():
        refuse_layout(args, settings.context_tokens)
    vocab_size = min(model.vocab_size, tokenizer.vocab_size)
    identity = program.on_rank_zero(lambda: identity_of_inputs(args, prefixes, model, tokenizer))
    pool = Pool([IndexedCorpus.open(prefix) for prefix in prefixes])
    with program.alike_on_all_ranks():
        token_dtype = _token_dtype(pool, vocab_size)
        _check_settings(settings, vocab_size)
    chosen = chosen_sequences(len(pool), settings.num_sequences, random=settings.random_subset, seed=settings.seed)
    output = _Output(args, prefixes, output_prefix, model, identity, settings, vocab_size)
    parts = Parts(
        parts_directory(output_prefix),
        {**identity, **output.own_identity()},
        BlockPlan(num_sequences=len(chosen), block_sequences=settings.block_sequences),
        token_dtype,
    )
    missing = program.on_rank_zero(lambda: _begin(output, parts, pool, chosen))
    if missing is None:
        return
    program.say_once(
        f"{len(chosen):,} sequences in {parts.plan.num_blocks} blocks, {len(missing)} of them to be generated"
    )
    if missing:
        generator = TokenGenerator(models.load_for_scoring(args), vocab_size, settings)
        try:
            _Run(parts, pool, chosen, generator, settings, vocab_size, missing).fill()
        except MiniPLMError:  # on all ranks alike
            if program.on_rank_zero(output.existing) is None:
                raise
            # Another job has put the parts together and removed them, while this one still looked for more to do.
    program.on_rank_zero(lambda: output.write(parts))


def _token_dtype(pool: Pool, vocab_size: int) -> np.dtype:
    """The dtype of all prefixes, which must hold every token that may be drawn."""
    first, *others = pool.corpora
    for other in others:
        if other.token_dtype != first.token_dtype:
            raise InputError(
                f"{first.prefix} has tokens of {first.token_dtype}, {other.prefix} of {other.token_dtype}: generate "
                "from each into a corpus of its own"
            )
    if vocab_size - 1 > np.iinfo(first.token_dtype).max:
        raise InputError(
            f"{first.prefix} has tokens of {first.token_dtype}, the model {vocab_size} of them: the corpus was made "
            "with another tokenizer; give the model that goes with it"
        )
    return first.token_dtype


def _check_settings(settings: GenerationSettings, vocab_size: int) -> None:
    if settings.top_k >= vocab_size:
        raise InputError(f"--top-k {settings.top_k} must be below the {vocab_size} tokens of the vocabulary")
    if settings.eod_id is not None and settings.eod_id >= vocab_size:
        raise InputError(
            f"the end-of-document token is {settings.eod_id}, the vocabulary has {vocab_size} tokens: "
            "give --eod-token-id"
        )


def _begin(output: "_Output", parts: Parts, pool: Pool, chosen: np.ndarray) -> list[int] | None:
    """Look at what is there; the missing blocks, or None where the corpus is complete."""
    if output.existing() is not None:
        parts.remove()  # of a run that was killed after the last step but one
        return None
    if not any(len(pool.sequence(int(sequence))) for sequence in chosen):
        raise InputError(f"{pool.corpora[0].prefix}: all chosen sequences are empty, so there is no prompt")
    parts.create_or_resume()
    parts.check()
    return parts.missing_blocks()


class _Run:
    """One rank's part in filling the missing blocks."""

    def __init__(
        self,
        parts: Parts,
        pool: Pool,
        chosen: np.ndarray,
        generator: TokenGenerator,
        settings: GenerationSettings,
        vocab_size: int,
        missing: list[int],
    ) -> None:
        self._parts = parts
        self._pool = pool
        self._chosen = chosen
        self._generator = generator
        self._settings = settings
        self._vocab_size = vocab_size
        self._replica = Replica.of_this_rank()
        self._stop = StopRequest()
        self._leases = Leases(parts.directory) if self._replica.is_writer else None
        self._queue = BlockQueue(parts, self._leases, self._leases.owner.name) if self._leases is not None else None
        self._error: MiniPLMError | None = None
        self._shown = _Shown(parts, missing, visible=torch.distributed.get_rank() == 0)

    def fill(self) -> None:
        """Generate until no block is missing.

        Raises:
            MiniPLMError: on every rank, what happened on any.
        """
        with self._shown, ExitStack() as stack:
            try:
                if self._leases is not None:
                    stack.enter_context(self._leases)
            except MiniPLMError as error:
                self._error = error
            while (block := self._next_block()) is not None:
                if block == _WAIT:
                    time.sleep(POLL_SECONDS)
                    self._shown.block()
                else:
                    self._do(block)
                if self._is_over():
                    break
        self._leave_together()

    def _next_block(self) -> int | None:
        """What the replica does next, as its writer says; a collective call."""
        order: list[int] = []
        if self._queue is not None and self._error is None:
            try:
                block = self._queue.take()
                order = [block] if block is not None else [] if self._queue.is_empty else [_WAIT]
            except (MiniPLMError, OSError) as error:
                self._fail(error)
        return next(iter(self._replica.from_writer(order, size=1)), None)

    def _do(self, block: int) -> None:
        """Generate one block and publish it; a collective call of the replica."""
        try:
            part = self._generate(block)
            if part is not None and self._leases is not None:
                self._parts.write_block(block, part)
                self._leases.release(block)
        except (MiniPLMError, OSError) as error:
            self._fail(error)
        self._shown.block()

    def _generate(self, block: int) -> Part | None:
        """The sequences of one block; None where it is time to stop.

        Raises:
            MiniPLMError: on all ranks of the replica alike.
        """
        ids = self._chosen[self._parts.plan.sequences(block)]
        prompts = [prompt_of(self._pool.sequence(int(sequence)), self._settings) for sequence in ids]
        for sequence, prompt in zip(ids, prompts, strict=True):
            self._check_tokens(int(sequence), prompt)
        continuations = [np.zeros(0, np.int64)] * len(prompts)
        for rows in batches(prompts, self._settings):
            if self._is_over():
                return None
            seed = batch_seed(self._settings.seed, int(ids[rows[0]]))
            started = time.monotonic()
            for row, new in zip(
                rows, self._generator.continue_prompts([prompts[row] for row in rows], seed), strict=True
            ):
                continuations[row] = new
            num_new = sum(len(continuations[row]) for row in rows)
            self._shown.batch(len(rows), num_new / (time.monotonic() - started))
        return Part.of(prompts, continuations, self._parts.token_dtype)

    def _check_tokens(self, sequence: int, prompt: np.ndarray) -> None:
        if len(prompt) and (int(prompt.max()) >= self._vocab_size or int(prompt.min()) < 0):
            corpus, index = self._pool.locate(sequence)
            raise InputError(
                f"{corpus.prefix}: sequence {index} holds token {int(prompt.max())}, the vocabulary has "
                f"{self._vocab_size}: give the model and the tokenizer that the corpus was made with"
            )

    def _is_over(self) -> bool:
        """Whether any rank of the replica wants to leave; a collective call."""
        return self._replica.agree_max(int(self._error is not None or self._stop.is_made())) > 0

    def _fail(self, error: MiniPLMError | OSError) -> None:
        self._error = unusable_path(error) if isinstance(error, OSError) else error
        self._stop.make()

    def _leave_together(self) -> None:
        """Meet all ranks and raise what happened on any; a collective call."""
        outcomes: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(outcomes, (self._error, self._stop.came_by_signal))
        with program.alike_on_all_ranks():
            for error, _ in outcomes:
                if error is not None:
                    raise error
        if any(stopped for _, stopped in outcomes) and program.on_rank_zero(self._parts.missing_blocks):
            with program.alike_on_all_ranks():
                raise Interrupted("told to stop; all finished blocks are kept, the same command continues")


class _Shown:
    """Progress of all replicas, as rank 0 knows it: its own batches, and the blocks that are published."""

    def __init__(self, parts: Parts, missing: list[int], *, visible: bool) -> None:
        self._parts = parts
        self._visible = visible
        self._total = self._num_sequences(missing)
        self._in_flight = 0
        self._progress = Progress(self._total, " sequences", visible=visible)

    def batch(self, num_sequences: int, tokens_per_second: float) -> None:
        """A batch of this rank's is done."""
        self._in_flight += num_sequences
        note = f"{scaled(tokens_per_second, ' new tokens')}/s a replica"
        self._progress.advance(min(num_sequences, self._total - self._progress.done), note=note)

    def block(self) -> None:
        """A block of this rank's is done, or it was waiting for others'."""
        self._in_flight = 0
        if self._visible:
            done = self._total - self._num_sequences(self._parts.missing_blocks())
            self._progress.advance(max(0, done - self._progress.done))

    def _num_sequences(self, blocks: list[int]) -> int:
        return sum(len(self._parts.plan.sequences(block)) for block in blocks)

    def __enter__(self) -> "_Shown":
        self._progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)


class _Output:
    """The corpus that is written, and what stands in its manifest."""

    def __init__(
        self,
        args: argparse.Namespace,
        prefixes: Sequence[Path],
        prefix: Path,
        model: ModelIdentity,
        inputs: dict[str, Any],
        settings: GenerationSettings,
        vocab_size: int,
    ) -> None:
        self._prefix = prefix
        self._prefixes = prefixes
        self._model = model
        self._fingerprints = [corpus["fingerprint"] for corpus in inputs["corpus"]]
        self._settings = {
            "generated": True,
            **asdict(settings),
            "vocab_size": vocab_size,
            "precision": str(args.params_dtype).removeprefix("torch."),
            # Generators of GPUs and of the CPU give other numbers for one seed.
            "device": "cpu" if cpu_emulation.is_active() else "cuda",
        }
        self._versions = {name: importlib.metadata.version(name) for name in ("megatron-core", "torch")}

    def own_identity(self) -> dict[str, Any]:
        """What must be equal for parts to belong together, beside corpus and model."""
        return {"settings": self._settings, "versions": self._versions}

    def existing(self) -> Manifest | None:
        """The manifest of the corpus, if this command has made it.

        Raises:
            InputError: something else lies there.
        """
        return existing_corpus(
            self._prefix,
            settings=self._settings,
            versions=self._versions,
            inputs=self._inputs(),
            output_flag="--output-prefix",
        )

    def write(self, parts: Parts) -> None:
        """Put all parts together in order, and remove them.

        Raises:
            CorruptArtifactError: a part is damaged.
        """
        with prefix_lock(self._prefix):
            self._write_alone(parts)

    def _write_alone(self, parts: Parts) -> None:
        if self.existing() is not None:  # another job was first
            parts.remove()
            return
        num_new = num_prompt = num_skipped = num_ended = 0
        eod_id = self._settings["eod_id"]
        with IndexedWriter(self._prefix, parts.token_dtype) as writer:
            for block in range(parts.plan.num_blocks):
                part = parts.read_block(block)
                lengths_N = part.lengths_N2[:, 1]
                full_N = lengths_N > 0
                writer.append(part.tokens_T, lengths_N[full_N])
                num_prompt += int(part.lengths_N2[:, 0].sum())
                num_new += int(lengths_N.sum()) - int(part.lengths_N2[:, 0].sum())
                num_skipped += int((~full_N).sum())
                ends_N = part.tokens_T[np.cumsum(lengths_N)[full_N] - 1]
                num_ended += 0 if eod_id is None else int((ends_N == eod_id).sum())
            files = writer.close()
            Manifest(
                kind="corpus",
                files=files,
                fingerprint=fingerprint_of(self._prefix, str(files[idx_path(self._prefix).name]["blake2b"])),
                counts={
                    "num_sequences": writer.num_sequences,
                    "num_documents": writer.num_documents,
                    "num_tokens": writer.num_tokens,
                    "num_prompt_tokens": num_prompt,
                    "num_new_tokens": num_new,
                    "num_ended_sequences": num_ended,
                    "num_skipped_sequences": num_skipped,
                },
                settings=self._settings,
                versions=self._versions,
                inputs=self._inputs(),
            ).write(self._prefix)
        parts.remove()
        print(
            f"{self._prefix}: {writer.num_sequences:,} sequences, {num_prompt:,} prompt tokens and {num_new:,} new; "
            f"{num_ended:,} end with the end-of-document token; left out as empty: {num_skipped:,}",
            flush=True,
        )

    def _inputs(self) -> tuple[ArtifactInput, ...]:
        """Corpora first: the tokenizer is looked for along them."""
        directory = self._prefix.parent
        corpora = [
            input_of("corpus", prefix, fingerprint, relative_to=directory)
            for prefix, fingerprint in zip(self._prefixes, self._fingerprints, strict=True)
        ]
        behind = merge.inputs_behind([merge.Part.open(prefix) for prefix in self._prefixes], directory)
        tokenizers = [parent for parent in behind if parent.role == "tokenizer"]
        return (*corpora, input_of("model", self._model.path, self._model.weights, relative_to=directory), *tokenizers)
