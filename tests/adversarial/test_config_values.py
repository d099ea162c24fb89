"""Odd values of every field of the shipped experiments: refused by name, or in the range."""

import dataclasses
import math

import fuzz
import pytest
from ml_collections import ConfigDict

from grm_jax.config_fields import field_names, set_field
from grm_jax.hosts import distributed
from grm_jax.models.config import TransformerConfig
from grm_jax.sharding import make_mesh
from grm_jax.training import config_check, loop, main, rft_samplers
from grm_jax.training.config_rules import SECTIONS
from grm_jax.training.errors import TrainingError
from launch import checks, config as configs, tpu
from launch.errors import LaunchError

SPECS = (
    "spct_27b.py", "spct_2b.py", "spct_9b.py", "spct_gsm8k.py", "spct_gsm8k.py:cpu",
    "spct_tiny.py", "spct_tiny.py:no_rejection", "own_data.py",
)  # fmt: skip


def load(spec, **overrides):
    return configs.load(f"experiments/{spec}", overrides)


def change(config, field, value):
    """Sets a field as a config file does; what that raises, `configs.load` turns into one line."""
    section, _, name = field.rpartition(".")
    parent = config
    for key in filter(None, section.split(".")):
        parent = parent[key]
    try:
        with parent.ignore_type(), parent.unlocked():
            parent[name] = value
    except OverflowError as error:
        raise LaunchError(f"config.{field}: {error}") from error
    return config


@pytest.mark.parametrize("spec", SPECS)
def test_shipped_experiments_are_accepted(spec):
    config = load(spec)
    config_check.check(config, complete=True)


