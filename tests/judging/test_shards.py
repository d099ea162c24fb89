"""`--shard I/N` and `grm merge`: merged shards equal the single run; every other set is refused."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zlib

import pytest
from fake_judge import fake_judge, well_formed
from test_run import HERE, ROWS, loaded, write_rows

from grm_jax import run_store, storage
from grm_jax.evals import merge
from grm_jax.judging import shards
from grm_jax.judging.options import Options
from grm_jax.judging.run import RunConfig, judge_file
from grm_jax.judging.shards import Shard

COUNT = 3
BAD = {3: b'{"query": \n', 7: b"\xff\xfe\n"}


def noisy(responses, key):
    return well_formed([(key[0] >> i) % 10 + 1 for i in range(len(responses))])


def judge(source, output, shard=None, existing="refuse", write=noisy, count=COUNT, **options):
    shard = shard and Shard(shard, count)
    config = RunConfig(existing, chunk=4, progress=False, shard=shard)
    return judge_file(fake_judge(write), source, output, Options(k=2, **options), config)


def grm_merge(*argv):
    return merge.main(list(map(str, argv)))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A folder with IN, the output of the single run, and the shards of `all.jsonl`."""
    folder = tmp_path_factory.mktemp("judged")
    source = write_rows(folder / "in.jsonl", ROWS[:20], BAD)
    judge(source, folder / "single.jsonl")
    for i in range(COUNT):
        judge(source, folder / "all.jsonl", i + 1)
    return folder


@pytest.fixture
def parts(judged, tmp_path):
    """Copies of the shards, which a test may damage."""
    for path in shards.find([judged]):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return sorted(tmp_path.iterdir())


def refusal(capsys, *argv):
    """Returns the one line of a refused merge, which writes nothing."""
    out = argv[0].parent / "merged.jsonl"
    capsys.readouterr()
    assert grm_merge(*argv, "--out", out) == 2
    assert not out.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_shard_has_every_nth_row_with_its_number_in_the_whole_run(judged):
    names = [path.name for path in shards.find([judged])]
    assert names == [f"all-0000{i}-of-00003.jsonl" for i in (1, 2, 3)]
    with run_store.RunStore(
        judged / names[1], shards.read_identity(judged / names[1]), key="line"
    ) as store:
        assert sorted(store) == list(range(2, 23, 3))
        assert store.identity["shard"] == "2/3" and store.identity["of_rows"] == 22


def test_merged_shards_equal_the_single_run_byte_for_byte(judged, tmp_path, capsys):
    out = tmp_path / "merged.jsonl"
    assert grm_merge(judged / "all-*-of-00003.jsonl", "--out", out) == 1  # it has error rows
    assert out.read_bytes() == (judged / "single.jsonl").read_bytes()
    error = capsys.readouterr().err
    assert "merged.jsonl: 22 rows, 2 of them errors" in error and "parse rate 100.0%" in error
    assert grm_merge(judged, "--out", out) == 2
    assert "merged.jsonl exists: pass --overwrite to replace it" in capsys.readouterr().err
    out.write_text("")
    assert grm_merge(judged, "--out", out, "--overwrite") == 1
    assert out.read_bytes() == (judged / "single.jsonl").read_bytes()


