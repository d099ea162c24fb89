"""A run on a queued TPU resource, from a laptop: create, wait, copy, install, run, follow, and start again after a preemption.

    create -> WAITING_FOR_RESOURCES ... PROVISIONING ... ACTIVE -> copy, install, start -> follow worker 0's log -> delete
                 FAILED, SUSPENDED: delete, create again              SUSPENDING, SUSPENDED, lost: the same; the run goes on from the bucket

The program on the workers runs detached and leaves its exit status in a file, so an ssh that drops is only called again.
"""

import dataclasses
import hashlib
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from launch.cluster import gcloud
from launch.cluster.gcloud import Resource
from launch.errors import FAILED, PEER_LOST, START_AGAIN, WRONG_COMMAND, LaunchError

HOME = "grm_jax"
MARK = "GRM_STATUS"
PYTHON = "command -v python3.11 || (sudo apt-get update -q && sudo apt-get install -q -y python3.11 python3.11-venv make)"
SETUP = f"rm -rf {HOME} && mkdir {HOME} && tar -xzf {HOME}.tar.gz -C {HOME} && ({PYTHON}) >/dev/null && cd {HOME} && make venv"
STATUS = f"cd {HOME} && (cat status 2>/dev/null || (kill -0 $(cat pid) 2>/dev/null && echo running || echo lost))"
THERE = f"cd {HOME} && echo $(cat job 2>/dev/null || echo - -) $( {STATUS.partition(' && ')[2]} )"
ERRORS = (
    f'cd {HOME} && [ "$(cat status 2>/dev/null)" = 0 ] || (echo "--- $(hostname)"; tail -n 15 log)'
)


@dataclasses.dataclass(frozen=True)
class Job:
    """words: the arguments of launch/tpu.py on the workers. attempts: how many times a resource is created. poll: seconds between looks.

    tree: names what is in the archive (`digest`).
    """

    resource: Resource
    words: tuple[str, ...]
    archive: str
    keep: bool = False
    attempts: int = 20
    poll: float = 20.0
    patience: int = 15
    tree: str = "-"

    @property
    def command(self) -> str:
        """Names the words."""
        return hashlib.sha256(shlex.join(self.words).encode()).hexdigest()[:12]


class Busy(LaunchError):
    """The resource runs something else, which is not ours to end."""


class Lost(Exception):
    """The resource is gone or will go; a new one may take its place."""


