"""Megatron's inference engine, fed with token ids and seeded batch by batch.

`StaticInferenceEngine` in its `legacy` mode: a batch of prompts, a key-value cache, Megatron's `TorchSampling`. It is
the one engine of `megatron.core.inference` without CUDA in it; `DynamicInferenceEngine` allocates pinned and unified
memory, captures CUDA graphs and calls Flash Attention's paged kernels. What is changed here, on subclasses:

- columns that only pad the vocabulary are cut off before a token is drawn, and logits that are no numbers are refused;
- the generator that Megatron makes once, and shifts by the data-parallel rank (0.19), is seeded before every batch.

All ranks of a replica draw for themselves, with one seed and from the same gathered logits, as Megatron has it.
"""

import argparse
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.inference.engines import static_engine
from megatron.core.inference.inference_request import InferenceRequest
from megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper import GPTInferenceWrapper
from megatron.core.inference.sampling_params import SamplingParams
from megatron.core.inference.text_generation_controllers.text_generation_controller import TextGenerationController

from megatron_miniplm.baselines.generation_plan import GenerationSettings
from megatron_miniplm.errors import InputError, NonFiniteScoreError
from megatron_miniplm.mcore import inference_emulation

#: What a batch is padded with; any token will do, since nothing behind the end of a sequence is looked at.
_PADDING_TOKEN = 0


def refuse_layout(args: argparse.Namespace, context_tokens: int) -> None:
    """Refuse what the static engine cannot do, or does wrongly without a word.

    Args:
        args: Megatron's, validated.
        context_tokens: of the longest prompt with its continuation.

    Raises:
        InputError: names the flag and what to do.
    """
    remedy = "give --tensor-model-parallel-size, --pipeline-model-parallel-size and more replicas instead"
    for flag in ("context_parallel_size", "expert_model_parallel_size"):
        if getattr(args, flag) != 1:
            name = "--" + flag.replace("_", "-")
            raise InputError(f"{name} {getattr(args, flag)}: Megatron's inference engine cannot use it here; {remedy}")
    if args.virtual_pipeline_model_parallel_size is not None:
        raise InputError(f"virtual pipeline stages: Megatron's inference engine has none; {remedy}")
    if args.sequence_parallel:
        raise InputError("--sequence-parallel: Megatron's static inference engine refuses it; leave it out")
    for flag, what in (("hybrid_layer_pattern", "a hybrid model"), ("multi_latent_attention", "latent attention")):
        if getattr(args, flag, None):
            raise InputError(f"{what}: generate-corpus was tried with GPT models only")
    window = getattr(args, "window_size", None)
    if window and context_tokens > window[0] and args.transformer_impl != "local":
        raise InputError(
            f"prompt and continuation have up to {context_tokens} tokens, but attention reaches back {window[0]} only, "
            "which was tried with --transformer-impl local alone: give that, or generate shorter sequences"
        )
    if context_tokens > args.max_position_embeddings:
        raise InputError(
            f"prompt and continuation have up to {context_tokens} tokens, the model's context has "
            f"{args.max_position_embeddings}: lower --prompt-tokens or --max-new-tokens"
        )


class TokenController(TextGenerationController):
    """Megatron's sampling loop, without the columns that pad the vocabulary."""

    def __init__(self, wrapper: GPTInferenceWrapper, tokenizer: Any, num_real_columns: int) -> None:
        super().__init__(wrapper, tokenizer)
        self._num_real_columns = num_real_columns

    def sample_from_logits(
        self,
        last_token_logits: torch.Tensor,
        sampling_params: SamplingParams | None = None,
        vocab_size: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Draw one token a row; see Megatron's.

        Raises:
            NonFiniteScoreError: NaN or infinity among the logits, on all ranks of the replica alike.
        """
        logits_BV = last_token_logits[:, : self._num_real_columns].float()
        if not torch.isfinite(logits_BV).all():
            raise NonFiniteScoreError(
                "the model gave logits that are not finite, so nothing was drawn: look at the checkpoint, and at the "
                "precision (--bf16 reaches further than --fp16)"
            )
        return super().sample_from_logits(logits_BV, sampling_params, self._num_real_columns, **kwargs)


class TokenGenerator:
    """A loaded model that continues batches of prompts; every call is collective among the ranks of a replica.

    Args:
        chunks: from `mcore.models.load_for_scoring`.
        vocab_size: rows of the output matrix that are no padding.
        settings: how to sample.
    """

    def __init__(self, chunks: list[Any], vocab_size: int, settings: GenerationSettings) -> None:
        assert len(chunks) == 1
        inference_emulation.activate()
        self._settings = settings
        context = StaticInferenceContext(settings.batch_sequences, settings.context_tokens)
        wrapper = GPTInferenceWrapper(chunks[0], context)
        # What Megatron asks of a tokenizer: where to stop, what to pad with, and text that nobody reads.
        tokenizer = SimpleNamespace(eod=_PADDING_TOKEN, bos=None, detokenize=lambda tokens: "")
        self._tokenizer = tokenizer
        self._controller = TokenController(wrapper, tokenizer, vocab_size)
        self._sampling = SamplingParams(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            num_tokens_to_generate=settings.max_new_tokens,
        )
        if settings.eod_id is None:
            self._sampling.add_attributes({"no_early_termination": True})
        else:
            tokenizer.eod = settings.eod_id

    def continue_prompts(self, prompts: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
        """Sample a continuation of each prompt.

        Args:
            prompts: one batch, none of them empty.
            seed: of all draws of the batch.

        Returns:
            New tokens of each, int64: `max_new_tokens`, or fewer with the end-of-document token as the last.

        Raises:
            NonFiniteScoreError: the model is broken.
        """
        self._controller.sampling_rng.manual_seed(seed)
        requests = [
            InferenceRequest(request_id=row, prompt="", prompt_tokens=prompt.tolist(), sampling_params=self._sampling)
            for row, prompt in enumerate(prompts)
        ]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The static engine will be deprecated")
            # A new one for every batch: it keeps all requests that it has served.
            engine = static_engine.StaticInferenceEngine(self._controller, len(requests), legacy=True)
        state = torch.get_rng_state()  # the engine seeds torch's own generator, which nothing here draws from
        done = engine.generate(inference_requests=requests)
        torch.set_rng_state(state)
        return [self._with_end(request.generated_tokens.cpu().numpy()) for request in done]

    def _with_end(self, tokens_T: np.ndarray) -> np.ndarray:
        """Megatron does not count the end-of-document token that has stopped it."""
        if self._settings.eod_id is None or len(tokens_T) == self._settings.max_new_tokens:
            return tokens_T
        return np.append(tokens_T, self._settings.eod_id)
