"""What Megatron itself prints, some 800 lines a start: hidden in programs whose own output is a few lines.

`MINIPLM_VERBOSE=1` shows it. Training shows it always, since there it is what users of Megatron know.
"""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from megatron_miniplm.errors import MiniPLMError

VERBOSE_VARIABLE = "MINIPLM_VERBOSE"
#: Loggers that warn at every start, whatever the flags are.
_ALWAYS_WARNING = (
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.num_microbatches_calculator",
    "megatron.core.rerun_state_machine",
    "megatron.core.tokenizers.utils.build_tokenizer",
    "megatron.training.vocab_utils",
)
_is_hidden = False


def hide_unless_verbose() -> None:
    """From now on, `hidden` hides, and Megatron's loggers keep to warnings."""
    global _is_hidden
    if os.environ.get(VERBOSE_VARIABLE, "0") not in ("", "0"):
        return
    _is_hidden = True
    warnings.filterwarnings("ignore", message="Could not determine rank")
    logging.getLogger("megatron").setLevel(logging.WARNING)
    for name in _ALWAYS_WARNING:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Keep what is printed meanwhile, and print it after all if Megatron leaves or raises what nobody expects."""
    if not _is_hidden:
        yield
        return
    kept = io.StringIO()
    try:
        with contextlib.redirect_stdout(kept):
            yield
    except MiniPLMError:
        raise
    except BaseException:
        sys.stdout.write(kept.getvalue())
        raise


def hint() -> str:
    """How to see what is hidden, for the first line of a program; empty where nothing is."""
    return f"; its own output is hidden, {VERBOSE_VARIABLE}=1 shows it" if _is_hidden else ""