def test_more_shards_than_rows_merge_as_well(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", ROWS[:2])
    judge(source, tmp_path / "single.jsonl")
    for i in range(4):
        judge(source, tmp_path / "all.jsonl", i + 1, count=4)
    assert grm_merge(tmp_path, "--out", tmp_path / "all.jsonl") == 0
    assert (tmp_path / "all.jsonl").read_bytes() == (tmp_path / "single.jsonl").read_bytes()


def test_shards_in_a_bucket_merge_into_the_bucket(judged, tmp_path, monkeypatch):
    """A bucket's address, served by a local folder."""
    bucket = storage.epath.Path(tmp_path / "bucket")
    remote = lambda path: "bucket" in str(path)  # noqa: E731
    local = lambda path: bucket / str(path).removeprefix("gs://bucket/")  # noqa: E731
    for module in (storage, run_store, shards, merge):
        monkeypatch.setattr(module, "as_path", local)
    for module in (storage, run_store, merge):
        monkeypatch.setattr(module, "is_remote", remote)
    (tmp_path / "bucket").mkdir()
    for i in range(COUNT):
        judge(judged / "in.jsonl", "gs://bucket/all.jsonl", i + 1)
    shard = tmp_path / "bucket" / "all-00002-of-00003.jsonl"
    assert [part.name for part in sorted(shard.iterdir())][:2] == ["000000.jsonl", "000001.jsonl"]
    assert grm_merge("gs://bucket/all-*", "--out", "gs://bucket/merged.jsonl") == 1
    merged = (tmp_path / "bucket" / "merged.jsonl").read_bytes()
    assert merged == (judged / "single.jsonl").read_bytes()


def test_a_killed_shard_resumes_and_the_merge_equals_the_single_run(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", ROWS[:60])
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "JAX_PLATFORMS": "cpu"}

    def run(output, *more):
        return subprocess.Popen(
            [sys.executable, HERE / "slow_run.py", source, output, *more], env=environment
        )

    slow = run(tmp_path / "all.jsonl", "0.2", "2/3")
    path = tmp_path / "all-00002-of-00003.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and slow.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") > 3:
            break
        time.sleep(0.01)
    slow.send_signal(signal.SIGKILL)
    assert slow.wait() == -signal.SIGKILL
    before = path.read_bytes()
    rest = [run(tmp_path / "all.jsonl", "0", f"{i}/3") for i in (1, 2, 3)]
    rest.append(run(tmp_path / "single.jsonl", "0"))
    assert [process.wait() for process in rest] == [0] * 4
    kept = before[: before.rindex(b"\n") + 1]
    assert path.read_bytes().startswith(kept) and kept.count(b"\n") > 3
    assert grm_merge(tmp_path, "--out", tmp_path / "all.jsonl") == 0
    assert (tmp_path / "all.jsonl").read_bytes() == (tmp_path / "single.jsonl").read_bytes()


