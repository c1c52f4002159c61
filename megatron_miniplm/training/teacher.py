"""The online teacher of distillation: its checkpoint, whether it fits the student's run, and its part on this rank."""

import argparse
import contextlib
import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.tensor_parallel import random as megatron_random
from megatron.training.global_vars import set_args

from megatron_miniplm.artifacts.fingerprint import digest_file_samples
from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore import checkpoints, models, program

#: What else than `checkpoints.ARCHITECTURE` decides which teacher is built.
FURTHER_ARCHITECTURE = (
    *("max_position_embeddings", "add_position_embedding", "softmax_scale", "no_rope_freq", "window_attn_skip_freq"),
    *("glu_linear_offset", "activation_func_clamp_value", "spec", "rope_type", "rotary_scaling_factor"),
    *("original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    *("yarn_original_max_position_embeddings", "yarn_beta_fast", "yarn_beta_slow"),
    *("yarn_correction_range_round_to_int", "q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim"),
    *("v_head_dim", "moe_ffn_hidden_size", "moe_layer_freq", "moe_shared_expert_intermediate_size"),
    *("moe_shared_expert_gate", "moe_router_pre_softmax", "moe_router_score_function", "moe_router_num_groups"),
    *("moe_router_group_topk", "moe_router_topk_limited_devices", "moe_router_topk_scaling_factor"),
    *("moe_router_enable_expert_bias", "moe_latent_size", "mamba_state_dim", "mamba_head_dim", "mamba_num_groups"),
    "mamba_num_heads",
)
TOKENIZER = ("tokenizer_type", "tokenizer_model", "vocab_size")

#: Under these the student's output layer gives no logits, gives them more than once, or the schedule is another.
REFUSED_FLAGS = (
    "virtual_pipeline_model_parallel_size",
    "mtp_num_layers",
    "use_mup",
    "overlap_moe_expert_parallel_comm",
    "hybrid_context_parallel",
    "use_megatron_fsdp",
    "use_torch_fsdp2",
    "logits_load_dir",
)
#: The student's, and no part of a teacher: uneven stages, other checkpoints, what only training has.
UNSET_FOR_TEACHER: dict[str, Any] = {
    "decoder_first_pipeline_num_layers": None,
    "decoder_last_pipeline_num_layers": None,
    "pipeline_model_parallel_layout": None,
    "account_for_embedding_in_pipeline_split": False,
    "account_for_loss_in_pipeline_split": False,
    "recompute_granularity": None,
    "pretrained_checkpoint": None,
    "non_persistent_ckpt_type": None,
    "non_persistent_local_ckpt_dir": None,
    "ckpt_step": None,
    "override_ckpt_iteration": None,
    "load_hf": None,
    "create_all_gather_group": False,
    "init_model_with_meta_device": False,
}


class TeacherCheckpoint(NamedTuple):
    """What a checkpoint says of the model in it.

    Attributes:
        directory: of the iteration.
        architecture: by name in Megatron's args.
        tokenizer: likewise, `TOKENIZER`; None where unknown.
    """

    directory: Path
    architecture: dict[str, Any]
    tokenizer: dict[str, Any]

    @classmethod
    def open(cls, checkpoint: str) -> Self:
        """Read it from the directory that holds iterations.

        Raises:
            InputError: there is no checkpoint, or one in the legacy format.
        """
        directory = checkpoints.checkpoint_directory(checkpoint)
        recorded = vars(checkpoints.recorded_args(directory) or argparse.Namespace())
        if not recorded:
            raise InputError(
                f"{directory} does not say what model it holds: --miniplm-kd-teacher needs a checkpoint in the format "
                "torch_dist"
            )
        names = (*checkpoints.ARCHITECTURE, *FURTHER_ARCHITECTURE)
        return cls(
            directory=directory,
            architecture={name: recorded[name] for name in names if name in recorded},
            tokenizer={name: recorded.get(name) for name in TOKENIZER},
        )

    def args_of(self, student: argparse.Namespace) -> argparse.Namespace:
        """The student's args, layout and precision with this architecture; an even pipeline, nothing of training."""
        args = copy.copy(student)
        vars(args).update(UNSET_FOR_TEACHER | self.architecture)
        args.load = str(self.directory.parent)
        args.finetune = True  # else loading sets counters and states of the run
        return args


def check_flags(args: argparse.Namespace) -> None:
    """Refuse what distillation cannot do, before anything is read.

    Raises:
        InputError: the message names the flags.
    """
    if not 0 <= args.miniplm_kd_alpha <= 1:
        raise InputError(f"--miniplm-kd-alpha is {args.miniplm_kd_alpha}: expected a share between 0 and 1")
    refused = [f"--{name.replace('_', '-')}" for name in REFUSED_FLAGS if getattr(args, name, None)]
    if getattr(args, "cuda_graph_impl", None) not in (None, "none"):
        refused.append(f"--cuda-graph-impl {args.cuda_graph_impl}")
    if refused:
        raise InputError(f"{', '.join(refused)}: not possible with --miniplm-kd-teacher, leave one of them out")


def check_teacher(args: argparse.Namespace, checkpoint: TeacherCheckpoint) -> None:
    """Compare vocabularies and layouts; `args` are the student's.

    Raises:
        InputError: the message names both values.
    """
    theirs = checkpoint.architecture
    place = f"the teacher {checkpoint.directory}"
    if theirs["padded_vocab_size"] != args.padded_vocab_size:
        raise InputError(
            f"{place} has a vocabulary padded to {theirs['padded_vocab_size']}, the student one to "
            f"{args.padded_vocab_size}: give both one tokenizer and one --make-vocab-size-divisible-by x TP"
        )
    for name, recorded in checkpoint.tokenizer.items():
        if not _is_one_tokenizer(name, recorded, getattr(args, name, None)):
            raise InputError(
                f"{place} was trained with --{name.replace('_', '-')} {recorded}, the student with "
                f"{getattr(args, name)}: distillation compares token by token, both need one tokenizer"
            )
    num_stages = args.pipeline_model_parallel_size
    if theirs["num_layers"] % num_stages and not theirs.get("hybrid_layer_pattern"):
        raise InputError(
            f"{place} has {theirs['num_layers']} layers, which {num_stages} pipeline stages cannot share evenly: "
            "choose another --pipeline-model-parallel-size"
        )
    positions = theirs.get("max_position_embeddings") or args.seq_length
    if theirs["position_embedding_type"] == "learned_absolute" and positions < args.seq_length:
        raise InputError(f"{place} knows {positions} positions, the student's --seq-length is {args.seq_length}")


def _is_one_tokenizer(name: str, theirs: Any, ours: Any) -> bool:
    """Whether two tokenizer flags may mean the same; NullTokenizer is the name for ids of any other."""
    if theirs is None or ours is None or theirs == ours:
        return True
    if name == "tokenizer_type":
        return "NullTokenizer" in (theirs, ours)
    if name == "tokenizer_model":
        files = Path(theirs), Path(ours)
        if not all(path.is_file() for path in files):
            return True  # a hub's name, or a file of another machine: sizes must do
        return digest_file_samples(files[0]) == digest_file_samples(files[1])
    return False


def checked_teacher(args: argparse.Namespace) -> TeacherCheckpoint:
    """Look at the teacher that the flags name.

    Raises:
        InputError: it does not fit the flags or the student.
    """
    check_flags(args)
    checkpoint = TeacherCheckpoint.open(args.miniplm_kd_teacher)
    check_teacher(args, checkpoint)
    return checkpoint


def load_teacher(args: argparse.Namespace, checkpoint: TeacherCheckpoint) -> list[Any]:
    """Build and fill the teacher's part of this rank; the run's args and random states are as before.

    Returns:
        One chunk, in evaluation mode, without gradients, in the run's precision.

    Raises:
        InputError: Megatron refuses the architecture in this layout.
    """
    teacher_args = checkpoint.args_of(args)
    set_args(teacher_args)
    try:
        with _untouched_random_states(), program.megatron_errors(f"the teacher {checkpoint.directory} in this layout"):
            teacher = models.load_for_scoring(teacher_args)
    finally:
        set_args(args)
    for chunk in teacher:
        chunk.requires_grad_(False)
    return teacher


@contextlib.contextmanager
def _untouched_random_states() -> Iterator[None]:
    """Leave every generator that the student's dropout and data may draw from where it was."""
    tracker = get_cuda_rng_tracker()
    tracked = tracker.get_states()
    python, numpy, host = random.getstate(), np.random.get_state(), torch.get_rng_state()
    device = megatron_random._get_cuda_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(host)
        megatron_random._set_cuda_rng_state(device)
        tracker.set_states(tracked)
