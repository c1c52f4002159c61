#!/usr/bin/env python3
"""One measured scoring job: ours, or a careful loop over transformers; prints one JSON line.

  python benchmarks/scoring_job.py --engine ours --model DIR --corpus PREFIX --context 1024 --rows 8

Measured is the time from the first row to the last published block (ours) or the last sum on the host (transformers),
without imports, building and loading. Every repetition starts with an empty store. Run it under torchrun for more
ranks.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from megatron_miniplm.indexed import IndexedCorpus


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("ours", "transformers"), required=True)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a Hugging Face directory")
    parser.add_argument("--corpus", type=Path, required=True, metavar="PREFIX")
    parser.add_argument("--context", type=int, default=1024, help="tokens that the model is fed at once")
    parser.add_argument("--rows", type=int, default=8, help="micro-batch: rows of that many tokens")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--block-sequences", type=int, default=4096, help="of our engine")
    parser.add_argument("--repetitions", type=int, default=1, help="times that it is measured")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write torch's profile of one more repetition")
    arguments, megatron_flags = parser.parse_known_args()
    make_job = our_job if arguments.engine == "ours" else transformers_job
    job, num_flops, close = make_job(arguments, megatron_flags)
    on_gpu = torch.cuda.is_initialized() and os.environ.get("MINIPLM_DEVICE") != "cpu"
    if on_gpu:
        job()  # kernels are compiled and tuned on first use
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(arguments.repetitions):
        start = time.perf_counter()
        nll = job()
        seconds.append(time.perf_counter() - start)
    result = {
        "engine": arguments.engine,
        "scored_tokens": num_scored_tokens(arguments.corpus),
        "seconds": seconds,
        "nll": nll,
        "flops": num_flops,
        "peak_bytes": torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
    }
    if arguments.trace:
        with torch.profiler.profile() as profile:
            job()
        arguments.trace.write_text(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(result), flush=True)
    close()
    return 0


def num_scored_tokens(prefix: Path) -> int:
    return int((IndexedCorpus.open(prefix).lengths_N - 1).clip(0).sum())


Job = Callable[[], float]


def our_job(arguments: argparse.Namespace, megatron_flags: list[str]) -> tuple[Job, float, Callable[[], None]]:
    """The engine, from claims to published blocks; returns the job, its floating point operations, and what ends it."""
    from megatron_miniplm.mcore import models, program
    from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel

    model = HuggingFaceModel.open(arguments.model)
    # fmt: off
    sys.argv[1:] = [
        *model.megatron_flags(), "--tokenizer-type", "NullTokenizer", "--vocab-size", str(model.vocab_size),
        "--seq-length", str(arguments.context), "--micro-batch-size", str(arguments.rows),
        *(["--bf16"] if arguments.bf16 else []), *megatron_flags,
    ]
    # fmt: on
    program.prepare()
    args = program.parse(defaults={"train_iters": 1, "lr": 1e-4})
    program.initialize()

    from megatron_miniplm.artifacts.scores import ScoreStore
    from megatron_miniplm.indexed.reader import Pool
    from megatron_miniplm.mcore.flops import ModelShape
    from megatron_miniplm.scoring.engine import fill_store
    from megatron_miniplm.scoring.rows import ScoringRules
    from megatron_miniplm.scoring.scorer import Scorer

    model.take_vocabulary(args)
    args.load_hf = str(arguments.model)
    corpus = IndexedCorpus.open(arguments.corpus)
    pool = Pool([corpus])
    rules = ScoringRules(context_tokens=arguments.context, overlap_tokens=arguments.context // 4)
    scorer = Scorer(args, models.load_for_scoring(args), model.vocab_size, rules, pool)
    identity = {
        "model": {},
        "corpus": [{"name": corpus.prefix.name, "fingerprint": "0" * 32, "num_sequences": len(corpus)}],
        "settings": {"block_sequences": arguments.block_sequences},
    }

    def job() -> float:
        with tempfile.TemporaryDirectory() as name:
            directory = program.on_rank_zero(lambda: name)
            store = program.on_rank_zero(lambda: ScoreStore.create_or_resume(Path(directory), identity))
            fill_store(store, scorer, pool, range(store.plan.num_blocks), None)
            nll = program.on_rank_zero(lambda: float(store.read_all()["nll"].sum(dtype="f8")))
        return nll

    flops = ModelShape.from_megatron_args(args, model.vocab_size).forward_flops((corpus.lengths_N - 1).clip(0).tolist())
    return job, flops, program.shut_down


def transformers_job(arguments: argparse.Namespace, megatron_flags: list[str]) -> tuple[Job, float, Callable[[], None]]:
    """Rows in the order of the corpus, padded to the context, fused attention, one synchronisation a batch."""
    from transformers import AutoModelForCausalLM

    assert not megatron_flags, megatron_flags
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype, attn_implementation="sdpa")
    model = model.to(device).eval()
    corpus = IndexedCorpus.open(arguments.corpus)

    @torch.inference_mode()
    def job() -> float:
        total = 0.0
        for start in range(0, len(corpus), arguments.rows):
            sequences = [corpus.sequence(i) for i in range(start, min(start + arguments.rows, len(corpus)))]
            tokens = torch.zeros((len(sequences), arguments.context + 1), dtype=torch.int64)
            mask = torch.zeros((len(sequences), arguments.context + 1), dtype=torch.bool)
            for row, sequence in enumerate(sequences):
                kept = min(len(sequence), arguments.context + 1)
                tokens[row, :kept] = torch.from_numpy(sequence[:kept].astype("i8"))
                mask[row, :kept] = True
            tokens, mask = tokens.to(device), mask.to(device)
            is_padded = not bool(mask.all())
            logits = model(
                tokens[:, :-1], attention_mask=mask[:, :-1].long() if is_padded else None, use_cache=False
            ).logits
            nll = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
            )
            total += float((nll.double() * mask[:, 1:].flatten()).view(len(sequences), -1).sum())
        return total

    return job, 0.0, lambda: None


if __name__ == "__main__":
    sys.exit(main())
