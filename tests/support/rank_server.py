"""A server that has imported torch, Megatron and transformers once, and forks worlds of ranks for the tests.

Importing them costs 5 CPU-seconds per process, and the tests run some 400 ranks. The server (`python rank_server.py
SOCKET`) is started by the first test that asks for ranks. For each request it forks a *launcher*, which forks the ranks
and waits for them as torchrun does:

- A rank has its own command line, environment, working directory, stdout, stderr and session. It runs the program as
  `__main__` and ends with the exit code that `python` would give.
- The launcher holds the rendezvous store, on a socket that listens before the ranks exist: nothing races for the port.
  Once a rank has failed, the launcher ends the others and exits with 1. It passes SIGTERM on.
- A world of one rank is like plain `python`: no launcher variables, and the exit code is the rank's.

What a fork cannot show is tested with real processes; `REAL_STARTS` lists those tests and the reasons. Forked ranks
share one hash seed. The random generators of Python and NumPy are seeded anew in each.
"""

import array
import atexit
import ctypes
import importlib.util
import json
import logging
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.abc import InspectLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import IO, Any, Self

from cost_meter import add_cpu_seconds

#: Tests that start real processes, and why.
REAL_STARTS = {
    "contract/test_scoring_layouts.py::test_torchrun_writes_the_same_bytes": "forks against torchrun",
    "end_to_end/test_scoring_recovery.py::test_a_signal_to_two_ranks": "signals to torchrun",
    "end_to_end/test_scoring_refusals.py::test_ranks_that_are_silent_let_rank_zero_speak": "torchrun's report",
    "end_to_end/test_launched_training.py": "torchrun; asynchronous saves spawn a process that imports the program",
    "end_to_end/test_paper_recipes.py": "shell scripts start the programs",
    "runtime/test_processes.py": "a process of one thread",
    "selection/test_independence.py, selection/test_ranks.py": "torchrun; programs that do not import torch",
    "test_launch.py, test_launchers.py": "command lines, spawned processes, srun's environment",
    "test_import_cost.py, mcore/test_cpu_emulation.py, mcore/test_doctor.py, mcore/test_versions.py": "imports",
    "training/test_checkpoint_helper.py": "a spawned process and its signals",
    "slurm": "srun, signals to process trees",
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
#: As torchrun: so long ranks may take to end after SIGTERM.
GRACE_SECONDS = 30.0
POLL_SECONDS = 0.02
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


@dataclass(frozen=True, kw_only=True)
class Request:
    """One world of ranks.

    Attributes:
        program: `["-m", MODULE]`, `["-c", CODE]` or `[SCRIPT]`.
        argv: what follows the program on the command line.
        num_ranks: 1 is a plain process; more are ranks of a launcher.
        largest_file_bytes: RLIMIT_FSIZE of the ranks, which a test takes for a full disk; None is no limit.
    """

    program: tuple[str, ...]
    argv: tuple[str, ...]
    num_ranks: int
    environment: dict[str, str]
    working_directory: str
    largest_file_bytes: int | None

    @classmethod
    def of_command(
        cls, command: Sequence[str], environment: Mapping[str, str], largest_file_bytes: int | None = None
    ) -> Self:
        """From `[python, (torchrun's flags,) program, flags]`, as `megatron_runs.launcher` begins it."""
        assert command[0] == sys.executable, f"{command[0]} is not this Python: use a real process"
        rest, num_ranks = list(command[1:]), 1
        if tuple(rest[: len(TORCHRUN)]) == TORCHRUN:
            num_ranks, rest = int(rest[len(TORCHRUN)]), rest[len(TORCHRUN) + 1 :]
        length = 2 if rest[0] in ("-m", "-c") else 1
        assert not rest[length - 1].startswith("-"), f"{rest[:2]} is no module, script or code: use a real process"
        return cls(
            program=tuple(rest[:length]),
            argv=tuple(rest[length:]),
            num_ranks=num_ranks,
            environment=dict(environment),
            working_directory=os.getcwd(),
            largest_file_bytes=largest_file_bytes,
        )


# ---------------------------------------------------------------- the tests' side


class ForkedProcess:
    """A forked launcher, or the only rank, with the interface of `subprocess.Popen` as far as tests use it.

    Attributes:
        first_failure: exit code of the first rank that failed, which torchrun's report calls the root cause; else None.
    """

    def __init__(self, connection: socket.socket, stdout: IO[Any] | None, stderr: IO[Any] | None) -> None:
        self.stdout, self.stderr = stdout, stderr
        self.returncode: int | None = None
        self.first_failure: int | None = None
        self._connection = connection
        self._lines = connection.makefile("rb")
        first = self._lines.readline()
        assert first, "the rank server has ended; its messages are in the test's stderr"
        self.pid = int(json.loads(first)["pid"])

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self._receive_end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("forked ranks", timeout or 0)
            self._receive_end()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _receive_end(self) -> None:
        last = self._lines.readline()
        killed = {"returncode": -signal.SIGKILL, "first_failure": None, "cpu_seconds": 0.0}
        end = json.loads(last) if last else killed
        self.returncode, self.first_failure = end["returncode"], end["first_failure"]
        add_cpu_seconds(end["cpu_seconds"])
        self._lines.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


class RankServer:
    """The server process; it and all that it forked end when `close` is called or this process ends."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="ranks-")
        self._path = f"{self._directory.name}/socket"
        # Threads started at import would not live on in forks; OMP_NUM_THREADS=1 also is what tests run with.
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C and `timeout` reach the tests; the server then finds that they have ended
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "the rank server did not start"

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdout: IO[Any] | int,
        stderr: IO[Any] | int,
        text: bool = False,
        largest_file_bytes: int | None = None,
    ) -> ForkedProcess:
        """Fork a world; `stdout` and `stderr` are files or `subprocess.PIPE`, `DEVNULL`, `STDOUT`."""
        request = Request.of_command(command, environment, largest_file_bytes)
        ours: list[IO[Any] | None] = []
        theirs: list[int] = []
        for stream in (stdout, stderr):
            end, descriptor = _open_stream(stream, theirs[0] if theirs else None, text)
            ours.append(end)
            theirs.append(descriptor)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._path)
        data = json.dumps(asdict(request)).encode()
        header = len(data).to_bytes(8, "little")
        connection.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", theirs))])
        connection.sendall(data)
        for descriptor in set(theirs):
            os.close(descriptor)
        return ForkedProcess(connection, *ours)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._directory.cleanup()


def _open_stream(stream: IO[Any] | int, stdout: int | None, text: bool) -> tuple[IO[Any] | None, int]:
    """Our end, if there is one to read, and a descriptor of our own for the ranks."""
    if stream == subprocess.PIPE:
        ours, theirs = os.pipe()
        return os.fdopen(ours, "r" if text else "rb"), theirs
    if stream == subprocess.STDOUT:
        assert stdout is not None
        return None, os.dup(stdout)
    if stream == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_WRONLY)
    return None, os.dup(stream if isinstance(stream, int) else stream.fileno())


_server: RankServer | None = None


def rank_server() -> RankServer:
    """The server of this test run, started by the first who asks."""
    global _server
    if _server is None:
        _server = RankServer()
        atexit.register(_server.close)
    return _server


def run_forked(
    command: Sequence[str],
    environment: Mapping[str, str],
    timeout_seconds: float,
    *,
    largest_file_bytes: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run(command, capture_output=True, text=True)` by the server."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = rank_server().start(
            command, environment, stdout=stdout, stderr=stderr, largest_file_bytes=largest_file_bytes
        )
        try:
            returncode = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(GRACE_SECONDS + 10)
            raise
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return subprocess.CompletedProcess(list(command), returncode, *texts)


# ---------------------------------------------------------------- the server


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def serve(path: str) -> None:
    """Fork a launcher for each request, until stdin ends: then end all that was forked."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # ranks whose launcher was killed come here
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([listener, sys.stdin], [], [], 1.0)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if sys.stdin in readable:
                break
            if listener in readable:
                connection, _ = listener.accept()
                _fork_launcher(listener, connection)
    _end_descendants()


def _fork_launcher(listener: socket.socket, connection: socket.socket) -> None:
    from megatron_miniplm.runtime.processes import can_fork

    assert can_fork(), f"{len(os.listdir('/proc/self/task'))} threads: a fork would lose all but one"
    if os.fork():
        connection.close()
        return
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        listener.close()
        launch(connection)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(1)


def launch(connection: socket.socket) -> None:
    """Read a request, fork its ranks, wait for them as torchrun does, and report how they ended."""
    header, descriptors, _, _ = socket.recv_fds(connection, 8, 2)
    data = b""
    while len(data) < int.from_bytes(header, "little"):
        data += connection.recv(1 << 20)
    request = Request(**json.loads(data))
    rendezvous = socket.create_server(("127.0.0.1", 0)) if request.num_ranks > 1 else None
    pids = [_fork_rank(request, rank, connection, rendezvous, descriptors) for rank in range(request.num_ranks)]
    for descriptor in descriptors:
        os.close(descriptor)
    _send(connection, pid=pids[0] if rendezvous is None else os.getpid())
    if rendezvous is None:
        returncode = os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1])
        first_failure = returncode or None
    else:
        store = _hold_store(rendezvous, request.num_ranks)
        returncode, first_failure = _wait_as_torchrun(pids)
        del store
    _end_descendants()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    _send(connection, returncode=returncode, first_failure=first_failure, cpu_seconds=cpu_seconds)
    os._exit(0)


