"""Fit a model and its head on Megatron's schedule, optimizer, scheduler and checkpoints.

Why not `megatron.training.pretrain`? It hands back no model, and predictions follow; its `train_step` has the stages
exchange shapes of `--seq-length` x `--micro-batch-size`, where a packed row is one long sequence; and its batches must
divide by micro-batch size and replicas, where ours are sequences, packed and dealt. So the outer loop is here, and what
it calls is Megatron's: `setup_model_and_optimizer` (DDP, optimizer, scheduler, resuming), the schedule,
`finalize_model_grads`, `save_checkpoint`.

A step's batch, rows and targets depend on the seed and the step alone, and no dropout is drawn: data-parallel sizes
differ by the order of summation, and a killed fit continues to the bits of an undisturbed one.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from megatron.core import mpu
from megatron.core.distributed import finalize_model_grads
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.utils import get_model_config, unwrap_model
from megatron.training import get_tensorboard_writer
from megatron.training.checkpointing import save_checkpoint
from megatron.training.training import setup_model_and_optimizer

from megatron_miniplm.baselines.proxy_head import DifferenceHead, add_head, documents_of, squared_error
from megatron_miniplm.baselines.proxy_targets import Targets, TrainingStream
from megatron_miniplm.errors import Interrupted, NonFiniteScoreError
from megatron_miniplm.indexed.reader import Pool
from megatron_miniplm.mcore import checkpoints, program
from megatron_miniplm.mcore.replica import StopRequest
from megatron_miniplm.scoring.feed import HostRow
from megatron_miniplm.scoring.rows import ROW_MULTIPLE, BlockRows, ScoringRules, empty_row, plan_block, read_rows
from megatron_miniplm.scoring.scorer import Scorer


class ProxyScorer(Scorer):
    """A model whose last stage gives a difference instead of NLLs; scores what it predicts, times the tokens.

    Attributes:
        stage: this rank's part of the model, unwrapped.
    """

    def __init__(
        self, args: argparse.Namespace, chunks: list[Any], rules: ScoringRules, pool: Pool, targets: Targets
    ) -> None:
        """Take over a model from `mcore.models.load_for_scoring`; it predicts nothing before it is fitted.

        Raises:
            InputError: a layout or a model that scoring does not support.
        """
        super().__init__(args, chunks, 0, rules, pool)
        self.stage = unwrap_model(chunks[0])
        self._head: DifferenceHead | None = None
        if self.replica.is_last_stage:
            self._head = DifferenceHead(self._config.hidden_size, mean=targets.mean, std=targets.std)
        add_head(self.stage, self._head)
        self._output_weight_VH = None

    def _reduce(self, row: HostRow, hidden_S1H: torch.Tensor, non_loss_data: bool = True) -> None:
        """Nats a token that every scored prediction of the row stands for; runs on the last stage."""
        assert self._head is not None
        standardised_D, document_K = self.predict(row, hidden_S1H)
        if self._collector is not None:
            self._collector.put(row, self._head.nats(standardised_D)[document_K])

    def predict(self, row: HostRow, hidden_S1H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the last stage's output says of a row.

        Returns:
            The standardised difference of each document, (D,) float32, and each scored prediction's document, (K,).
        """
        assert self._head is not None
        if self._config.sequence_parallel:
            # Every rank goes on with the whole: their gradients are equal, and none may be added to another.
            hidden_S1H = gather_from_sequence_parallel_region(hidden_S1H, tensor_parallel_output_grad=False)
        document_K = documents_of(row.scored_K.cuda(non_blocking=True), row.boundaries)
        return self._head(hidden_S1H.squeeze(1), row.boundaries), document_K


