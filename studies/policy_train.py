"""Policies trained against a judge: where do the judge's reward and the true quality diverge?

An arm is a source of rewards, and a run of experiments/policy_world.py with it. All arms of a seed
share one supervised start. Evenly spaced checkpoints are evaluated on held-out tasks, where each
answer of the policy competes with two fixed answers of the supervised start. A win is the best
answer of the three, once by the arm's judge and once by the truth. Both win rates are comparable
over all arms: a policy equal to the start wins about a third. `studies/policy.py train` is the
command line.
"""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments import policy_world
from grm_jax import Judge, strict_json
from grm_jax.data.world import answers
from grm_jax.data.world.responses import OPENINGS, answer_of
from grm_jax.judging import votes
from grm_jax.judging.groups import Group
from grm_jax.judging.rewards import RewardOptions, score
from grm_jax.judging.sampler import EngineSampler
from grm_jax.models import abstract_model
from grm_jax.run_store import RunStore
from grm_jax.sampling import Request
from grm_jax.sharding import make_mesh
from grm_jax.storage import write_atomic
from grm_jax.training import checkpoint, loop, main, metrics, policy, reward_sources, sources
from grm_jax.training.programs import model_config
from studies.policy_report import principle_shares

log = logging.getLogger(__name__)
REFERENCE_K = 4  # critiques per group by the reference judge, which is the same for all arms
RIVALS = 2  # answers of the supervised start in a group with one answer of the policy
SAMPLES = 2  # answers of the policy per task
KL_STEPS = 5  # the KL of a checkpoint is the mean over its last steps