def _send(connection: socket.socket, **values: Any) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(json.dumps(values).encode() + b"\n")


def _hold_store(listener: socket.socket, num_ranks: int) -> Any:
    """The store that ranks meet in, on a socket that listens already; as torchrun's agent it outlives each rank."""
    from torch.distributed import TCPStore

    host, port = listener.getsockname()
    return TCPStore(host, port, num_ranks, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def _wait_as_torchrun(pids: Sequence[int]) -> tuple[int, int | None]:
    """Wait for all ranks; once one has failed, or on SIGTERM, end the others.

    Returns:
        The launcher's exit code, 0 or 1, and the exit code of the first rank that failed.
    """
    told_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told_to_stop.append(number))
    living = set(pids)
    first_failure: int | None = None
    kill_at = float("inf")
    while living:
        for pid in list(living):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                living.remove(pid)
                first_failure = first_failure or os.waitstatus_to_exitcode(status) or None
        if (first_failure or told_to_stop) and kill_at == float("inf"):
            kill_at = time.monotonic() + GRACE_SECONDS
            _signal_all(living, signal.SIGTERM)
        if time.monotonic() > kill_at:
            _signal_all(living, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return int(first_failure is not None or bool(told_to_stop)), first_failure


def _signal_all(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _end_descendants() -> None:
    """Kill what ranks have left behind: as the subreaper this process is the parent of all of it."""
    while children := _children():
        _signal_all(children, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)


def _children() -> set[int]:
    task = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return {int(pid) for pid in task.read_text().split()}


# ---------------------------------------------------------------- a rank


def _fork_rank(
    request: Request,
    rank: int,
    connection: socket.socket,
    rendezvous: socket.socket | None,
    descriptors: Sequence[int],
) -> int:
    """Fork one rank; it never returns from here."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        environment = dict(request.environment)
        if rendezvous is not None:
            environment |= _rank_environment(rank, request.num_ranks, rendezvous.getsockname()[1])
            rendezvous.close()
        connection.close()
        _become(request, environment, descriptors)
        code = _run(request)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        _leave(code)
    raise AssertionError("unreachable")


def _rank_environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """What torchrun sets, as far as torch and Megatron look at it."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": f"forked-{os.getppid()}",
    }


def _become(request: Request, environment: dict[str, str], descriptors: Sequence[int]) -> None:
    """What a new process would find: environment, directory, streams, command line, module path, random state."""
    import numpy as np

    added = [path for path in environment.get("PYTHONPATH", "").split(":") if path and path not in sys.path]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(request.working_directory)
    if request.largest_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request.largest_file_bytes, request.largest_file_bytes))
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((null, *descriptors)):
        os.dup2(source, target)
    for descriptor in (null, *descriptors):
        os.close(descriptor)
    # `python -m` and `-c` put the working directory first, `python SCRIPT` the script's.
    is_script = len(request.program) == 1
    own = os.path.dirname(os.path.abspath(request.program[0])) if is_script else request.working_directory
    sys.path[:1] = [own, *added]
    logging.root.handlers.clear()  # some library has configured it: programs do so before they import any
    logging.root.setLevel(logging.WARNING)
    random.seed()
    np.random.seed()
    tempfile.tempdir = None


