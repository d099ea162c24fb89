"""Runs an experiment on a queued TPU resource, from a laptop.

    create -> WAITING_FOR_RESOURCES -> PROVISIONING -> ACTIVE -> copy, install, start
           -> follow the log of worker 0 -> delete

A resource that is FAILED or SUSPENDED, or lost to preemption, is deleted and created again; the run
resumes from its bucket. The program runs detached on the workers and writes its exit status to a
file, so a dropped ssh connection is opened again. Every retry waits first, and retries are limited.
"""

import dataclasses
import hashlib
import re
import secrets
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from grm_jax.hosts.rendezvous import SECRET
from launch.cluster import gcloud
from launch.cluster.gcloud import Resource, command_line
from launch.errors import FAILED, PEER_LOST, START_AGAIN, WRONG_COMMAND, LaunchError

GOING = ("DELETING", "SUSPENDING")  # states that end in deletion or SUSPENDED
ENDED = (None, "FAILED", "SUSPENDED", *GOING)  # states that a run cannot use
MOST_BACKOFF = 900.0  # seconds
HOME = "grm_jax"
TOKEN = f"{HOME}.token"
MARK = "GRM_STATUS"
PYTHON = (
    "command -v python3.11 || "
    "(sudo apt-get update -q && sudo apt-get install -q -y python3.11 python3.11-venv make)"
)
SETUP = (
    f"rm -rf {HOME} && mkdir {HOME} && tar -xzf {HOME}.tar.gz -C {HOME} "
    f"&& ({PYTHON}) >/dev/null && cd {HOME} && make venv"
)
_STATUS = (
    "(cat status 2>/dev/null || (kill -0 $(cat pid) 2>/dev/null && echo running || echo lost))"
)
INSPECT = f"cd {HOME} && echo $(cat job 2>/dev/null || echo - -) $( {_STATUS} )"
ERRORS = (
    f'cd {HOME} && [ "$(cat status 2>/dev/null)" = 0 ] || (echo "--- $(hostname)"; tail -n 15 log)'
)


@dataclasses.dataclass(frozen=True)
class Job:
    """A run on a resource.

    Attributes:
      arguments: of launch/tpu.py on the workers.
      archive: file with the tree.
      keep: do not delete the resource at the end.
      attempts: how often the resource is created, or the program started.
      poll: seconds between checks.
      patience: failed gcloud calls in a row before giving up.
      most_wait: seconds for the resource to become ACTIVE, or to be deleted.
      tree: identifies the content of the archive (`digest`).
      token: file with the Hugging Face token for the workers, "" for none.
    """

    resource: Resource
    arguments: tuple[str, ...]
    archive: str
    keep: bool = False
    attempts: int = 20
    poll: float = 20.0
    patience: int = 15
    most_wait: float = 7 * 24 * 3600.0
    tree: str = "-"
    token: str = ""

    @property
    def program(self) -> str:
        """The command of the workers, in HOME."""
        token = f'HF_TOKEN_PATH="$HOME/{TOKEN}" ' if self.token else ""
        return f"{token}.venv/bin/python launch/tpu.py {shlex.join(self.arguments)}"

    def copies(self, node: str) -> list[list[str]]:
        """The gcloud commands that copy the tree, and the token, to a node."""
        files = {self.archive: f"{HOME}.tar.gz"} | ({self.token: TOKEN} if self.token else {})
        return [self.resource.copy(node, source, target) for source, target in files.items()]

    @property
    def command_id(self) -> str:
        """Identifies the arguments."""
        return hashlib.sha256(shlex.join(self.arguments).encode()).hexdigest()[:12]


class Busy(LaunchError):
    """The resource runs another command, which must not be interrupted."""


class Lost(Exception):
    """The resource is deleted or being deleted; a new one can replace it."""


