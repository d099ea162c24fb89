"""A fake `gcloud` program that plays a scenario; the file $FAKE_GCLOUD_STATE is its memory.

A scenario has
  states   one list per create: each describe returns the next state, the last one repeats
  program  one list of statuses per start: each read of the log returns the next one
  fails    errors of create, describe, ssh, scp, delete and bucket, one per call ("" succeeds)

Every command line is checked against the documented syntax; errors are listed in `violations`.
"""

import json
import os
import re
import sys

GLOBAL_FLAGS = {"--project", "--quiet", "--format"}
# command -> (number of positional arguments, required flags, optional flags), from gcloud --help.
SYNTAX = {
    "compute tpus queued-resources create": (
        1, {"--zone", "--runtime-version", "--accelerator-type"},
        {"--node-id", "--node-count", "--node-prefix", "--async", "--spot", "--guaranteed",
         "--reserved", "--network", "--labels"},
    ),
    "compute tpus queued-resources describe": (1, {"--zone"}, set()),
    "compute tpus queued-resources delete": (1, {"--zone"}, {"--async", "--force"}),
    "compute tpus tpu-vm ssh": (
        1, {"--zone", "--command"}, {"--worker", "--internal-ip", "--ssh-flag", "--plain"},
    ),
    "compute tpus tpu-vm scp": (
        2, {"--zone"}, {"--worker", "--recurse", "--compress", "--internal-ip"},
    ),
    "storage buckets describe": (1, set(), set()),
}  # fmt: skip
SWITCHES = {
    "--async", "--spot", "--force", "--quiet", "--guaranteed", "--reserved", "--recurse",
    "--compress", "--internal-ip", "--plain",
}  # fmt: skip


def parse(argv):
    """Returns (command, positional, flags), or an error message."""
    command = next((c for c in SYNTAX if argv[: len(c.split())] == c.split()), None)
    if command is None:
        return f"no such command: {argv[:4]}"
    positional_count, required, optional = SYNTAX[command]
    positional, flags = [], {}
    for argument in argv[len(command.split()) :]:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            if name not in required | optional | GLOBAL_FLAGS:
                return f"unrecognized arguments: {argument}"
            if bool(equals) == (name in SWITCHES):
                return f"argument {name}: value {'not taken' if equals else 'missing'}"
            flags[name] = value
        else:
            positional.append(argument)
    if len(positional) != positional_count:
        return f"{command} takes {positional_count} positional arguments: {positional}"
    if missing := required - set(flags):
        return f"argument {sorted(missing)}: must be specified"
    if command.endswith("create") and ("--node-id" in flags) == ("--node-count" in flags):
        return "exactly one of --node-id and --node-count must be specified"
    if command.endswith("create") and not re.fullmatch(
        r"[a-z][a-z0-9-]{0,61}[a-z0-9]", positional[0]
    ):
        return f"invalid resource name {positional[0]!r}"
    return command, positional, flags


def respond(memory, argv):
    """Returns (exit status, stdout, stderr)."""
    parsed = parse(argv)
    if isinstance(parsed, str):
        memory["violations"].append(parsed)
        return 2, "", f"ERROR: (gcloud) {parsed}"
    command, positional, flags = parsed
    action = command.split()[-1] if command.startswith("compute") else "bucket"
    memory["calls"].append(action)
    fails = memory["fails"].get(action, [])
    if fails and (text := fails.pop(0)):
        return 1, "", text
    exists = memory["exists"]
    if action == "create":
        if exists:
            return 1, "", "ERROR: ALREADY_EXISTS: the queued resource exists"
        memory.update(exists=True, left=list(memory["states"].pop(0)))
        return 0, "", ""
    if action == "delete":
        memory["exists"] = False
        return (0, "", "") if exists else (1, "", "ERROR: NOT_FOUND: no such queued resource")
    if action == "describe":
        if not exists:
            return 1, "", "ERROR: NOT_FOUND: no such queued resource"
        memory["now"] = memory["left"].pop(0) if len(memory["left"]) > 1 else memory["left"][0]
        if memory["now"] != "ACTIVE":
            memory["started"] = False
        return 0, memory["now"] + "\n", ""
    if action in ("ssh", "scp"):
        if memory["now"] != "ACTIVE":
            error = "ERROR: (gcloud) [/usr/bin/ssh] exited with return code [255]."
            return 255, "", error
        return (0, "", "") if action == "scp" else ssh(memory, flags["--command"])
    return 0, "bucket\n", ""


def ssh(memory, command):
    if "setsid" in command:
        memory.update(started=True, status=list(memory["program"].pop(0)))
        memory["job"] = re.search(r"echo (\S+ \S+) >job", command).group(1)
        return 0, "", ""
    if "tail -c +" in command:
        offset = int(re.search(r"tail -c \+(\d+)", command).group(1)) - 1
        status = memory["status"].pop(0) if len(memory["status"]) > 1 else memory["status"][0]
        memory["log"] += "a line of the log\n"
        return 0, memory["log"][offset:] + f"\nGRM_STATUS {status}\n", ""
    if "tail -n 15 log" in command:
        return 0, "--- host-3\nValueError: the reason\n", ""
    if "kill -0" in command:
        status = {True: "running", False: "lost"}.get(memory["started"], memory["started"])
        return 0, f"{memory['job'] or '- -'} {status}\n", ""
    return 0, "", ""  # installing


if __name__ == "__main__":
    path = os.environ["FAKE_GCLOUD_STATE"]
    with open(path) as file:
        state = json.load(file)
    status, out, err = respond(state, sys.argv[1:])
    with open(path, "w") as file:
        json.dump(state, file)
    sys.stdout.write(out)
    sys.stderr.write(err)
    sys.exit(status)