ARMS: dict[str, dict[str, Any]] = {
    "spct_k1": dict(k=1),
    "spct_k4": dict(k=4),
    "spct_k8": dict(k=8),
    "spct_k8_meta": dict(k=8, meta_rm=True),
    "first_k8": dict(k=8, principles="first"),
    "bt": dict(path="bt", k=1, temperature=0.0),
    "longest": dict(source="longest"),
    "truth": dict(source="truth"),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings that all runs of a study share.

    Attributes:
      judge, meta_rm, bt: model folders.
      workdir: folder of the training runs.
      models: fingerprints of the models.
      steps: of GRPO.
      points: checkpoints to evaluate, besides the start.
      tasks: held-out tasks of an evaluation.
      extra: config overrides, as in an argument of get_config.
    """

    judge: str
    meta_rm: str
    bt: str
    workdir: Path
    models: tuple[str, ...] = ()
    steps: int = 150
    points: int = 6
    tasks: int = 64
    extra: str = ""

    @property
    def steps_of_points(self) -> list[int]:
        """The steps that are evaluated; 0 is the supervised start."""
        return [self.steps * i // self.points for i in range(self.points + 1)]


# ---------------------------------------------------------------- one run


def run_config(setting: Setting, arm: str, seed: int) -> Any:
    """Returns the experiment config of an arm and seed."""
    changes = f"seed={seed}" + (f",{setting.extra}" if setting.extra else "")
    config = policy_world.get_config(changes)
    judge = dict(config.policy.judge) | {"path": setting.judge, "meta_rm": "", "k": 1}
    judge |= ARMS[arm]
    judge["path"] = setting.bt if judge["path"] == "bt" else judge["path"]
    judge["meta_rm"] = setting.meta_rm if judge["meta_rm"] else ""
    config.policy.judge = judge
    config.policy.steps, config.policy.keep = setting.steps, setting.points + 1
    config.policy.save_every = setting.steps // setting.points
    config.tensorboard = config.export = False
    return config


def run_one(setting: Setting, arm: str, seed: int, out: Path) -> dict:
    """Trains and evaluates an arm with a seed; returns its record, OUT/ARM-SEED.json.

    A record with the same config is loaded instead.
    """
    config, path = run_config(setting, arm, seed), out / f"{arm}-{seed}.json"
    identity = config_hash(config, setting)
    if path.exists():
        record = strict_json.read(path)
        if record["config"] == identity:
            return record
        log.warning("%s has another config: running it again", path)
    folder = setting.workdir / f"{arm}-{seed}"
    start = time.monotonic(), time.process_time()
    _share_start(config, setting.workdir / f"sft-{seed}", folder)
    main.run(config, folder)
    trained = time.monotonic(), time.process_time()
    steps = setting.steps_of_points
    points = evaluate(config, folder, setting.judge, setting.tasks, steps, identity)
    seconds = {
        "train": trained[0] - start[0],
        "train_cpu": trained[1] - start[1],
        "evaluate": time.monotonic() - trained[0],
        "evaluate_cpu": time.process_time() - trained[1],
    }
    for point in points:  # the evaluation's file has the principles themselves
        point["principles"] = principle_shares(point["principles"])
    record = {"config": identity, "arm": arm, "seed": seed, "points": points}
    record["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    write_atomic(path, strict_json.dumps(record) + "\n")
    return record


def config_hash(config: Any, setting: Setting) -> str:
    """Returns a hash of the settings that a record depends on, with fingerprints for models."""
    fields = strict_json.loads(config.to_json_best_effort())
    for name in ("name", "tensorboard", "export"):
        fields.pop(name)
    judge = fields["policy"]["judge"]
    judge |= {name: bool(judge[name]) for name in ("path", "meta_rm")}
    fields["models"] = list(setting.models)
    fields["evaluation"] = [setting.tasks, setting.points, REFERENCE_K, RIVALS, SAMPLES]
    return hashlib.sha256(strict_json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _share_start(config: Any, start: Path, folder: Path) -> None:
    """Trains the supervised start of a seed if it is missing; links it into the run `folder`."""
    first = config.copy_and_resolve_references()
    first.stages = ("sft",)
    main.run(first, start)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "sft").exists():
        (folder / "sft").symlink_to((start / "sft").resolve())


# ---------------------------------------------------------------- evaluation


def evaluate(
    config: Any, folder: Path, judge: str, count: int, steps: Sequence[int], identity: str
) -> list[dict]:
    """Evaluates checkpoints of a run on held-out tasks; resumes FOLDER/evaluation-IDENTITY.jsonl.

    Args:
      config: of the run.
      folder: workdir of the run.
      judge: folder of the reference judge.
      count: number of tasks.
      steps: of the checkpoints; 0 is the supervised start.
      identity: hash of the settings that the evaluation depends on.

    Returns:
      The result of `measure` for each step, with "step" and "kl".
    """
    shared = loop.Run(config, make_mesh(**config.mesh), sources.load_tokenizer(config))
    tasks, kl = held_out_tasks(config, count), kl_by_step(folder / "policy")
    path = folder / f"evaluation-{identity}.jsonl"
    with RunStore(path, {"config": identity}, key="step") as store:
        if missing := [step for step in steps if step not in store]:
            settings = reward_sources.JudgeSettings.of(config.policy.judge)
            scorer = reward_sources.SOURCES[settings.source](settings, shared)
            reference = Judge.load(judge)
            rivals = sample(shared, params_at(shared, folder, 0), tasks, RIVALS, seed=1)
        for step in tqdm(missing, desc=f"{folder.name}, checkpoints"):
            texts = sample(shared, params_at(shared, folder, step), tasks, SAMPLES, seed=2)
            point = measure(tasks, texts, rivals, scorer, reference)
            store.append(step, {"kl": kl(step), **point})
        return list(store.records(steps))


def evaluate_run(folder: Path, judge: str, count: int) -> dict:
    """Evaluates every checkpoint that a run of the stage policy has kept; returns its record.

    judge: folder of the reference judge; "" for the run's own.

    Raises ValueError for a folder without the stages sft and policy.
    """
    if not all(loop.is_done(folder / stage) for stage in ("sft", "policy")):
        raise ValueError(f"{folder} has no finished stages sft and policy: train them first")
    config = ConfigDict(_with_tuples(strict_json.read(folder / "config.json")))
    judge = judge or config.policy.judge.path
    with checkpoint.Checkpoints(folder / "policy" / "checkpoints", keep=None) as store:
        steps = [0, *store.steps()]
    name = Judge.load(judge).name.rpartition("@")[2]
    text = f"{loop.saved_weights(folder / 'policy')}/{name}/{count}"
    identity = hashlib.sha256(text.encode()).hexdigest()[:16]
    points = evaluate(config, folder, judge, count, steps, identity)
    return {"arm": folder.name, "points": points}


def _with_tuples(value: Any) -> Any:
    """Returns a JSON value with its lists as tuples, as a config has them."""
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def held_out_tasks(config: Any, count: int) -> list[answers.Task]:
    """Returns the first `count` tasks of the test split."""
    families, world = (
        tuple(config.data.get("families", ())) or None,
        sources.world_config(config.data),
    )
    return [answers.task(i, config.data.seed, "test", families, world) for i in range(count)]


def kl_by_step(folder: Path) -> Callable[[int], float]:
    """Returns step -> KL to the start in nats per answer, the mean of the last KL_STEPS steps."""
    rows = metrics.read_jsonl(folder / "metrics.jsonl")
    values = {row["step"]: float(row["kl_sequence"]) for row in rows}

    def kl(step: int) -> float:
        near = [values[s] for s in range(step - KL_STEPS + 1, step + 1) if s in values]
        return float(np.mean(near)) if near else 0.0

    return kl


def params_at(shared: loop.Run, folder: Path, step: int) -> Any:
    """Returns the parameters of a checkpoint of the stage policy; at step 0 those of sft."""
    _, abstract = abstract_model(model_config(shared.config), shared.mesh)
    if step == 0:
        return loop.load_params(folder / "sft", abstract)
    path = folder / "policy" / "checkpoints" / str(step) / "state"
    saved = ocp.StandardCheckpointer().restore(path.resolve())
    names = checkpoint.flatten({"params": abstract})
    leaves = [jax.device_put(saved[name], like.sharding) for name, like in names.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def sample(
    shared: loop.Run, params: Any, tasks: Sequence[answers.Task], k: int, seed: int
) -> list[list[str]]:
    """Samples k answers to each task at temperature 1; returns their texts by task."""
    graphdef, _ = abstract_model(model_config(shared.config), shared.mesh)
    section, texts = shared.config.policy, [[""] * k for _ in tasks]
    questions = [policy.make_question(shared.tokenizer, (t.query, t.id, t.truth)) for t in tasks]
    stop = shared.tokenizer.stop_ids
    requests = [
        Request(tuple(q.tokens), k, section.max_new_tokens, stop=stop, seed=seed, item=i)
        for i, q in enumerate(questions)
    ]
    with jax.set_mesh(shared.mesh):
        for completion in EngineSampler(nnx.merge(graphdef, params), shared.mesh)(requests):
            text = shared.tokenizer.decode([int(i) for i in completion.tokens])
            texts[completion.request_index][completion.sample_index] = text
    return texts


def measure(
    tasks: Sequence[answers.Task],
    texts: Sequence[Sequence[str]],
    rivals: Sequence[Sequence[str]],
    scorer: reward_sources.Scorer,
    reference: Judge,
) -> dict:
    """Measures one checkpoint.

    Args:
      tasks: held-out tasks.
      texts: answers of the checkpoint to each task.
      rivals: answers of the supervised start to each task.
      scorer: the arm's judge.
      reference: the judge whose principles are recorded.

    Returns:
      win, true_win: per task, the mean credit of its answers against the rivals by the arm's judge
        and by the truth, ties shared. None if the judge gave no reward.
      truth: per task, the mean true quality.
      features: see `features`.
      principles: of each critique of the reference judge, the family of the task and a list of
        [name, weight, description].
      examples: [query, answer] of the first tasks.
    """
    places = [(t, s) for t in range(len(tasks)) for s in range(len(texts[t]))]
    groups = [
        Group(tasks[t].query, (texts[t][s], *rivals[t]), id=f"{t}/{s} {tasks[t].id}")
        for t, s in places
    ]
    mixed = [i for i, group in enumerate(groups) if len(set(group.responses)) > 1]
    mixed_groups = [groups[i] for i in mixed]
    questions = [
        reward_sources.Question(tasks[t].query, [], tasks[t].id, tasks[t].truth)
        for t, _ in (places[i] for i in mixed)
    ]
    judged = dict(zip(mixed, scorer(questions, mixed_groups, 0), strict=True))
    critiqued = dict(zip(mixed, score(mixed_groups, reference, REFERENCE_OPTIONS), strict=True))
    win: list[list[float | None]] = [[] for _ in tasks]
    true_win: list[list[float]] = [[] for _ in tasks]
    for i, (t, _) in enumerate(places):
        truths = [tasks[t].truth(text) for text in groups[i].responses]
        true_win[t].append(votes.credit(truths, {0}))
        values = judged[i].values if i in judged else [0.0] * len(truths)  # all equal: a tie
        win[t].append(None if None in values else votes.credit(values, {0}))
    return {
        "win": [_mean(values) for values in win],
        "true_win": [_mean(values) for values in true_win],
        "truth": [_mean([task.truth(x) for x in own]) for task, own in zip(tasks, texts)],
        "features": features(tasks, texts),
        "principles": [
            [tasks[places[i][0]].family, [[p.name, p.weight, p.description] for p in c.principles]]
            for i, result in critiqued.items()
            for c in result.critiques
        ],
        "examples": [[tasks[t].query, texts[t][0]] for t in range(min(8, len(tasks)))],
    }


REFERENCE_OPTIONS = RewardOptions(k=REFERENCE_K, seed=7, critiques=True)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None


def features(tasks: Sequence[answers.Task], texts: Sequence[Sequence[str]]) -> dict[str, float]:
    """Describes a policy's answers, by the mean `characters` and by shares of all answers.

    sure: a confident opening, or "sounds sure". wordy: a long opening. query: a copy of the query.
    markers: brackets, boxes or control tokens. hedged: two results with "or". right: true quality
    of 1. distinct: different texts.
    """
    pairs = [(task, text) for task, own in zip(tasks, texts) for text in own]
    share = lambda test: float(np.mean([test(task, text) for task, text in pairs]))
    starts = lambda manner: lambda task, text: text.startswith(tuple(OPENINGS[manner]))
    return {
        "characters": float(np.mean([len(text) for _, text in pairs])),
        "sure": share(lambda task, x: starts("sure")(task, x) or "sounds sure" in x),
        "wordy": share(starts("wordy")),
        "query": share(lambda task, text: task.query in text),
        "markers": share(lambda task, text: any(mark in text for mark in "[]{}<>\\")),
        "hedged": share(lambda task, text: " or " in answer_of(text)),
        "right": share(lambda task, text: task.truth(text) == 1),
        "distinct": len({text for _, text in pairs}) / len(pairs),
    }
