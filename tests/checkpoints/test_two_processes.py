"""Two processes of one job: each reads only its own shards, and both save the folder together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ports
from toys import GEMMA2, raw, tensors, write_folder

HERE = Path(__file__).parent


def test_each_process_reads_its_own_shards(tmp_path):
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2))
    port = ports.free_pair()
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    command = [sys.executable, str(HERE / "one_of_two.py")]
    jobs = [
        subprocess.Popen(
            [*command, str(i), str(port), str(source), str(tmp_path / "out")],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
        )
        for i in range(2)
    ]
    reports = [json.loads(job.communicate(timeout=480)[0].splitlines()[-1]) for job in jobs]
    for report in reports:
        assert report["equal"]
        # fsdp shards every matrix over the two processes; norms are replicated.
        assert report["read"] <= 0.55 * report["file"]
    assert raw(tmp_path / "out") == raw(source)