class Fitting:
    """The state of a fit: the model under DDP, the optimizer, and the step that is next."""

    def __init__(
        self, args: argparse.Namespace, scorer: ProxyScorer, pool: Pool, rules: ScoringRules, targets: Targets
    ) -> None:
        """Wrap the scorer's model, and continue from `--save` where a fit was started there.

        Args:
            args: Megatron's; `load` becomes `save`, `train_iters` is the number of steps, `global_batch_size` the
                number of sequences of a step.
            scorer: its weights are those to start from; they are fitted in place.
            pool: the sequences.
            rules: how they meet the model.
            targets: what to learn.
        """
        self._args = args
        self._scorer = scorer
        self._rules = rules
        self._stream = TrainingStream(pool, targets.training_ids, seed=args.seed)
        target_M, weight_M = targets.standardised()
        self._target_M, self._weight_M = torch.from_numpy(target_M).float(), torch.from_numpy(weight_M).float()
        args.load = args.save if checkpoints.has_checkpoint(Path(args.save)) else None
        args.no_load_optim, args.no_load_rng, args.finetune = False, True, False
        args.consumed_train_samples = args.consumed_valid_samples = 0  # of the training of the model to start from
        with program.megatron_errors(f"to continue from {args.save}"):
            self._model, self._optimizer, self._scheduler = setup_model_and_optimizer(
                model_type=ModelType.encoder_or_decoder, model_provider_func=lambda *_, **__: scorer.stage
            )
        config = get_model_config(self._model[0])
        config.grad_scale_func = self._optimizer.scale_loss
        config.finalize_model_grads_func = finalize_model_grads

    def run(self) -> None:
        """Train until all steps are done, saving at `--save-interval` and at the end; then the scorer is fitted.

        Raises:
            Interrupted: any rank was told to stop; what was done is saved.
            NonFiniteScoreError: the loss is not finite; nothing of it is saved.
        """
        args = self._args
        stop = StopRequest()
        self._scorer.stage.train()
        tensorboard = get_tensorboard_writer()
        for step in range(args.iteration + 1, args.train_iters + 1):
            loss, is_stopped = self._agreed(self._step(step - 1), stop)
            if step % args.log_interval == 0 or step == args.train_iters:
                program.say_once(f"step {step} of {args.train_iters}: loss {loss:.4f} (1: no better than the mean)")
            if tensorboard is not None:
                tensorboard.add_scalar("proxy/loss", loss, step)
            if is_stopped or step == args.train_iters or (args.save_interval and step % args.save_interval == 0):
                args.consumed_train_samples = step * args.global_batch_size
                save_checkpoint(step, self._model, self._optimizer, self._scheduler, 0)
            if is_stopped:
                with program.alike_on_all_ranks():
                    raise Interrupted(f"told to stop after step {step}, which is saved; the same command continues")
        self._scorer.stage.eval()

    def _step(self, step: int) -> torch.Tensor:
        """One update; returns this rank's part of the batch's mean squared error, NaN if a gradient is not finite."""
        for chunk in self._model:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        numbers = range(step * self._args.global_batch_size, (step + 1) * self._args.global_batch_size)
        batch = plan_block(self._stream, numbers, self._rules, row_tokens=self._scorer.row_tokens)
        num_rows = -(-len(batch.rows) // mpu.get_data_parallel_world_size())
        forward_step = partial(self._forward_step, torch.from_numpy(self._stream.members(numbers)), num_rows)
        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=self._rows(batch, num_rows),
            model=self._model,
            num_microbatches=num_rows,
            seq_length=self._scorer.row_tokens,
            micro_batch_size=1,
            forward_only=False,
        )
        is_updated, gradient_norm, _ = self._optimizer.step()
        if is_updated:  # else the loss scale of --fp16 was too large, and the step is skipped
            self._scheduler.step(increment=self._args.global_batch_size)
            if gradient_norm is not None and not math.isfinite(gradient_norm):
                return torch.tensor(math.nan)
        return torch.stack([report["loss"] for report in reports]).sum() if reports else torch.zeros(())

    def _rows(self, batch: BlockRows, num_rows: int) -> Iterator[HostRow]:
        """This replica's rows of a batch, then padding: replicas finish a step together."""
        rank, size = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
        mine = BlockRows(sequences=batch.sequences, windows=batch.windows, rows=batch.rows[rank::size])
        row_tokens, pin = self._scorer.row_tokens, next(self._scorer.stage.parameters()).is_cuda
        trim = self._scorer.num_stages == 1
        for row in read_rows(self._stream, mine, self._rules, row_tokens=row_tokens, trim=trim):
            yield HostRow(row, 0, pin=pin)
        nothing = empty_row(min(row_tokens, ROW_MULTIPLE) if trim else row_tokens, self._rules.context_tokens)
        for _ in range(len(mine.rows), num_rows):
            yield HostRow(nothing, -1, pin=pin)

    def _forward_step(
        self, member_N: torch.Tensor, num_rows: int, rows: Iterator[HostRow], model: Any
    ) -> tuple[torch.Tensor, Callable[..., Any]]:
        row = next(rows)
        return self._scorer.forward(row, model), partial(self._loss, member_N, num_rows, row)

    def _loss(
        self, member_N: torch.Tensor, num_rows: int, row: HostRow, hidden_S1H: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """This row's part of the batch's mean squared error, as the schedule wants it and as it is."""
        standardised_D, document_K = self._scorer.predict(row, hidden_S1H)
        member_K = member_N[torch.from_numpy(row.sequence_K)]
        target_K, weight_K = (part[member_K].cuda(non_blocking=True) for part in (self._target_M, self._weight_M))
        error = squared_error(standardised_D, document_K, target_K, weight_K) / self._args.global_batch_size
        # The schedule takes the mean over micro-batches (schedules.py:341), DDP over replicas: the batch has its own.
        return error * num_rows * mpu.get_data_parallel_world_size(), {"loss": error.detach()}

    def _agreed(self, loss: torch.Tensor, stop: StopRequest) -> tuple[float, bool]:
        """The batch's loss, and whether any rank was told to stop; a collective call of all ranks."""
        mine = torch.zeros(2, dtype=torch.float64, device=torch.cuda.current_device())
        mine[0], mine[1] = loss.double() / mpu.get_tensor_model_parallel_world_size(), float(stop.is_made())
        torch.distributed.all_reduce(mine)
        value, num_stopped = mine.tolist()
        if not math.isfinite(value):
            with program.alike_on_all_ranks():
                raise NonFiniteScoreError(
                    f"the loss of the proxy is {value}: lower --lr, raise --lr-warmup-iters, or use --bf16 in place of "
                    f"--fp16; {self._args.save} holds the steps before"
                )
        return value, num_stopped > 0
