"""Errors meant for users, and the exit codes that tools end with.

Every message names the place, what was expected, what was found and the remedy. `megatron_miniplm.cli` prints it
as one line on stderr and ends with `exit_code`; any other exception is a bug of ours and keeps its traceback.
"""

import re
import signal

EXIT_BAD_INPUT = 2
EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: run the same command again
#: End a tool with EXIT_RESUMABLE. SLURM sends SIGTERM before it kills, and what `--signal` names before the time limit.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_LINE_BREAKS = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


class MiniPLMError(Exception):
    """Base of everything that a user can cause and mend.

    Attributes:
        reported_elsewhere: set on ranks whose error another rank prints.
    """

    exit_code = EXIT_BAD_INPUT
    reported_elsewhere = False

    def __str__(self) -> str:
        """The message in one line, whatever the names from data that are in it."""
        return _LINE_BREAKS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), super().__str__())


class InputError(MiniPLMError):
    """A file, flag or value that the user gave cannot be used."""


def unusable_path(error: OSError) -> InputError:
    """What the operating system said of a path: no permission, no space, not a directory."""
    return InputError(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}")


def one_line(error: BaseException) -> str:
    """What an error of a library says, without line breaks and not too long, for a message of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


class CorruptArtifactError(MiniPLMError):
    """An artifact on disk contradicts itself or its manifest."""


class FingerprintMismatchError(MiniPLMError):
    """Two artifacts that must belong together do not."""


class NonFiniteScoreError(MiniPLMError):
    """A model gave NaN or infinity as a score."""


class MissingPackageError(MiniPLMError):
    """A package that this program needs, and others do not, is not installed."""


class UnsupportedMegatronError(MiniPLMError):
    """The installed Megatron lacks something, or no longer looks as our patches expect."""


class Interrupted(MiniPLMError):
    """The job was told to stop and did so at a safe place; the same command continues it."""

    exit_code = EXIT_RESUMABLE
