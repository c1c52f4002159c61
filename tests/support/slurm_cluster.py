"""A real Slurm cluster of several nodes on this one machine, which tests start, submit to and break.

Each node, and the controller, is a shell that starts its daemons as children when it is told so on its standard input:

    this process ─┬─ bash (controller) ─┬─ munged
                  │                     └─ slurmctld
                  ├─ bash (node1) ────── slurmd ── slurmstepd ── batch script, tasks
                  └─ bash (node2) ────── slurmd ── ...

Where the kernel allows it, such a shell is the first process of namespaces of its own. Then nodes have host names and
process ids of their own and know one another by name, as several machines do, and no process of a node outlives its
shell. The shell ends with its standard input, so that even a test run that is killed leaves no process behind.

There is no database (`sacct`), no cgroup (memory, CPU and device limits are not enforced) and no real GPU.
"""

import os
import pwd
import random
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

POLL_SECONDS = 0.25
#: Most waits take a second or two. Other processes may keep the machine busy, so the limit is far above that.
WAIT_SECONDS = 180
COMMAND_TIMEOUT_SECONDS = 120
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
#: Debian's daemons are not on every user's path.
SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
#: A job leaves these only by `scontrol requeue`.
FINISHED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"})
UP = frozenset({"idle", "mixed", "allocated"})
#: Variables of these names would make commands act on another cluster, or otherwise than a test asks for.
SLURM_VARIABLES = ("SLURM", "SBATCH", "SALLOC", "SRUN", "SQUEUE", "SINFO", "SCANCEL", "SCONTROL")
FIELD = re.compile(r"(\S+?)=(.*?)(?=\s\S+?=|\s*$)")
#: A GPU has to be a character device, which nobody opens here.
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom")
#: Below the ports that the kernel gives to connections, and apart from those that job scripts take for torch.
PORTS = range(10_000, 20_000)
NAMESPACES = ["unshare", "--uts", "--mount", "--mount-proc", "--pid", "--fork", "--kill-child"]

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={controller_host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for cred_expire seconds before it starts again. Below 5, Slurm takes its default, 120 s.
AuthInfo=socket={directory}/munge.socket,cred_expire=5
{communication}
ProctrackType={proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
EnforcePartLimits=ALL
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
StateSaveLocation={directory}/state
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdSpoolDir={directory}/spool/%n
SlurmdPidFile={directory}/slurmd-%n.pid
# Believe the CPUs and the memory below, which the machine need not have.
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_resolution=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MaxArraySize=1001
# Job scripts take ports by job id: those of two clusters on this machine are to differ.
FirstJobId={first_job}
KillWait={kill_wait_seconds}
SlurmctldTimeout=30
SlurmdTimeout={slurmd_timeout_seconds}
MessageTimeout={message_timeout_seconds}
TCPTimeout=1
# A busy machine is slow to start a job. After 10 s, the default, slurmctld would start the job again.
BatchStartTimeout=120
MinJobAge=3600
GresTypes=gpu
{nodes}
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_seconds}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


class ClusterError(RuntimeError):
    """Slurm is not installed, does not start, or refuses a command."""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCH_PATH) is None]