STAGES = ("rft", "rl", "meta_rm")
REFUSED = {
    **{f"{stage}.lr": (-1, 0, 2, "x", None, math.nan) for stage in STAGES},
    **{f"{stage}.steps": (-1, 0, 1.5, 2**31, 10**400) for stage in STAGES},
    **{f"{stage}.clip_norm": (-1, math.inf) for stage in STAGES},
    **{f"{stage}.eps": (-1, 0, math.nan) for stage in STAGES},
    **{f"{stage}.{b}": (2, 1, 1.0, -0.1) for stage in STAGES for b in ("b1", "b2")},
    **{f"{stage}.save_every": (0, -5) for stage in STAGES},
    **{f"{stage}.micro_batches": (0, 1.5) for stage in STAGES},
    **{f"{stage}.warmup_steps": (-1, 10**6) for stage in STAGES},
    **{f"{stage}.schedule": ("cosin", "", [], None) for stage in STAGES},
    **{f"{stage}.final_lr_share": (-0.1, 1.1) for stage in STAGES},
    **{f"{stage}.profile_steps": (5, "1,2", (-1, 2), (1, None)) for stage in STAGES},
    **{f"{stage}.{name}": (0,) for stage in STAGES for name in ("keep", "log_every")},
    "rft.samples": (-1, 1.5),
    "rft.hinted": (-1,),
    "rft.comparisons": (0, -7),
    "rft.reject": (1, "yes"),
    "rft.sampler": ("teecher", "", None, 3),
    "rft.sampling.accuracy": (2, -1, "x"),
    "rft.sampling.max_new_tokens": (-1,),
    "rft.sampling.accurracy": (0.5,),
    "rl.temperature": (-1, 0, math.inf),
    "rl.group_size": (1, 0, -4),
    "rl.prompts": (0, -1),
    "rl.prompt_len": (0, 10**6),
    "rl.max_new_tokens": (0, 10**6),
    "rl.kl_estimator": ("k1", "k9", 3, []),
    "rl.reference_dtype": ("float16", "bf17", 4),
    "rl.beta": (-1, math.nan),
    "rl.clip": (0, -0.2),
    "rl.length_buckets": (0,),
    "rl.updates_per_rollout": (0,),
    "rl.temprature": (0.5,),
    "meta_rm.start": ("policy", "", None),
    "meta_rm.held_out": (1, 1.5, -0.1),
    "meta_rm.likelihood": (-1.0,),
    "meta_rm.batch_size": (0,),
    "eval.ks": ((), (0,), (-1, 2), ("a",), 3, (1, 1)),
    "eval.samples": (0, -1),
    "eval.temperature": (-1,),
    "eval.max_new_tokens": (0, 10**7),
    "eval.comparisons": (0,),
    "batch_size": (0, -8, 2.5, True),
    "seq_len": (0, 1, -1),
    "seed": (-1, 2**40, 0.5),
    "stages": ((), ("rft", "rl2"), ("rft", "rft"), "rft", 3),
    "mesh.data": (0, -2, 1.5),
    "mesh.fsdp": (0,),
    "data.seed": (-1,),
    "data.general_items": (-1,),
    "data.max_skipped": (1.5, -0.1),
    "data.families": (("nothing",), "x"),
    "data.world.sizes": ({"a": 1}, {}, {"2": -1}, {"2": 0}, {"2": math.nan}),
    "model": ("gemma2_28b", "", None, 3),
    "model_overrides.dtype": ("float16", "int8"),
    "model_overrides.num_layers": (0, 10**9),
    "model_overrides.num_kv_heads": (3,),
    "model_overrides.remat": ("ful",),
    "model_overrides.windos": ((1, 2),),
    "template": ("nothing/here", "gmr", "a\x00b"),
    "tokenizer": ("\x00", None),
    "export": ("yes",),
    "name": ("a\nb", None),
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_value_outside_its_range_is_refused_with_its_field(field):
    for value in REFUSED[field]:
        config = change(load("spct_tiny.py"), field, value)
        with pytest.raises((ValueError, OSError)) as error:
            config_check.check(config)
        message = str(error.value)
        assert len(message.splitlines()) == 1, message
        name = field.rpartition(".")[2]
        assert name in message or field in ("model", "template", "rl.kl_estimator"), message
        assert len(message) < 600, message


def test_all_faults_are_listed_together():
    config = change(change(load("spct_tiny.py"), "rft.lr", -1), "rl.steps", -1)
    with pytest.raises(ValueError) as error:
        config_check.check(config)
    assert str(error.value) == (
        "config.rft.lr=-1.0: use more than 0 and at most 1; config.rl.steps=-1: use 1 to 2147483647"
    )


def test_unknown_words_are_answered_with_the_nearest():
    for field, value, hint in (
        ("rl.reference_dtype", "bfloat61", "did you mean 'bfloat16'?"),
        ("model_overrides.remat", "ful", "did you mean 'full'?"),
        ("stages", ("rft", "metarm"), "did you mean 'meta_rm'?"),
        ("rft.sampler", "teecher", "did you mean 'teacher'?"),
        ("rl.temprature", 1.0, "did you mean 'temperature'?"),
    ):
        with pytest.raises(ValueError, match=hint.replace("?", r"\?")):
            config_check.check(change(load("spct_tiny.py"), field, value))


def test_open_fields_of_own_data_may_be_empty_but_not_negative():
    for field in ("rl.prompts", "rft.lr", "rl.steps", "mesh.fsdp", "seq_len", "eval.comparisons"):
        config_check.check(change(load("own_data.py"), field, 0))
        with pytest.raises(ValueError, match=f"config.{field}=-7"):
            config_check.check(change(load("own_data.py"), field, -7))


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("rl.micro_batches", 3, "config.rl.micro_batches=3 does not divide config.rl.prompts=32"),
        ("rft.micro_rows", 3, "config.rft.micro_rows=3 on 2 data-parallel shards takes 6 rows"),
        ("meta_rm.batch_size", 7, "config.meta_rm.batch_size=7 does not divide over mesh"),
    ],
)
def test_batches_that_do_not_divide_are_refused_before_training(field, value, message):
    config = change(load("spct_tiny.py"), field, value)
    with pytest.raises(ValueError, match=message):
        config_check.check_batches(config, make_mesh(data=1, fsdp=2, tensor=4))


def test_every_field_of_models_samplers_and_the_world_has_a_rule():
    from grm_jax.data.world import WorldConfig

    names = {field.name for field in dataclasses.fields(TransformerConfig)}
    assert names <= set(SECTIONS["model_overrides"])
    assert {field.name for field in dataclasses.fields(WorldConfig)} == set(SECTIONS["data.world"])
    for sampler in rft_samplers.SAMPLERS:
        assert set(rft_samplers.settings_of(sampler)) <= set(SECTIONS["rft.sampling"]), sampler