def _run(request: Request) -> int:
    """The program as `__main__`; the exit code that `python` would give."""
    code, namespace = _program(request.program)
    sys.argv = [namespace.get("__file__") or "-c", *request.argv]
    sys.modules["__main__"] = _MainModule(namespace)
    try:
        exec(code, namespace)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


def _program(program: Sequence[str]) -> tuple[CodeType, dict[str, Any]]:
    """Code and initial namespace of a module, of code on the command line, or of a script."""
    namespace: dict[str, Any] = {"__name__": "__main__", "__spec__": None, "__doc__": None, "__package__": None}
    if program[0] == "-m":
        spec = importlib.util.find_spec(program[1])
        assert spec is not None, f"there is no module {program[1]}"
        assert isinstance(spec.loader, InspectLoader)
        code = spec.loader.get_code(program[1])
        assert code is not None
        namespace |= {"__spec__": spec, "__loader__": spec.loader, "__file__": spec.origin, "__package__": spec.parent}
        return code, namespace
    if program[0] == "-c":
        return compile(program[1], "<string>", "exec", dont_inherit=True), namespace
    namespace["__file__"] = program[0]
    return compile(Path(program[0]).read_bytes(), program[0], "exec", dont_inherit=True), namespace


class _MainModule(ModuleType):
    """`sys.modules["__main__"]`: finds what the program defines, for pickles, and hides where it came from.

    Megatron saves a checkpoint beside a spawned process, which would import the program, and with it torch and
    Megatron, for nothing. Tests of asynchronous saves, which need that import, are real starts.
    """

    def __init__(self, namespace: dict[str, Any]) -> None:
        super().__init__("__main__")
        self._namespace = namespace

    def __getattr__(self, name: str) -> Any:
        if name == "__file__" or name not in self._namespace:
            raise AttributeError(name)
        return self._namespace[name]


def _leave(code: int) -> None:
    """What the end of the interpreter does that others can see, then the end of the process."""
    try:
        threading._shutdown()  # type: ignore[attr-defined] - waits for threads that are not daemons
        atexit._run_exitfuncs()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


def main() -> None:
    sys.path[0] = str(Path(__file__).parents[2])
    path, sys.argv = sys.argv[1], ["rank_server"]
    from megatron_miniplm.mcore import program, versions

    # Maps Megatron to the CPU before any of it is imported. A program checks the release again, for what it supports.
    program.prepare(versions.PLUG_IN)
    import matplotlib.figure  # noqa: F401
    import megatron.core.inference.engines
    import megatron.training.training  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sentencepiece  # noqa: F401
    import tensorboard.summary  # noqa: F401
    import tokenizers  # noqa: F401
    import torch.distributed.checkpoint  # noqa: F401
    import transformers  # noqa: F401

    serve(path)


if __name__ == "__main__":
    main()