class Host:
    """A shell that keeps daemons as its children, in namespaces of its own where that is possible."""

    def __init__(self, name: str, directory: Path, *, own_namespaces: bool) -> None:
        self.name = name
        self._log_dir = directory / "log"
        self._shell = subprocess.Popen(
            [*(NAMESPACES if own_namespaces else ()), "bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            env={"PATH": SEARCH_PATH, "LC_ALL": "C"},
            cwd=directory,
            start_new_session=True,
        )
        self.tell("trap 'kill -KILL $(jobs -p); wait' EXIT")
        if own_namespaces:
            self.tell(f"hostname {name} && mount --bind {directory}/hosts.{name} /etc/hosts || exit 1")

    def tell(self, command: str) -> None:
        assert self._shell.stdin is not None
        try:
            self._shell.stdin.write(f"{command}\n".encode())
            self._shell.stdin.flush()
        except BrokenPipeError:
            raise ClusterError(f"{self.name} is off, and cannot be told: {command}") from None

    def start(self, *daemon: str) -> None:
        """Start a daemon, in the foreground as it sees it."""
        self.tell(f"{shlex.join(daemon)} </dev/null >>{self._log_dir}/{self.name}-{daemon[0]}.log 2>&1 &")

    def stop_latest(self, number: signal.Signals) -> None:
        """Send a signal that ends it to the daemon started last, and to nothing that it has started."""
        self.tell(f"kill -{number.value} $!; wait $!")

    def switch_off(self) -> None:
        """End the daemons without warning; with namespaces of its own, everything that runs on this host."""
        self._shell.communicate(timeout=COMMAND_TIMEOUT_SECONDS)


class SlurmCluster:
    """A context manager: nodes `node1`, `node2`, ... that are idle at first, and partitions `batch` and `urgent`.

    Jobs of `urgent` preempt those of `batch` (the default), which are requeued. Only every 30 seconds Slurm looks which
    jobs are at their time limit, or at the end of their grace time; no setting changes that.

    Attributes:
        directory: of the cluster's own; its path is short, as those of sockets have to be.
        has_namespaces: whether nodes have names and processes of their own; known once it is entered.
        jobs_dir: where jobs are submitted from, and hence where they write `slurm-<job>.out`.
    """

    def __init__(
        self,
        *,
        num_nodes: int = 2,
        num_cpus: int = 8,
        num_gpus: int = 2,
        memory_mb: int = 64_000,
        grace_seconds: int = 60,
        kill_wait_seconds: int = 8,
        slurmd_timeout_seconds: int = 60,
        message_timeout_seconds: int = 10,
        proctrack: str = "linuxproc",
        own_namespaces: bool | None = None,
    ) -> None:
        """The cluster of a few settings; nothing runs before it is entered.

        Args:
            num_cpus, num_gpus, memory_mb: of one node, and made up.
            grace_seconds: the time that a preempted job has before Slurm kills it.
            kill_wait_seconds: between SIGTERM and SIGKILL when Slurm ends a job. It has to be less than
                message_timeout_seconds: a node reports the end of a step when the step has ended. If that takes longer,
                slurmctld asks again a minute later, and may end a step of the job's next start.
            slurmd_timeout_seconds: slurmctld declares a silent node down after once or twice this time. A busy machine
                needs a long one; tests call `declare_down` instead of waiting.
            proctrack: how Slurm finds the processes of a step: `linuxproc`, by descent, as cgroups would find them; or
                `pgid`, which loses those in sessions of their own, such as torchrun's ranks.
            own_namespaces: of each node; by default, where the kernel allows it.
        """
        self._nodes = [f"node{index + 1}" for index in range(num_nodes)]
        self._resources = f"CPUs={num_cpus} RealMemory={memory_mb} Gres=gpu:{num_gpus}"
        self._num_gpus = num_gpus
        self._settings = {
            "grace_seconds": grace_seconds,
            "kill_wait_seconds": kill_wait_seconds,
            "slurmd_timeout_seconds": slurmd_timeout_seconds,
            "message_timeout_seconds": message_timeout_seconds,
            "proctrack": f"proctrack/{proctrack}",
        }
        self._hosts: dict[str, Host] = {}
        self._ports: dict[str, int] = {}
        self._wants_namespaces = own_namespaces
        self.has_namespaces = False

    def __enter__(self) -> Self:
        if missing := missing_programs():
            raise ClusterError(f"Slurm is not installed: no {', '.join(missing)}")
        self.directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        try:
            self._start()
        except BaseException as error:
            error.add_note(self.log_tails())
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self.has_namespaces:
                self.recover()
        finally:
            self._stop()

    # --- What users do -------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """For commands that are to use this cluster, whatever cluster this process itself may run on."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(SLURM_VARIABLES)}
        return inherited | {"PATH": SEARCH_PATH, "SLURM_CONF": str(self._conf_path)}

    def run(
        self,
        *command: str | Path,
        script: str = "",
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> str:
        """What a command prints.

        Args:
            script: its standard input.
            cwd: `jobs_dir` by default.
            variables: to be added to its environment, which jobs inherit.

        Raises:
            ClusterError: it fails, with what it says.
        """
        done = subprocess.run(
            command,
            input=script,
            capture_output=True,
            text=True,
            env=self.environment() | dict(variables or {}),
            cwd=cwd or self.jobs_dir,
            timeout=COMMAND_TIMEOUT_SECONDS,
        )
        if done.returncode:
            raise ClusterError(f"{shlex.join(map(str, command))}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def submit(
        self,
        *arguments: str | Path,
        script: str = "",
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> str:
        """Call `sbatch` with these arguments, or with the text of a batch script; returns the job's id."""
        command = ("sbatch", "--parsable", *arguments)
        return self.run(*command, script=script, cwd=cwd, variables=variables).strip()

    def show(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`: JobState, Reason, Restarts, NodeList, Command, StdOut, ...

        Of an array (`<job>`, not `<job>_<task>`) those of what is listed first.
        """
        return fields_of(self.run("scontrol", "show", "job", "--oneliner", job))

    def state(self, job: str) -> str:
        return self.show(job)["JobState"]

    def reason(self, job: str) -> str:
        """Why a job is pending."""
        return self.show(job)["Reason"]

    def output(self, job: str) -> str:
        """What a job has written so far."""
        path = Path(self.show(job)["StdOut"])
        return path.read_text() if path.exists() else ""

    def cancel(self, *jobs: str) -> None:
        self.run("scancel", *jobs)

    def requeue(self, job: str) -> None:
        self.run("scontrol", "requeue", job)

    def signal(self, job: str, name: str, *options: str) -> None:
        """Signal a job's tasks; with `--batch` its batch script, with `--full` both and what they have started."""
        self.run("scancel", f"--signal={name}", *options, job)

    # --- Waiting -------------------------------------------------------------------------------------------------

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_seconds: float = WAIT_SECONDS) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            self._sleep_until(deadline, what)

    def wait(self, job: str, *states: str, timeout_seconds: float = WAIT_SECONDS) -> str:
        """Wait until a job is in one of these states (by default, until it is finished); returns the state."""
        expected = frozenset(states) or FINISHED
        words = " or ".join(sorted(expected))
        deadline = time.monotonic() + timeout_seconds
        while (state := self.state(job)) not in expected:
            assert state not in FINISHED, f"job {job} is {state}, not {words}:\n{self.output(job)[-3000:]}"
            self._sleep_until(deadline, f"job {job} is {words}")
        return state

    def wait_for_output(self, job: str, text: str, timeout_seconds: float = WAIT_SECONDS) -> None:
        self.wait_for(lambda: text in self.output(job), f"job {job} writes {text!r}", timeout_seconds)

    def wait_for_start(self, job: str, number: int, timeout_seconds: float = WAIT_SECONDS) -> None:
        """Wait until a job runs for the second, third, ... time."""

        def has_started() -> bool:
            shown = self.show(job)
            assert shown["JobState"] not in FINISHED, f"job {job} is {shown['JobState']}:\n{self.output(job)[-3000:]}"
            return (shown["Restarts"], shown["JobState"]) == (str(number - 1), "RUNNING")

        self.wait_for(has_started, f"start {number} of job {job}", timeout_seconds)

    def _sleep_until(self, deadline: float, what: str) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain: {what}\n{self.queue()}")
        time.sleep(POLL_SECONDS)

    def wait_until_idle(self, timeout_seconds: float = WAIT_SECONDS) -> None:
        """Wait until every node is there, and free."""
        self.wait_for(
            lambda: {self.node_state(name) for name in self._nodes} == {"idle"}, "all nodes are idle", timeout_seconds
        )

    # --- What breaks ---------------------------------------------------------------------------------------------

    def kill_node(self, name: str) -> None:
        """Kill a node's slurmd; jobs on it continue, and Slurm cannot see them. `declare_down` tells the controller."""
        self._hosts[name].stop_latest(signal.SIGKILL)
        self.wait_for(lambda: not self._listens(name), f"slurmd of {name} is dead")

    def crash_node(self, name: str) -> None:
        """Switch a node off: every process on it is killed (without namespaces: its slurmd only)."""
        self._hosts.pop(name).switch_off()

    def declare_down(self, name: str) -> None:
        """Declare a node down, as slurmctld itself does after SlurmdTimeout: the jobs on it are requeued."""
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=test")
        self.wait_for(lambda: self.node_state(name).startswith("down"), f"{name} is down")

    def restore_node(self, name: str) -> None:
        """Bring a node back that was killed or has crashed, and wait until jobs can use it."""
        self._start_node(name)
        self.wait_for(lambda: self._listens(name) and self.node_state(name) in UP, f"{name} is back")

    def node_state(self, name: str) -> str:
        """idle, mixed, allocated, down*, idle+drain, ...; `sinfo` is not always up to date."""
        return fields_of(self.run("scontrol", "show", "node", "--oneliner", name))["State"].lower()

    def preempt_all(self, timeout_seconds: float = WAIT_SECONDS) -> None:
        """Run a job that needs all nodes and preempts whatever runs there, to its end."""
        flags = ("--partition=urgent", f"--nodes={len(self._nodes)}", "--exclusive")
        urgent = self.submit(*flags, script="#!/bin/bash\n")
        self.wait(urgent, "COMPLETED", timeout_seconds=timeout_seconds)

    def kill_controller(self) -> None:
        """SIGTERM to slurmctld, as from a service manager. After SIGKILL it would not know which jobs have started."""
        self._hosts["controller"].stop_latest(signal.SIGTERM)
        self.wait_for(lambda: not self._controller_answers(), "the controller is gone")

    def start_controller(self) -> None:
        """Start slurmctld (again), with the jobs that it had."""
        self._hosts["controller"].start("slurmctld", "-D", "-f", str(self._conf_path))
        self.wait_for(self._controller_answers, "the controller answers")

    def cancel_all(self) -> None:
        """Cancel every job and wait until none is left."""
        unfinished = self.run("squeue", "--noheader", "--format=%A").split()
        if unfinished:
            self.cancel(*unfinished)
        self.wait_for(lambda: not self.run("squeue", "--noheader"), "no job is left")

    def recover(self) -> None:
        """Bring back what is dead, cancel every job, and wait until all nodes are free."""
        if not self._controller_answers():
            self.start_controller()
        for name in self._nodes:
            if not self._listens(name):
                self.restore_node(name)
        self.cancel_all()
        self.wait_until_idle()

    # --- For people ----------------------------------------------------------------------------------------------

    def queue(self) -> str:
        """All jobs, finished ones too, one a line: id, name, partition, state, reason, nodes."""
        try:
            return self.run("squeue", "--states=all", "--format=%i %j %P %T %r %N")
        except ClusterError as error:
            return str(error)

    def log_tails(self, num_lines: int = 20) -> str:
        """The last lines of each daemon's log."""
        parts = []
        for path in sorted((self.directory / "log").glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()
            parts += [f"--- {path.name}", *lines[-num_lines:]]
        return "\n".join(parts)

    # --- Start and stop ------------------------------------------------------------------------------------------

    @property
    def jobs_dir(self) -> Path:
        return self.directory / "jobs"

    @property
    def _conf_path(self) -> Path:
        return self.directory / "slurm.conf"

    def _start(self) -> None:
        for name in ("log", "state", "spool", "jobs"):
            (self.directory / name).mkdir()
        self.has_namespaces = self._wants_namespaces is not False and can_have_namespaces()
        self._write_configuration()
        self._switch_on("controller")
        self._start_munge()
        self.start_controller()
        for name in self._nodes:
            self._start_node(name)
        self.wait_until_idle()

    def _stop(self) -> None:
        for host in reversed(self._hosts.values()):
            host.switch_off()
        self._hosts.clear()
        shutil.rmtree(self.directory)

    def _write_configuration(self) -> None:
        """slurm.conf, gres.conf and each host's /etc/hosts.

        Everything listens on the loopback interface only, that is on the address of the process's own host name. There
        srun is answered at 127.0.0.1, whatever address it has. So each host has to be 127.0.0.1 for itself.
        """
        this_host = socket.gethostname()
        hosts = ["controller", *self._nodes]
        self._ports = dict(zip(hosts, free_ports(len(hosts)), strict=True))
        on_loopback = self.has_namespaces or socket.gethostbyname(this_host) == "127.0.0.1"
        nodes = [
            f"NodeName={name} NodeHostname={name if self.has_namespaces else this_host} NodeAddr=127.0.0.1 "
            f"Port={self._ports[name]} {self._resources}"
            for name in self._nodes
        ]
        text = CONFIGURATION.format(
            **self._settings,
            first_job=random.randrange(1, 1_000_000),
            directory=self.directory,
            user=pwd.getpwuid(os.geteuid()).pw_name,
            controller_host="controller" if self.has_namespaces else this_host.partition(".")[0],
            controller_port=self._ports["controller"],
            communication="CommunicationParameters=NoInAddrAny,NoCtldInAddrAny" if on_loopback else "",
            nodes="\n".join(nodes),
        )
        self._conf_path.write_text(text)
        gpus = [f"NodeName={','.join(self._nodes)} Name=gpu File={device}" for device in DEVICES[: self._num_gpus]]
        (self.directory / "gres.conf").write_text("\n".join(gpus) + "\n")
        for name in hosts:
            others = [f"127.0.1.{index + 1} {other}" for index, other in enumerate(hosts) if other != name]
            lines = [f"127.0.0.1 {name} localhost", *others]
            (self.directory / f"hosts.{name}").write_text("\n".join(lines) + "\n")

    def _switch_on(self, name: str) -> Host:
        self._hosts[name] = Host(name, self.directory, own_namespaces=self.has_namespaces)
        return self._hosts[name]

    def _start_munge(self) -> None:
        """A munged with a key and a socket of its own, beside one that the machine may have."""
        key_path, socket_path = self.directory / "munge.key", self.directory / "munge.socket"
        key_path.touch(mode=0o600)
        key_path.write_bytes(secrets.token_bytes(128))
        paths = {
            "key-file": key_path,
            "socket": socket_path,
            "pid-file": self.directory / "munged.pid",
            "seed-file": self.directory / "munge.seed",
        }
        options = [f"--{name}={path}" for name, path in paths.items()]
        self._hosts["controller"].start("munged", "--foreground", "--force", "--num-threads=2", *options)
        probe = ("munge", "--no-input", f"--socket={socket_path}", "--output=/dev/null")
        self.wait_for(lambda: self._succeeds(*probe), "munged answers")

    def _start_node(self, name: str) -> None:
        (self.directory / "spool" / name).mkdir(exist_ok=True)
        host = self._hosts.get(name) or self._switch_on(name)
        host.start("slurmd", "-D", "-N", name, "-f", str(self._conf_path))

    def _listens(self, name: str) -> bool:
        """Whether a node's slurmd does; proc(5): remote address and port of listeners are 0, and their state is 0A."""
        return f":{self._ports[name]:04X} 00000000:0000 0A " in Path("/proc/net/tcp").read_text()

    def _controller_answers(self) -> bool:
        return self._succeeds("scontrol", "ping")

    def _succeeds(self, *command: str) -> bool:
        try:
            self.run(*command)
        except ClusterError:
            return False
        return True


def installed_version() -> str:
    """Such as `slurm-wlm 22.05.8`."""
    program = shutil.which("slurmctld", path=SEARCH_PATH)
    if program is None:
        raise ClusterError("SLURM is not installed: no slurmctld")
    return subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stdout.strip()


def fields_of(shown: str) -> dict[str, str]:
    """Those of the first line that `scontrol show --oneliner` prints."""
    return dict(FIELD.findall(shown.partition("\n")[0]))


def can_have_namespaces() -> bool:
    return subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode == 0


def free_ports(num_ports: int) -> list[int]:
    """Ports on which nobody listens now."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == num_ports:
            return found
    raise ClusterError("no free ports")