def test_missing_sections_and_fields_are_named():
    config = load("spct_tiny.py")
    with config.unlocked():
        del config.rl
        del config.eval.ks
    with pytest.raises(ValueError, match="config.eval.ks is missing.*") as error:
        config_check.check(config, complete=True)
    assert "config.rl is missing" in str(error.value)


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "mode", [[], ["--compile_only", "--slice", "v5p-8"]], ids=["run", "compile"]
)
def test_the_command_refuses_wrong_values_before_anything_runs(mode, tmp_path, capsys):
    command = ["--config", "experiments/spct_tiny.py", "--workdir", str(tmp_path / "run"), *mode]
    assert tpu.main([*command, "--config.rft.lr=-1", "--config.rl.steps=-1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "config.rft.lr=-1.0: use more than 0" in error
    assert "config.rl.steps=-1" in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", "TPU_WORKER_ID"])
@pytest.mark.parametrize("value", ["abc", "-1", "9" * 5000, "7"])
def test_odd_environment_variables_of_workers_are_named(name, value):
    environment = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0", "TPU_SKIP_MDS_QUERY": "1"}
    try:
        worker = distributed.find_worker(environment=environment | {name: value})
    except LaunchError as error:
        assert name.partition("_")[0] in str(error) and len(str(error).splitlines()) == 1
    else:  # 7 slices of two hosts; without a number, the machine is no worker
        assert worker is None or worker.num_processes == 14


def test_a_platform_that_does_not_exist_is_one_line(monkeypatch):
    import jax

    def fail():
        raise RuntimeError("Unable to initialize backend 'foo'")

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(LaunchError, match="no devices with JAX_PLATFORMS=.*backend 'foo'"):
        checks.check_devices()


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config(:\n", "own.py:1: SyntaxError"),
        ("x = 1\n\nraise RuntimeError('no')\n", "own.py:3: RuntimeError: no"),
        ("import nothing_of_this_name\n", "own.py:1: ModuleNotFoundError"),
        ("import sys\nsys.exit(3)\n", "own.py:2: SystemExit: 3"),
        ("def get_config():\n    return 1 / 0\n", "own.py:2: ZeroDivisionError"),
        ("def get_config():\n    return {}['x']\n", "own.py:2: KeyError"),
        ("def get_config():\n    return {'name': 'x'}\n", "returned dict"),
        ("def get_config():\n    pass\n", "returned NoneType"),
        ("get_config = 3\n", "has no get_config"),
        ("def get_config(a, b):\n    pass\n", "TypeError"),
        ("\x00", "own.py"),
        (
            "from ml_collections import ConfigDict\nget_config = lambda: ConfigDict()\n",
            "is missing",
        ),
    ],
)
def test_a_config_file_that_fails_is_one_line_with_its_place(text, message, tmp_path, capsys):
    (tmp_path / "own.py").write_text(text)
    assert tpu.main(["--config", str(tmp_path / "own.py")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error, error


# ---------------------------------------------------------------- random values

_WHOLE = {
    1: ("steps", "save_every", "keep", "log_every", "micro_batches", "batch_size", "prompts",
        "prompt_len", "max_new_tokens", "length_buckets", "updates_per_rollout", "samples*eval",
        "comparisons*rft", "comparisons*eval", "meta_batch", "num_layers", "d_model", "vocab_size"),
    0: ("warmup_steps", "micro_rows", "hinted", "first_item", "prompt_slots", "general_items",
        "seed", "rft_trials", "base_samples", "samples*rft", "samples*meta_rm", "top_k"),
    2: ("group_size", "seq_len*"),
}  # fmt: skip
_REAL = {  # name -> (least, most, whether the least is in the range)
    "lr": (0, 1, False), "b1": (0, 1, True), "b2": (0, 1, True), "eps": (0, 1, False),
    "final_lr_share": (0, 1, True), "max_skipped": (0, 1, True), "accuracy": (0, 1, True),
    "shortcut": (0, 1, True), "clip": (0, 10, False), "clip_norm": (0, 1e6, True),
    "beta": (0, 1e6, True), "temperature*rl": (0, 100, False), "temperature": (0, 100, True),
    "held_out*meta_rm": (0, 1, True), "min_parsed": (0, 1, True), "held_out_share": (0, 1, False),
    "token_loss": (0, 1e6, True), "likelihood": (0, 1e6, True), "epochs": (0, 1e6, False),
    "weight_decay": (0, 100, True),
}  # fmt: skip
_FLAGS = ("reject", "normalise_std", "expected", "export", "tensorboard", "shuffle_labels")


def check_accepted(config, field):
    """The documented range of a value, apart from the rules of the package."""
    section, _, name = field.rpartition(".")
    value = config
    for key in field.split("."):
        value = value[key]
    is_open = config.data.get("judging") == "file" and type(value) in (int, float, str)
    if is_open and not value and field not in ("seed", "data.seed"):
        return
    for least, names in _WHOLE.items():
        if name in names or f"{name}*{section}" in names:
            assert type(value) is int and least <= value < 2**32, f"{field}={value!r}"
    bounds = _REAL.get(f"{name}*{section}", _REAL.get(name))
    if bounds and not (name == "held_out" and section == "data"):
        least, most, included = bounds
        assert type(value) in (int, float) and math.isfinite(value), f"{field}={value!r}"
        assert least <= value <= most and (included or value > least), f"{field}={value!r}"
    if name in ("b1", "b2"):
        assert value < 1
    if name in _FLAGS:
        assert type(value) is bool, f"{field}={value!r}"
    if name in ("model", "tokenizer", "init", "template", "sampler", "schedule", "start", "name"):
        assert isinstance(value, str) and "\x00" not in value, f"{field}={value!r}"
    if name == "ks":
        assert value and all(type(k) is int and k >= 1 for k in value)
    if name == "schedule":
        assert value in ("constant", "cosine", "linear")
    if field.startswith("mesh."):
        assert type(value) is int and (value == -1 or value >= 1)


PLAUSIBLE = (2, 3, 8, 64, 1000, 0.1, 0.9, 1.0, "cosine", "linear", "k2", "world", "float32", "rft",
             "model", "self", (1, 2), (4,), ("rft",), "grm", True)  # fmt: skip
TEXTS = ("nan", "inf", "-inf", "1e999", "-1", "0", "1e-3", "0x10", "1_000", "", " ", "[]", "()",
         "(1,", "{}", "None", "true", "9" * 5000, "(" * 500, "1,2,a",
         "é", "'", "rft,rl")  # fmt: skip


def test_random_values(record_property, cases):
    def draws():
        for _, rng in cases(fast=80, full=500):
            spec = rng.choice(SPECS)
            config = load(spec)
            names = [n for n in field_names(config) if not _is_section(config, n)]
            field = rng.choice(names)
            as_text = rng.random() < 0.4
            odd = [*fuzz.ODD_VALUES, *PLAUSIBLE, *PLAUSIBLE]
            value = rng.choice([*TEXTS, *map(str, PLAUSIBLE)] if as_text else odd)
            yield f"{spec} {field}={value!r:.60} {as_text}", (spec, field, value, as_text)

    def check(case):
        spec, field, value, as_text = case
        config = load(spec)
        if as_text:
            set_field(config, field, value)
        else:
            change(config, field, value)
        config_check.check(config, complete=True)
        check_accepted(config, field)

    refusals = (ValueError, OSError, LaunchError)
    fuzz.run("config values", draws(), check, record_property, refusals)


def _is_section(config, field):
    for key in field.split("."):
        config = config[key]
    return isinstance(config, ConfigDict)


# Fields whose accepted values neither change the cost of a step nor need other inputs.
CHEAP = (
    "rft.lr", "rft.b1", "rft.b2", "rft.eps", "rft.weight_decay", "rft.clip_norm", "rft.schedule",
    "rft.final_lr_share", "rft.reject", "rft.keep", "rft.save_every", "rft.hinted", "rl.lr",
    "rl.beta", "rl.clip", "rl.kl_estimator", "rl.normalise_std", "rl.temperature", "rl.eps",
    "rl.length_buckets", "rl.reference_dtype", "rl.first_item", "rl.clip_norm", "data.seed",
    "seed", "data.shuffle_labels", "data.max_skipped", "rft.sampling.accuracy",
    "rft.sampling.shortcut", "principles",
)  # fmt: skip


@pytest.mark.slow
def test_accepted_values_train(record_property, cases, tmp_path):
    """RFT and RL run a step with what the check accepts, or stop with a clear error."""

    def draws():
        accepted = 0
        for i, rng in cases(fast=0, full=400):
            field = rng.choice(CHEAP)
            value = rng.choice([*fuzz.ODD_NUMBERS, *PLAUSIBLE, True, False])
            try:
                config = change(load("spct_tiny.py"), field, value)
                config_check.check(config, complete=True)
            except (ValueError, LaunchError):
                continue
            accepted += 1
            yield f"{field}={value!r:.60}", (config, tmp_path / str(i))
            if accepted == 24:
                return

    def check(case):
        config, workdir = case
        config.stages, config.export, config.tensorboard = ("rft", "rl"), False, False
        config.mesh = dict(data=4, fsdp=2, tensor=1)
        config.model_overrides.update(d_model=32, d_ff=32, head_dim=8, num_layers=2)
        config.data.general_items, config.batch_size = 20, 8
        config.rft.update(steps=1, warmup_steps=0, comparisons=24)
        config.rl.update(steps=1, prompts=8, max_new_tokens=8)
        main.run(config, workdir)

    refusals = (ValueError, OSError, TrainingError, loop.NonFiniteLoss)
    fuzz.run("accepted config values", draws(), check, record_property, refusals, 300, 900)
