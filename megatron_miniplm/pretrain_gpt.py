"""Student entry point: Megatron's own `pretrain` on GPT and hybrid models, on GPUs and on the CPU.

    torchrun --nproc-per-node 8 -m megatron_miniplm.pretrain_gpt <the flags of Megatron's pretrain_gpt.py>

The megatron-core wheel has the training loop but not `pretrain_gpt.py`; this is ours. Refined data, loss weights and
distillation come from `training.plugin`, as they would to a script of yours.
"""

import os
import sys

from megatron_miniplm.errors import MiniPLMError
from megatron_miniplm.runtime.command_line import HELP_FLAGS, print_help, print_version, report
from megatron_miniplm.runtime.requirements import missing_packages_are_user_errors
from megatron_miniplm.training.flags import add_arguments

if __name__ == "__main__" and print_version(sys.argv[1:], visible=os.environ.get("RANK", "0") == "0"):
    sys.exit(0)
if __name__ == "__main__" and not set(HELP_FLAGS).isdisjoint(sys.argv[1:]):
    print_help(None, __doc__, [add_arguments], "torchrun ... -m megatron_miniplm.pretrain_gpt <flags>")
    sys.exit(0)

from megatron_miniplm.mcore import program

try:
    program.prepare()  # at import: the spawned processes of asynchronous saves import this module again
    from megatron_miniplm.training.plugin import plug_in

    with missing_packages_are_user_errors():
        plug_in()
        from megatron_miniplm.training import student

    if __name__ == "__main__":
        student.main()
except MiniPLMError as error:
    sys.exit(report(error))