def test_a_finished_shard_is_refused_resumed_or_judged_again(judged, tmp_path):
    source, output = judged / "in.jsonl", tmp_path / "all.jsonl"
    judge(source, output, 1)
    before = (tmp_path / "all-00001-of-00003.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match="all-00001-of-00003.jsonl exists: pass --resume"):
        judge(source, output, 1)
    assert judge(source, output, 1, "resume").resumed == 8
    assert judge(source, output, 1, "overwrite").resumed == 0
    assert (tmp_path / "all-00001-of-00003.jsonl").read_bytes() == before
    with pytest.raises(run_store.IdentityMismatch, match="begun with seed = 0, now it is 1"):
        judge(source, output, 1, "resume", seed=1)


# ---------------------------------------------------------------- refused sets


def test_a_missing_shard_is_refused(parts, capsys):
    assert "shard 2/3 is missing beside" in refusal(capsys, parts[0], parts[2])
    assert "shard 2/3 and 1 more are missing beside" in refusal(capsys, parts[0])


def test_a_shard_that_is_not_there_is_refused(parts, capsys):
    parts[1].unlink()
    assert "no shard " in refusal(capsys, *parts)


def test_an_incomplete_shard_is_refused(parts, capsys):
    lines = parts[1].read_bytes().splitlines(keepends=True)
    parts[1].write_bytes(b"".join(lines[:-2]) + lines[-1][:9])  # torn, as after a kill
    error = refusal(capsys, *parts)
    assert re.search(r"00002-of-00003.jsonl lacks 2 of 7 rows, the first is \d+: run the", error)


def test_a_shard_that_was_given_twice_is_refused(parts, capsys):
    copy = parts[1].with_name("copy-00002-of-00003.jsonl")
    copy.write_bytes(parts[1].read_bytes())
    assert "are both shard 2/3: give one" in refusal(capsys, *parts, copy)


@pytest.mark.parametrize(
    "options, named", [({"seed": 1}, "seed = 1"), ({"temperature": 0.7}, "temperature = 0.7")]
)
def test_a_shard_of_other_settings_is_refused(judged, parts, capsys, options, named):
    parts[1].unlink()
    judge(judged / "in.jsonl", parts[1].with_name("all.jsonl"), 2, **options)
    error = refusal(capsys, *parts)
    assert f"00002-of-00003.jsonl was judged with {named}, but" in error


def test_a_shard_of_another_input_is_refused(parts, capsys):
    source = write_rows(parts[0].parent / "in.jsonl", ROWS[1:23])
    parts[1].unlink()
    judge(source, parts[1].with_name("all.jsonl"), 2)
    assert "was judged with input = " in refusal(capsys, *parts)


def test_a_shard_of_another_count_is_refused(judged, parts, capsys):
    judge(judged / "in.jsonl", parts[1].with_name("all.jsonl"), 2, count=4)
    other = parts[1].with_name("all-00002-of-00004.jsonl")
    assert "is shard 2/4, but" in refusal(capsys, parts[0], other, parts[2])


def test_every_damaged_line_of_a_shard_is_named(parts, capsys):
    whole = parts[1].read_bytes()
    lines = whole.splitlines(keepends=True)
    for number in (0, 1, len(lines) - 1):
        line = lines[number]
        changed = line[:20] + bytes([line[20] ^ 1]) + line[21:]
        parts[1].write_bytes(whole.replace(line, changed))
        error = refusal(capsys, *parts)
        where = f"line {number + 1} is damaged" if number else "does not begin with the settings"
        assert where in error


def test_a_row_of_another_shard_is_refused(parts, capsys):
    foreign = parts[0].read_bytes().splitlines(keepends=True)[-1]
    parts[1].write_bytes(parts[1].read_bytes() + foreign)
    assert "is damaged: row 22 is not one of shard 2/3" in refusal(capsys, *parts)


def test_a_row_with_a_wrong_value_is_refused(parts, capsys):
    *lines, last = parts[1].read_bytes().splitlines(keepends=True)
    text = last.rpartition(b"\t")[0].replace(b'"best": ', b'"best": 1', 1)
    text = text.replace(b'"best": 1null', b'"best": 1')
    lines.append(b"%b\t%08x\n" % (text, zlib.crc32(text)))
    parts[1].write_bytes(b"".join(lines))
    assert "has best = 1" in refusal(capsys, *parts)


def test_a_shard_that_is_being_written_is_refused(parts, capsys):
    header = shards.read_identity(parts[1])
    with run_store.RunStore(parts[1], header, key="line"):
        assert "is being written by another run" in refusal(capsys, *parts)


def test_other_files_are_refused(judged, parts, capsys):
    error = refusal(capsys, parts[0], judged / "single.jsonl")
    assert "single.jsonl does not begin with the settings of a shard" in error
    folder = parts[0].parent / "empty"
    folder.mkdir()
    assert "has no shards" in refusal(capsys, folder)
    copy = parts[0].with_name("other-00001-of-00003.jsonl")
    copy.write_bytes(parts[0].read_bytes())
    assert "has shards of all and of other" in refusal(capsys, parts[0].parent / ".")
    assert "no shard matches" in refusal(capsys, parts[0].parent / "x-*")
    assert "--data and --against are of shards of grm eval" in refusal(
        capsys, *parts, "--data", folder
    )
    capsys.readouterr()
    assert grm_merge(*parts, "--out", parts[0]) == 2
    assert "is the input" in capsys.readouterr().err


# ---------------------------------------------------------------- the command line


def test_the_command_judges_a_shard_and_names_the_merge(command, tmp_path, capsys):
    source = write_rows(tmp_path / "in.jsonl", ROWS[:5])
    assert command(source, tmp_path / "all.jsonl", "--shard", "2/2") == 0
    error = capsys.readouterr().err
    assert "all-00002-of-00002.jsonl: 2 rows of shard 2/2" in error
    assert command(source, tmp_path / "all.jsonl", "--shard", "1/2") == 0
    merge_command = shlex.split(capsys.readouterr().err.rpartition("grm merge ")[2])
    assert grm_merge(*merge_command) == 0
    assert command(source, tmp_path / "single.jsonl") == 0
    assert loaded(tmp_path / "single.jsonl") == loaded(tmp_path / "all.jsonl")


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3", "1/100000"])
def test_a_wrong_shard_is_refused(command, tmp_path, capsys, text):
    source = write_rows(tmp_path / "in.jsonl", ROWS[:2])
    assert command(source, tmp_path / "out.jsonl", f"--shard={text}") == 2
    error = capsys.readouterr().err
    assert f"--shard {text}: write I/N with I from 1 to N, such as 1/8" in error


def test_a_shard_needs_files_and_grm_judge_hints_at_what_it_resumes(command, tmp_path, capsys):
    source = write_rows(tmp_path / "in.jsonl", ROWS[:2])
    assert command(source, "-", "--shard", "1/2") == 2
    assert "--shard needs files as IN and OUT" in capsys.readouterr().err
    assert command(source, tmp_path / "out.jsonl", "--shard", "1/2") == 0
    assert command(source, tmp_path / "out.jsonl", "--shard", "1/2") == 2
    assert "out-00001-of-00002.jsonl exists: pass --resume" in capsys.readouterr().err
    assert command(source, tmp_path / "out.jsonl", "--shard", "1/2", "--resume") == 0