def run(
    job: Job,
    call: gcloud.Run = gcloud.run,
    say: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Until the run has ended. Returns its exit status; 1 if it could not be brought to an end, with the reason said.

    Whatever happens, no resource is left behind, unless `keep` asks for it or gcloud cannot delete it, which is said with the command.
    An interrupt (Ctrl-C) leaves the run on its workers; the same command follows it again.
    """
    driver = _Driver(job, call, say, sleep)
    try:
        status = driver.attempt_until_done()
    except KeyboardInterrupt:
        say(
            f"The run goes on without this terminal. To follow it again: the same command. To end it: {gcloud.command_line(job.resource.delete())}"
        )
        return START_AGAIN
    except Busy as error:
        say(f"launch: {error}")
        return WRONG_COMMAND
    except LaunchError as error:
        say(f"launch: {error}")
        status = FAILED
    if job.keep and driver.exists:
        say(
            f"Kept, as asked, and it costs until it is deleted: {gcloud.command_line(job.resource.delete())}"
        )
    else:
        driver.delete()
    return status


class _Driver:
    def __init__(
        self, job: Job, call: gcloud.Run, say: Callable[[str], None], sleep: Callable[[float], None]
    ):
        self.job, self.resource, self.call, self.say, self.sleep = (
            job,
            job.resource,
            call,
            say,
            sleep,
        )
        self.exists = False

    def attempt_until_done(self) -> int:
        for attempt in range(1, self.job.attempts + 1):
            try:
                self.obtain()
                return self.run_program()
            except Lost as lost:
                self.say(f"{lost} (attempt {attempt} of {self.job.attempts})")
                self.delete()
        raise LaunchError(
            f"{self.resource.name} was lost {self.job.attempts} times: try another zone, or without --spot"
        )

    def obtain(self) -> None:
        """An ACTIVE resource: the one that is there already, or a new one."""
        state = self.state()
        if state is None:
            answer = self.call(self.resource.create())
            if answer.code and "ALREADY_EXISTS" not in answer.err:
                raise LaunchError(f"{self.resource.name} could not be created: {answer.reason}")
            self.say(
                f"{self.resource.name}: {self.resource.num_slices} x {self.resource.accelerator} requested in {self.resource.zone}"
            )
        self.exists = True
        told = None
        while (state := self.state()) != "ACTIVE":
            if state in (None, "FAILED", "SUSPENDING", "SUSPENDED", "DELETING"):
                raise Lost(f"{self.resource.name} is {state or 'gone'} before it ran")
            if state != told:
                self.say(f"{self.resource.name}: {state}")
                told = state
            self.sleep(self.job.poll)
        self.say(f"{self.resource.name}: ACTIVE")

    def state(self) -> str | None:
        """The resource's state, None if there is no such resource. A gcloud that fails for another reason is asked again."""
        reason = ""
        for _ in range(self.job.patience):
            answer = self.call(self.resource.describe())
            if not answer.code:
                return answer.out.strip()
            if "NOT_FOUND" in answer.err:
                self.exists = False
                return None
            reason = answer.reason
            if "PERMISSION_DENIED" in reason:
                break
            self.sleep(self.job.poll)
        raise LaunchError(f"the state of {self.resource.name} cannot be read: {reason}")

    def run_program(self) -> int:
        command, tree, status = self.there()
        ours = command == self.job.command
        if status == "running" and not ours:
            raise Busy(
                f"{self.resource.name} runs another command: give another --name, wait until it has ended, or end it: "
                f"{gcloud.command_line(self.resource.delete())}"
            )
        # What has ended under another command or commit is not what is asked for now.
        if status == "running" or (status == "0" and ours and tree == self.job.tree):
            self.say("The program is there already: following it.")
            if tree != self.job.tree:
                self.say(
                    "It was started from another commit than the one that is checked out here."
                )
        else:
            for node in self.resource.nodes:
                self.insist(
                    self.resource.copy(node, self.job.archive, f"{HOME}.tar.gz"),
                    f"copying to {node}",
                )
            self.on_all(SETUP, "installing")
            self.start()
        starts, offset, silent = 1, 0, 0
        while True:
            status, text = self.follow(offset)
            offset += len(text.encode())
            if text.strip():
                self.say(text.rstrip("\n"))
            silent = silent + 1 if status is None else 0
            if status in (str(START_AGAIN), str(PEER_LOST), "lost") or silent >= self.job.patience:
                if self.state() != "ACTIVE":
                    raise Lost(f"{self.resource.name} was taken away")
                if silent:
                    raise Lost(f"{self.resource.name} is ACTIVE but does not answer")
                starts += 1
                if starts > self.job.attempts:
                    raise LaunchError(
                        f"the program was started {starts - 1} times and stopped each time, last with {status}"
                    )
                self.say(
                    f"The program stopped ({status}): starting it again from its last checkpoint."
                )
                self.start()
                offset = 0
            elif status is not None and status != "running":
                return self.finished(int(status))
            elif self.state() in (None, "SUSPENDING", "SUSPENDED", "FAILED"):
                raise Lost(f"{self.resource.name} was taken away")
            self.sleep(self.job.poll)

    def start(self) -> None:
        words = shlex.join(self.job.words)
        inner = shlex.quote(f".venv/bin/python launch/tpu.py {words} >log 2>&1; echo $? >status")
        self.on_all(
            f"cd {HOME} && rm -f status && echo {self.job.command} {self.job.tree} >job"
            f" && (setsid nohup bash -c {inner} >/dev/null 2>&1 & echo $! >pid)",
            "starting",
        )

    def there(self) -> tuple[str, str, str]:
        """(command, tree, status) of the program on the workers: `Job.command` and `Job.tree` of the job that started it, "-" for none."""
        answer = self.call(self.resource.ssh(self.resource.nodes[0], THERE, "0"))
        command, tree, status = (
            (answer.out.split() + ["-"] * 3)[:3] if not answer.code else ("-", "-", "lost")
        )
        return command, tree, status

    def follow(self, offset: int) -> tuple[str | None, str]:
        """(status or None if ssh failed, what worker 0 has written since `offset` bytes)."""
        command = f"cd {HOME} && tail -c +{offset + 1} log; echo; echo {MARK} $( {STATUS.partition(' && ')[2]} )"
        answer = self.call(self.resource.ssh(self.resource.nodes[0], command, "0"))
        text, mark, status = answer.out.rpartition(f"\n{MARK} ")
        return (status.strip(), text) if mark and not answer.code else (None, "")

    def finished(self, status: int) -> int:
        if status:
            self.say(f"The program failed with exit status {status}. The ends of its logs:")
            for node in self.resource.nodes:
                self.say(self.call(self.resource.ssh(node, ERRORS, "all")).out.rstrip("\n"))
        else:
            self.say("Finished.")
        return status

    def on_all(self, command: str, what: str) -> None:
        for node in self.resource.nodes:
            self.insist(self.resource.ssh(node, command, "all"), f"{what} on {node}")

    def insist(self, arguments: list[str], what: str) -> None:
        """Runs a command that may be repeated until it succeeds. Raises Lost if the resource goes away meanwhile."""
        reason = ""
        for _ in range(self.job.patience):
            answer = self.call(arguments)
            if not answer.code:
                return
            reason = answer.reason
            if self.state() != "ACTIVE":
                raise Lost(f"{self.resource.name} was taken away while {what}")
            self.sleep(self.job.poll)
        raise LaunchError(f"{what} failed {self.job.patience} times: {reason}")

    def delete(self) -> None:
        """Deletes the resource, whatever its state; says so if it cannot."""
        reason = ""
        for _ in range(self.job.patience):
            answer = self.call(self.resource.delete())
            if not answer.code or "NOT_FOUND" in answer.err:
                self.exists = False
                return
            reason = answer.reason
            self.sleep(self.job.poll)
        self.say(
            f"{self.resource.name} could not be deleted and may cost: {reason}. Delete it: {gcloud.command_line(self.resource.delete())}"
        )


def archive(root: Path, config_file: Path) -> str:
    """A .tar.gz of the commit that is checked out, with the experiment's file as it is now. Raises LaunchError outside a repository."""
    target = Path(tempfile.mkdtemp(prefix="grm_jax_")) / f"{HOME}.tar.gz"
    extra = []
    if config_file.is_relative_to(root):
        folder = config_file.parent.relative_to(root)
        extra = [f"--prefix={folder}/", f"--add-file={config_file}", "--prefix="]
    done = subprocess.run(
        ["git", "archive", "--format=tar.gz", "-o", str(target), *extra, "HEAD"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise LaunchError(
            f"the tree at {root} cannot be archived: {done.stderr.strip()}. Start from a git clone"
        )
    return str(target)


def digest(path: str) -> str:
    """Names an archive: the same for the same commit and experiment."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def commands(job: Job) -> list[str]:
    """What a run that meets no trouble would call, in order, as one would type it (--dry_run)."""
    r, first = job.resource, job.resource.nodes[0]
    lines = [r.describe(), r.create(), r.describe()]
    lines += [r.copy(node, job.archive, f"{HOME}.tar.gz") for node in r.nodes]
    lines += [r.ssh(node, SETUP, "all") for node in r.nodes]
    program = f"cd {HOME} && .venv/bin/python launch/tpu.py {shlex.join(job.words)}"
    lines += [r.ssh(node, program, "all") for node in r.nodes]
    lines += [
        r.ssh(first, f"cd {HOME} && tail -n +1 log", "0"),
        *([] if job.keep else [r.delete()]),
    ]
    return [gcloud.command_line(line) for line in lines]
