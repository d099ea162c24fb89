"""The programs of the stages sft and policy, and the judge beside them."""

import jax
import pytest

from experiments import policy_world, spct_tiny
from grm_jax.models import get_config
from grm_jax.sharding import make_mesh
from grm_jax.training import memory, reward_sources
from launch.compile import programs, results, slices

HBM = 1 << 30
JUDGE = {"source": "colocated", "path": "", "model": "tiny_gemma2", "dtype": "float32"}


@pytest.fixture
def mesh():
    return make_mesh(devices=jax.devices()[:1])


def make_config(**judge):
    config = policy_world.get_config()
    config.policy.judge = {**JUDGE, **judge}
    return config


def by_name(config, mesh, **options):
    return {task.name: task for task in programs.tasks(config, mesh, **options)}


def test_a_policy_chooses_its_recomputation_beside_the_judge(mesh, monkeypatch):
    config = make_config()
    config.model_overrides.remat, config.policy.micro_rows = "auto", -1
    name = "policy_grpo_update"
    hbm = slices.get_slice("v5litepod-1").generation.hbm_bytes
    compiled, searched, lines = [], [], []

    def compile_tasks(tasks, slice_name, num_slices, report, store):
        compiled.append((tasks[0].name, tasks[0].resident))
        result = results.Result(tasks[0].name, slice_name, 1, 1, {}, hbm_available=hbm)
        result.set_peak(1000 + tasks[0].resident)
        return [result]

    def search(estimates, measure, limit):
        searched.append((measure(next(iter(estimates))), limit))
        return dict.fromkeys(estimates, 0.0)

    monkeypatch.setattr(programs, "compile_tasks", compile_tasks)
    monkeypatch.setattr(memory, "search", search)
    settle = programs.settle_by_compiling(mesh, "v5litepod-1", report=lines.append)
    task = by_name(config, mesh, names=[name], settle=settle)[name]
    served = by_name(make_config(source="served"), mesh, names=[name])[name]
    judge = task.resident - served.resident
    assert judge > 4 * get_config("tiny_gemma2").num_params
    assert compiled == [(name, task.resident)]  # the program of the table, compiled once
    assert searched == [(1000 + served.resident, 0.9 * hbm - judge)]
    assert lines[-1].startswith("policy: remat=products, micro_rows=16, peak 0.0 beside ")


def test_the_meta_rm_of_a_judge_stays_on_the_chips(mesh):
    alone, both = (by_name(make_config(meta_rm=name), mesh, hbm=HBM) for name in ("", "m"))
    cfg = get_config("tiny_gemma2", scalar_head=True)
    weights, _ = reward_sources.held_bytes(cfg, mesh)
    for name in ("policy_grpo_update", "policy_rollout_decode", "judge_decode"):
        assert both[name].resident == alone[name].resident + weights


def test_a_judge_has_a_prompt_for_each_block_of_answers(mesh, monkeypatch):
    seen = []
    real = programs.sampler_tasks

    def sampler_tasks(cfg, mesh, requests, *rest):
        seen.append((len(requests), len(requests[0].prompt), requests[0].max_new_tokens))
        return real(cfg, mesh, requests, *rest)

    monkeypatch.setattr(programs, "sampler_tasks", sampler_tasks)
    config = make_config(block_size=3, max_new_tokens=40)
    by_name(config, mesh, hbm=HBM)  # 16 questions with 4 answers, in 4 blocks of 2
    assert seen[-1] == (64, 5 * (24 + 2 * 24) // 4, 40)
    context = get_config("tiny_gemma2").max_length
    by_name(make_config(), mesh, hbm=HBM)  # one block; a critique has half of the context
    assert seen[-1] == (16, context // 2, context // 2)
    by_name(make_config(max_new_tokens=200), mesh, hbm=HBM)
    assert seen[-1] == (16, context - 200, 200)
    message = f"config.policy.judge.max_new_tokens={context} fills the context of tiny_gemma2"
    with pytest.raises(ValueError, match=message):
        by_name(make_config(max_new_tokens=context), mesh, hbm=HBM)


def test_every_program_of_the_training_stages_is_in_the_table(mesh):
    config = make_config(source="served")
    config.policy.updates_per_rollout = 2
    tasks = by_name(config, mesh)
    assert tasks.keys() == {
        *("forward", "policy_sft_update", "policy_reference_logps", "policy_policy_logps"),
        "policy_grpo_update",
    }
    assert tasks["policy_sft_update"].tokens == config.batch_size * config.seq_len
    # Beside the policy's weights, its optimizer state and the reference stay.
    weights = 4 * get_config("tiny_gemma2", **shape(config)).num_params
    assert tasks["policy_policy_logps"].resident == pytest.approx(3 * weights, rel=0.01)
    assert "policy_logps" not in by_name(spct_tiny.get_config(), mesh)
    rl = spct_tiny.get_config("rl.updates_per_rollout=2")
    assert "policy_logps" in by_name(rl, mesh, names=["policy_logps"])


def shape(config):
    names = ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim")
    return {name: config.model_overrides[name] for name in names if name in config.model_overrides}
