"""Student entry point: Megatron's own `pretrain` on GPT and hybrid models, on GPUs and on the CPU.

    torchrun --nproc-per-node 8 -m megatron_miniplm.pretrain_gpt <the flags of Megatron's pretrain_gpt.py>

The megatron-core wheel has the training loop but not `pretrain_gpt.py`; this is ours, and adds nothing to the loop.
"""

from megatron_miniplm.mcore import program

program.prepare()  # at import, so that the spawned processes of asynchronous saves get it too

import sys  # noqa: E402

from megatron_miniplm.cli import report  # noqa: E402
from megatron_miniplm.errors import MiniPLMError  # noqa: E402
from megatron_miniplm.training import student  # noqa: E402

if __name__ == "__main__":
    try:
        student.main()
    except MiniPLMError as error:
        sys.exit(report(error))
