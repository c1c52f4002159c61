"""Score every corpus with every checkpoint in one process, and say what the losses are.

DIR/<checkpoint>/<corpus>    an ordinary directory of scores

So what one of them has is never computed again, in whatever layout and after whatever interruption, and one of another
model or corpus is refused. One for each pair, so that a checkpoint or a corpus can be added later.
"""

import argparse
import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.held_out import CorpusLoss, Counting, HeldOutCorpus, Texts, corpus_loss, describe
from megatron_miniplm.evaluation.held_out_table import Measured
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.mcore import checkpoints, program
from megatron_miniplm.mcore.identity import ModelIdentity, TokenizerIdentity
from megatron_miniplm.mcore.replica import StopRequest
from megatron_miniplm.scoring.engine import SharedScorer, score_corpus
from megatron_miniplm.scoring.rows import ScoringRules

Setup = Callable[[], tuple[ModelIdentity, TokenizerIdentity, ScoringRules]]


class HeldOutRun:
    """One evaluation; all ranks make the same calls.

    Attributes:
        texts: of each corpus by name, once it has been scored; on rank 0 only.
        trained_on: names of corpora that a checkpoint says it was trained on.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        corpora: Sequence[HeldOutCorpus],
        setup: Setup,
        token_bytes: Callable[[], np.ndarray | None],
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            args: Megatron's, validated and initialised, with our flags.
            setup: who scores how with the checkpoint that `args.ckpt_step` names; a collective call.
            token_bytes: see `describe`; called on rank 0, once.
        """
        self._args, self._corpora, self._setup, self._token_bytes = args, corpora, setup, token_bytes
        self._directory = Path(args.scores)
        self.texts: dict[str, Texts] = {}
        self.trained_on: set[str] = set()

    def measure(self, iterations: Sequence[int | None]) -> list[Measured]:
        """Losses of checkpoints in order.

        Args:
            iterations: None for the checkpoint that has no choice, such as a Hugging Face directory.

        Raises:
            MiniPLMError: a checkpoint, a corpus or a directory of scores cannot be used, or a signal asked to stop
                (`Interrupted`); what is finished stays.
        """
        program.on_rank_zero(self._refuse_empty)
        stop = StopRequest()
        return [self._measure(iteration, stop) for iteration in iterations]

    def _refuse_empty(self) -> None:
        for corpus in self._corpora:
            if not any(len(IndexedCorpus.open(prefix)) for prefix in corpus.prefixes):
                raise InputError(f"the corpus {corpus.name} has no sequences: leave it out")

    def _measure(self, iteration: int | None, stop: StopRequest) -> Measured:
        args = self._args
        args.ckpt_step = iteration
        model, tokenizer, rules = self._setup()
        name = model.path.resolve().name
        seen = {prefix.resolve() for prefix in model.training_data}
        self.trained_on |= {
            corpus.name for corpus in self._corpora if seen & {prefix.resolve() for prefix in corpus.prefixes}
        }
        scorer = SharedScorer(args, model.vocab_size, rules, stop)
        losses = {}
        for corpus in self._corpora:
            directory = self._directory / name / corpus.name
            score_corpus(args, corpus.prefixes, model, tokenizer, rules, directory=directory, shared=scorer)
            losses[corpus.name] = program.on_rank_zero(partial(self._loss, corpus, directory, rules))
        del scorer
        gc.collect()  # a model is part of reference cycles, and the next one needs its memory
        trained_tokens = None
        if not args.load_hf:
            trained_tokens = program.on_rank_zero(lambda: checkpoints.recorded_trained_tokens(model.path))
        return Measured(checkpoint=name, iteration=iteration, trained_tokens=trained_tokens, losses=losses)

    def _loss(self, corpus: HeldOutCorpus, directory: Path, rules: ScoringRules) -> CorpusLoss:
        """Of a corpus that was scored: its token ids are known to be those of the tokenizer."""
        if corpus.name not in self.texts:
            if not self.texts:
                self._token_bytes_V = self._token_bytes()
            counting = Counting(bos_token=rules.bos_token, masked_input=rules.masked_input)
            self.texts[corpus.name] = describe(corpus, counting, self._token_bytes_V)
        return corpus_loss(ScoreStore.open(directory), self.texts[corpus.name])