def run(
    job: Job,
    call: gcloud.Run = gcloud.run,
    report: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Runs until the program ends and returns its exit status, or 1 after reporting a failure.

    Deletes the resource in any case, unless `keep` is set or gcloud fails to, which is reported.
    After Ctrl-C the program continues; the same command follows it again.
    """
    driver = _Driver(job, call, report, sleep)
    delete = command_line(job.resource.delete())
    try:
        status = driver.attempt_until_done()
    except KeyboardInterrupt:
        report(f"The program continues. Run the command again to follow it. To end it: {delete}")
        return START_AGAIN
    except Busy as error:
        report(f"launch: {error}")
        return WRONG_COMMAND
    except LaunchError as error:
        report(f"launch: {error}")
        status = FAILED
    if job.keep and driver.exists:
        report(f"Kept, and it costs until it is deleted: {delete}")
    else:
        driver.delete()
    return status


class _Driver:
    """Steps of a run, with the current state of the resource."""

    def __init__(
        self,
        job: Job,
        call: gcloud.Run,
        report: Callable[[str], None],
        sleep: Callable[[float], None],
    ):
        self.job, self.resource = job, job.resource
        self.call, self.report, self.sleep = call, report, sleep
        self.exists = False

    def attempt_until_done(self) -> int:
        for attempt in range(1, self.job.attempts + 1):
            try:
                self.obtain()
                return self.run_program()
            except Lost as lost:
                self.report(f"{lost} (attempt {attempt} of {self.job.attempts})")
                self.delete()
                if attempt < self.job.attempts:  # the cause may persist
                    self.sleep(self.backoff(attempt))
        raise LaunchError(
            f"{self.resource.name} was lost {self.job.attempts} times: "
            "try another zone, or without --spot"
        )

    def obtain(self) -> None:
        """Waits for an ACTIVE resource; creates it if there is none."""
        resource = self.resource  # the name is taken until a deletion has ended
        if self.wait_until(lambda state: state not in GOING) is None:
            result = self.call(resource.create())
            if result.code and "ALREADY_EXISTS" not in result.err:
                raise LaunchError(f"{resource.name} could not be created: {result.reason}")
            slices = f"{resource.num_slices} x {resource.accelerator}"
            self.report(f"{resource.name}: {slices} requested in {resource.zone}")
        self.exists = True
        state = self.wait_until(lambda state: state in ("ACTIVE", *ENDED))
        if state != "ACTIVE":
            raise Lost(f"{resource.name} is {state or 'deleted'} before it ran")
        self.report(f"{resource.name}: ACTIVE")

    def wait_until(self, is_reached: Callable[[str | None], bool]) -> str | None:
        """Waits for a state and returns it; reports each other one, once."""
        waited, reported = 0.0, None
        while not is_reached(state := self.state()):
            if waited >= self.job.most_wait:
                raise LaunchError(
                    f"{self.resource.name} is still {state} after {waited / 3600:.1f} hours: "
                    "use another --zone, or another --name"
                )
            if state != reported:
                self.report(f"{self.resource.name}: {state}")
                reported = state
            self.sleep(self.job.poll)
            waited += max(self.job.poll, 1.0)
        return state

    def state(self) -> str | None:
        """Returns the resource's state, None if it does not exist. Retries if gcloud fails."""

        def read(result: gcloud.Result) -> object:
            if not result.code:
                return re.fullmatch(r"[A-Z_]{3,40}", result.out.strip())
            return "NOT_FOUND" in result.err or "PERMISSION_DENIED" in result.err

        result = self.repeat(self.resource.describe(), read)
        if not result.code and read(result):
            return result.out.strip()
        if result.code and "NOT_FOUND" in result.err:
            self.exists = False
            return None
        reason = result.reason if result.code else f"it is {result.out[:200]!r}"
        raise LaunchError(f"the state of {self.resource.name} is unavailable: {reason}")

    def repeat(
        self, arguments: list[str], is_final: Callable[[gcloud.Result], object]
    ) -> gcloud.Result:
        """Repeats a command until its result is final, `patience` times."""
        for attempt in range(1, self.job.patience + 1):
            result = self.call(arguments)
            if is_final(result) or attempt == self.job.patience:
                break
            self.sleep(self.job.poll)
        return result

    def backoff(self, attempt: int) -> float:
        """Seconds before the next attempt: doubled each time, at most `MOST_BACKOFF`."""
        return min(self.job.poll * 2 ** min(attempt - 1, 20), MOST_BACKOFF)

    def run_program(self) -> int:
        """Starts the program, or follows it if it runs already; returns its exit status."""
        self.prepare()
        starts, offset, failures = 1, 0, 0
        while True:
            status, text = self.follow(offset)
            offset += len(text.encode(errors="surrogateescape"))
            if text.strip():
                self.report(_shown(text))
            failures = failures + 1 if status is None else 0
            is_stopped = status in (str(START_AGAIN), str(PEER_LOST), "lost")
            if is_stopped or failures >= self.job.patience:
                if self.state() != "ACTIVE":
                    raise Lost(f"{self.resource.name} was preempted")
                if failures:
                    raise Lost(f"{self.resource.name} is ACTIVE but does not answer")
                starts += 1
                if starts > self.job.attempts:
                    raise LaunchError(
                        f"the program was started {starts - 1} times and stopped each time, "
                        f"last with {status}"
                    )
                self.report(f"The program stopped ({status}): restarting from its last checkpoint.")
                self.start()
                offset = 0
            elif status is not None and status != "running":
                return self.finish(int(status))
            elif self.state() in ENDED:
                raise Lost(f"{self.resource.name} was preempted")
            self.sleep(self.job.poll)

    def prepare(self) -> None:
        """Copies, installs and starts, unless this command runs there, or has finished there."""
        command_id, tree, status = self.inspect()
        is_same = command_id == self.job.command_id
        if status == "running" and not is_same:
            raise Busy(
                f"{self.resource.name} runs another command: use another --name, wait for it, "
                f"or end it: {command_line(self.resource.delete())}"
            )
        # A program that finished for another command or commit does not count.
        if status == "running" or (status == "0" and is_same and tree == self.job.tree):
            self.report("Following the program that was started before.")
            if tree != self.job.tree:
                self.report("It was started from another commit than the one checked out here.")
            return
        for node in self.resource.nodes:
            for copy in self.job.copies(node):
                self.retry(copy, f"copying to {node}")
        self.on_all(SETUP, "installing")
        self.start()

    def start(self) -> None:
        secret = f"{SECRET}={secrets.token_hex(16)} "  # the same on all workers, new at each start
        inner = shlex.quote(f"{secret}{self.job.program} >log 2>&1; echo $? >status")
        self.on_all(
            f"cd {HOME} && rm -f status && echo {self.job.command_id} {self.job.tree} >job"
            f" && (setsid nohup bash -c {inner} >/dev/null 2>&1 & echo $! >pid)",
            "starting",
        )

    def inspect(self) -> tuple[str, str, str]:
        """Returns (command_id, tree, status) of the program on the workers, "-" if unknown."""
        inspect = self.resource.ssh(self.resource.nodes[0], INSPECT, "0")
        # Once is not enough: a running program must not be overwritten.
        result = self.repeat(inspect, lambda result: not result.code or self.state() in ENDED)
        if result.code:
            return "-", "-", "lost"
        command_id, tree, status = (result.out.split() + ["-"] * 3)[:3]
        return command_id, tree, status

    def follow(self, offset: int) -> tuple[str | None, str]:
        """Returns (status, or None if ssh failed; the log of worker 0 from byte `offset`)."""
        command = f"cd {HOME} && tail -c +{offset + 1} log; echo; echo {MARK} $( {_STATUS} )"
        result = self.call(self.resource.ssh(self.resource.nodes[0], command, "0"))
        text, mark, status = result.out.rpartition(f"\n{MARK} ")
        status, is_whole = status.strip(), bool(mark) and not result.code
        is_status = re.fullmatch(r"running|lost|[0-9]{1,3}", status)
        return (status, text) if is_whole and is_status else (None, "")

    def finish(self, status: int) -> int:
        """Reports the end of the program, with the workers' errors; returns its exit status."""
        if not status:
            self.report("Finished.")
            return status
        self.report(f"The program failed with exit status {status}. The ends of its logs:")
        for node in self.resource.nodes:
            self.report(_shown(self.call(self.resource.ssh(node, ERRORS, "all")).out))
        return status

    def on_all(self, command: str, activity: str) -> None:
        for node in self.resource.nodes:
            self.retry(self.resource.ssh(node, command, "all"), f"{activity} on {node}")

    def retry(self, arguments: list[str], activity: str) -> None:
        """Repeats a command until it succeeds. Raises Lost if the resource is preempted."""
        for _ in range(self.job.patience):
            result = self.call(arguments)
            if not result.code:
                return
            if self.state() != "ACTIVE":
                raise Lost(f"{self.resource.name} was preempted while {activity}")
            self.sleep(self.job.poll)
        raise LaunchError(f"{activity} failed {self.job.patience} times: {result.reason}")

    def is_deleted(self, result: gcloud.Result) -> bool:
        """Whether a deletion has succeeded, or the resource is deleted anyway."""
        if result.code and "NOT_FOUND" not in result.err:
            result = self.call(self.resource.describe())
            return result.out.strip() == "DELETING" or "NOT_FOUND" in result.err
        return True

    def delete(self) -> None:
        """Deletes the resource in any state; reports a failure."""
        result = self.repeat(self.resource.delete(), self.is_deleted)
        if not self.is_deleted(result):
            self.report(
                f"{self.resource.name} could not be deleted and may cost: {result.reason}. "
                f"Delete it: {command_line(self.resource.delete())}"
            )
            return
        self.exists = False


def _shown(text: str) -> str:
    """Returns text of a log for the terminal: undecodable bytes become U+FFFD."""
    return text.rstrip("\n").encode(errors="surrogateescape").decode(errors="replace")


def archive(root: Path, config_file: Path) -> str:
    """Writes a .tar.gz of the checked-out commit, with the current file of the experiment.

    Raises LaunchError outside a git repository.
    """
    target = Path(tempfile.mkdtemp(prefix="grm_jax_")) / f"{HOME}.tar.gz"
    extra = []
    if config_file.is_relative_to(root):
        folder = config_file.parent.relative_to(root)
        extra = [f"--prefix={folder}/", f"--add-file={config_file}", "--prefix="]
    command = ["git", "archive", "--format=tar.gz", "-o", str(target), *extra, "HEAD"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise LaunchError(f"git cannot archive {root}: {done.stderr.strip()}. Use a git clone")
    return str(target)


def token_file() -> str:
    """Writes this machine's Hugging Face token to a file that only the user can read.

    Raises LaunchError without a token.
    """
    from huggingface_hub import get_token

    if not (token := get_token()):
        raise LaunchError("--send_hf_token: no token here: run `hf auth login` or set HF_TOKEN")
    path = Path(tempfile.mkdtemp(prefix="grm_jax_")) / TOKEN  # the folder has mode 700
    path.touch(mode=0o600)
    path.write_text(token)
    return str(path)


def digest(path: str) -> str:
    """Identifies an archive by its content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def commands(job: Job) -> list[str]:
    """The shell lines of a run without failures, in order (--dry_run)."""
    r = job.resource
    program = f"cd {HOME} && {job.program}"
    lines = [r.describe(), r.create(), r.describe()]
    lines += [copy for node in r.nodes for copy in job.copies(node)]
    lines += [r.ssh(node, SETUP, "all") for node in r.nodes]
    lines += [r.ssh(node, program, "all") for node in r.nodes]
    lines.append(r.ssh(r.nodes[0], f"cd {HOME} && tail -n +1 log", "0"))
    return [command_line(line) for line in lines + ([] if job.keep else [r.delete()])]
