"""A Megatron program for tests: models of many directories in many layouts, in one start of four ranks.

    torchrun --nproc-per-node 4 huggingface_ranks.py JOBS.json

Each job names a directory to load with `load_weights` (or a `torch_dist` checkpoint), a layout and what to write: the
log-probabilities of `tokens.pt`, a Hugging Face export, and the scores of the corpus with the prefix `corpus`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_miniplm.mcore import program

program.prepare()  # before anything of Megatron is imported

from megatron.core import mpu  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.rerun_state_machine import destroy_rerun_state_machine  # noqa: E402
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region  # noqa: E402
from megatron.core.utils import unwrap_model  # noqa: E402
from megatron.training import get_model  # noqa: E402
from megatron.training.global_vars import unset_global_variables  # noqa: E402

from megatron_miniplm.indexed import IndexedCorpus  # noqa: E402
from megatron_miniplm.indexed.reader import Pool  # noqa: E402
from megatron_miniplm.mcore import checkpoints, models  # noqa: E402
from megatron_miniplm.mcore.huggingface.loading import load_weights  # noqa: E402
from megatron_miniplm.mcore.huggingface.megatron_flags import architecture_of_args  # noqa: E402
from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel  # noqa: E402
from megatron_miniplm.mcore.huggingface.saving import save_huggingface  # noqa: E402
from megatron_miniplm.scoring.feed import BlockSums  # noqa: E402
from megatron_miniplm.scoring.rows import ScoringRules  # noqa: E402
from megatron_miniplm.scoring.scorer import Scorer  # noqa: E402

FLAGS = ["--micro-batch-size", "1", "--train-iters", "1", "--lr", "1e-4", "--tokenizer-type", "NullTokenizer"]
_layout: list[str] | None = None


def run_job(job: dict[str, Any], tokens_BS: torch.Tensor) -> None:
    if job.get("load"):
        args = _parse(["--vocab-size", "101", "--load", job["load"], "--use-checkpoint-args"], job["layout"])
        checkpoints.take_architecture(args, checkpoints.checkpoint_directory(args.load))
        program.initialize()
        chunks = models.load_for_scoring(args)
    else:
        model = HuggingFaceModel.open(Path(job["load_hf"]))
        model.check_tensors()
        flags = [*model.megatron_flags(), "--seq-length", str(tokens_BS.shape[1])]
        args = _parse([*flags, "--vocab-size", str(model.vocab_size)], job["layout"])
        model.take_vocabulary(args)
        program.initialize()
        chunks = get_model(models.model_provider, wrap_with_ddp=False)
        for chunk in chunks:
            _spoil(chunk)
            chunk.eval()
        load_weights(chunks, model)
    if job.get("log_probs"):
        _write_log_probs(chunks, tokens_BS, Path(job["log_probs"]))
    if job.get("save_hf"):
        save_huggingface(
            chunks,
            architecture_of_args(args, 101),
            Path(job["save_hf"]),
            padded_vocab_size=args.padded_vocab_size,
            max_shard_bytes=job.get("max_shard_bytes", 1 << 30),
        )
    if job.get("scores"):
        _write_scores(args, chunks, job)


@torch.no_grad()
def _spoil(chunk: Any) -> None:
    """A parameter that is not filled shows as NaN."""
    for parameter in chunk.parameters():
        parameter.fill_(float("nan"))


def _parse(flags: list[str], layout: list[str]) -> Any:
    """Start over with other flags; process groups are made anew only for another layout, gloo never frees theirs."""
    global _layout
    if _layout is not None:
        unset_global_variables()
        destroy_rerun_state_machine()
        if layout != _layout:
            mpu.destroy_model_parallel()
    _layout = layout
    sys.argv[1:] = [*flags, *layout, *FLAGS]
    return program.parse()


def _write_scores(args: Any, chunks: list[Any], job: dict[str, Any]) -> None:
    """NLL sum and token count of every sequence of the corpus, in packed rows, from the first replica's writer."""
    args.seq_length, args.micro_batch_size = job["context_tokens"], job["row_tokens"] // job["context_tokens"]
    rules = ScoringRules(context_tokens=args.seq_length, overlap_tokens=job["overlap_tokens"])
    pool = Pool([IndexedCorpus.open(Path(job["scores"]).with_name("corpus"))])
    scorer = Scorer(args, chunks, 101, rules, pool)
    plan = scorer.plan(range(len(pool)))
    sums = BlockSums(len(pool), 0)

    def keep(position: int, found: BlockSums) -> None:
        sums.nll_N, sums.num_tokens_N = found.nll_N, found.num_tokens_N

    scorer.score([plan], keep, on_row=lambda: None)
    nll_N, num_tokens_N = sums.nll_N, sums.num_tokens_N
    if scorer.replica.num_lanes > 1:
        nll_N, num_tokens_N = scorer.replica.add_lanes(nll_N), scorer.replica.add_lanes(num_tokens_N)
    if scorer.replica.is_writer and mpu.get_expert_data_parallel_rank() == 0:
        np.savez(job["scores"], nll_N=nll_N, num_tokens_N=num_tokens_N, num_rows=len(plan.rows))


def _write_log_probs(chunks: list[Any], tokens_BS: torch.Tensor, path: Path) -> None:
    """Every position's distribution over the real vocabulary, (B, S, V), from the last stage's first rank."""

    def whole_logits(logits: torch.Tensor, non_loss_data: bool = True) -> torch.Tensor:
        return gather_from_tensor_model_parallel_region(logits)

    def forward_step(rows: Any, chunk: Any) -> Any:
        tokens = next(rows)
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        return chunk(tokens, positions, None), whole_logits

    tokens_by_chunk = [iter(tokens_BS.split(1)) for _ in chunks]
    with torch.no_grad():
        results = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=tokens_by_chunk if len(chunks) > 1 else tokens_by_chunk[0],
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=len(tokens_BS),
            seq_length=tokens_BS.shape[1],
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    if results and mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_data_parallel_rank() == 0:
        logits_BSV = torch.cat(results)
        result = {"log_probs": logits_BSV[..., :101].float().log_softmax(-1)}
        rotary = getattr(unwrap_model(chunks[-1]), "rotary_pos_emb", None)
        if rotary is not None:
            result["inv_freq"] = rotary.inv_freq
        torch.save(result, path)


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    tokens_BS = torch.load(Path(sys.argv[1]).with_name("tokens.pt"))
    for job in jobs:
        run_job(job, tokens_BS)
        torch.distributed.barrier()
    program.shut_down()


if __name__ == "__main__":
    assert "RANK" in os.environ
    main()
