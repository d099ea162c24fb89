"""/v1/score and the calls of other trainers."""

import concurrent.futures

import pytest

from grm_jax.judging.groups import rewards_to_json
from grm_jax.judging.rewards import score
from grm_jax.serving.cli import reward_options
from grm_jax.serving.nemo_gym import pairs
from grm_jax.serving.openrlhf import split_queries
from grm_jax.serving.transcripts import turns_of
from grm_jax.types import Critique

GROUP = {"prompt": "name a moon", "responses": ["a blue moon", "a red cat"], "id": "a"}
OTHER = {"prompt": "name a cat", "responses": ["a blue cat", "a red moon"], "id": "b"}


def groups(n):
    return [dict(GROUP, prompt=f"name moon {i}", id=str(i)) for i in range(n)]


def scored(server, group, **options):
    """The rewards of a group that is sent alone."""
    reply = server.post("/v1/score", {"groups": [group], **options})
    (result,) = reply.json()["groups"]
    return [reward["reward"] for reward in result["rewards"]]


def response_object(text):
    parts = [{"type": "output_text", "text": text}]
    return {"output": [{"type": "reasoning"}, {"type": "message", "content": parts}]}


def verify_body(text="a blue moon", index=0, group="g", size=2, **more):
    return {
        "responses_create_params": {"input": [{"role": "user", "content": "name a moon"}]},
        "response": response_object(text),
        "_ng_group_id": group,
        "_ng_rollout_index": index,
        "group_size": size,
        **more,
    }


def test_rewards_over_http_equal_those_of_score(server):
    judge = server.service.judge
    reply = server.post("/v1/score", {"groups": [GROUP, OTHER], "k": 4, "critiques": True})
    assert reply.status_code == 200, reply.text
    results = score([GROUP, OTHER], judge, k=4, critiques=True)
    expected = [rewards_to_json(result) for result in results]
    assert reply.json() == {"groups": expected, "model": "toy@0"}
    assert {r["status"] for g in expected for r in g["rewards"]} == {"scored"}


def test_requests_at_the_same_time_get_the_rewards_of_a_run_alone(server):
    rows = groups(12)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda row: server.post("/v1/score", {"groups": [row]}), rows))
    for row, reply in zip(rows, replies):
        assert reply.json() == server.post("/v1/score", {"groups": [row]}).json()
    assert len({reply.text for reply in replies}) == 12


def test_a_response_without_a_reward_has_a_status_and_a_reason(server):
    lone = dict(GROUP, responses=["one"])  # the toy's critiques have two scores
    long = dict(GROUP, responses=["moon " * 400, "cat"])
    reply = server.post("/v1/score", {"groups": [lone, long], "k": 2}).json()
    (first,), (second, _) = (group["rewards"] for group in reply["groups"])
    assert (first["reward"], first["status"]) == (None, "unparsed") and first["reason"]
    assert (second["reward"], second["status"]) == (None, "failed")
    assert "this server takes 128" in second["reason"]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"groups": []}, "groups is empty"),
        ({"groups": 1}, "groups is a int"),
        ({"groups": [{}]}, "groups[0]: a group has no prompt"),
        ({"groups": [dict(GROUP, responses=[1])]}, "groups[0]"),
        ({"groups": [dict(GROUP, response="x")]}, "unknown field 'response'"),
        ({"groups": [GROUP] * 65}, "65 groups: this server takes 64"),
        ({"groups": [dict(GROUP, responses=["a"] * 257)]}, "this server takes 256"),
        ({"groups": [GROUP], "k": 129}, "k = 129"),
        ({"groups": [GROUP], "k": 0}, "k = 0"),
        ({"groups": [GROUP], "max_new_tokens": 25}, "at most 24"),
        ({"groups": [GROUP], "reward": "expected"}, "start the server with --expected"),
        ({"groups": [GROUP], "reward": "best"}, "best"),
        ({"groups": [GROUP], "k_meta": 1}, "--meta_rm"),
        ({"groups": [GROUP], "timeout": -1}, "timeout = -1"),
        ({"groups": [GROUP], "critique": True}, "unknown field 'critique'"),
        (
            {"groups": [GROUP], "group_size": 8},
            "groups[0] has 2 of 8 responses: the group is split",
        ),
        ({"groups": [GROUP], "group_size": "8"}, "group_size = '8'"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(server, fields, words):
    reply = server.post("/v1/score", fields)
    message = reply.json()["error"]["message"]
    assert reply.status_code == 400 and words in message and "\n" not in message, message


# ---------------------------------------------------------------- OpenRLHF

CHATML = "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
LLAMA = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"


@pytest.mark.parametrize(
    "prompt, expected",
    [
        (CHATML + "<|im_start|>assistant\n", [("system", "be kind"), ("user", "hi")]),
        (CHATML + "<|im_start|>assistant\n<think>\n", [("system", "be kind"), ("user", "hi")]),
        (LLAMA + "<|start_header_id|>assistant<|end_header_id|>\n\n", "hi"),
        ("<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n", "hi"),
        (
            "<｜begin▁of▁sentence｜>be kind<｜User｜>hi<｜Assistant｜>",
            [("system", "be kind"), ("user", "hi")],
        ),
        ("<s>[INST] hi [/INST]", "hi"),
        (
            "<s>[INST] a [/INST] b</s>[INST] c [/INST]",
            [("user", "a"), ("assistant", "b"), ("user", "c")],
        ),
        ("no template at all", "no template at all"),
    ],
)
def test_a_templated_prompt_becomes_turns(prompt, expected):
    turns = turns_of(prompt)
    if not isinstance(turns, str):
        turns = [(turn["role"], turn["content"]) for turn in turns]
    assert turns == expected


def test_a_query_loses_its_prompt_and_the_special_tokens_at_its_ends():
    prompt = CHATML + "<|im_start|>assistant\n"
    query = prompt + "use <s>this</s> or <|im_end|> so<|im_end|>\n<|endoftext|><|endoftext|>"
    expected = [(prompt, "use <s>this</s> or <|im_end|> so")]
    assert split_queries([query], [prompt]) == expected
    assert split_queries([prompt + "so<|im_end|>"], None) == [(prompt, "so")]


def test_queries_of_one_prompt_are_rewarded_as_a_group(server):
    prompt = "<|im_start|>user\nname a moon<|im_end|>\n<|im_start|>assistant\n"
    query = [f"{prompt}{text}<|im_end|>" for text in GROUP["responses"]]
    reply = server.post("/get_reward", {"query": query, "prompts": [prompt] * 2, "labels": None})
    expected = scored(server, GROUP)
    assert reply.json() == {"rewards": expected, "scores": expected, "extra_logs": {}}


def test_rewards_stand_at_their_queries_where_prompts_alternate(server):
    prompts = [
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        for text in ("name a moon", "name a cat")
    ]
    query = [prompt + text for text in GROUP["responses"] for prompt in prompts]
    reply = server.post("/get_reward", {"query": query, "prompts": prompts * 2})
    moon, cat = scored(server, GROUP), scored(server, dict(GROUP, prompt="name a cat"))
    assert reply.json()["rewards"] == [moon[0], cat[0], moon[1], cat[1]]


def test_callers_without_options_get_those_of_the_server(server, monkeypatch):
    monkeypatch.setattr(server.service, "options", reward_options('{"k": 1, "seed": 3}'))
    prompt = "<|im_start|>user\nname a moon<|im_end|>\n<|im_start|>assistant\n"
    reply = server.post("/get_reward", {"query": [prompt + text for text in GROUP["responses"]]})
    assert reply.json()["rewards"] == scored(server, GROUP, k=1, seed=3)
    for text, words in (
        ("[]", "a JSON object"),
        ('{"k": 1', "not JSON"),
        ('{"kk": 1}', "'kk'"),
        ('{"k": 0}', "k = 0"),
    ):
        with pytest.raises(ValueError, match=f"--options .*: .*{words}"):
            reward_options(text)


def test_a_missing_reward_is_an_error_and_no_number(server):
    query = ["<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nmoon"]
    reply = server.post("/get_reward", {"query": query})
    assert reply.status_code == 422 and "response 0 is unparsed" in reply.text
    for fields, words in (
        ({"query": ["x"], "prompts": ["y"]}, "prompts[0] is not its prefix"),
        ({"query": ["x"]}, "query[0] has no turns"),
        ({"query": ["x"], "prompts": []}, "1 queries and 0 prompts"),
    ):
        reply = server.post("/get_reward", fields)
        assert reply.status_code == 400 and words in reply.text


# ---------------------------------------------------------------- NeMo-Gym


def test_compare_returns_the_rewards_of_the_group(server):
    body = {
        "conversation_history": [{"role": "user", "content": GROUP["prompt"]}],
        "response_objs": [response_object(text) for text in GROUP["responses"]],
        "principle": "facts first",
    }
    reply = server.post("/compare", body).json()
    expected = scored(server, dict(GROUP, principles="facts first"))
    assert reply["rewards"] == expected and len(reply["comparison_results"]) == 8
    assert reply["metrics"]["mean_individual_score"] == pytest.approx(sum(expected) / 2)
    assert server.post("/compare", body | {"response_objs": []}).json()["rewards"] == []


def test_verify_answers_when_the_group_is_complete_and_a_retry_from_the_first(server):
    texts = GROUP["responses"]
    bodies = [verify_body(text, i, "whole", dataset="x") for i, text in enumerate(texts)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda body: server.post("/verify", body), [*bodies, bodies[1]]))
    expected = scored(server, GROUP)
    assert [reply.json()["reward"] for reply in replies] == [*expected, expected[1]]
    assert replies[0].json() == bodies[0] | {"reward": expected[0]}
    before = server.service.engine.engine.stats.prompts
    assert server.post("/verify", bodies[0]).json()["reward"] == expected[0]
    assert server.service.engine.engine.stats.prompts == before
    other = server.post("/verify", verify_body("another text", 0, "whole"))
    assert other.status_code == 400 and "has another text in an earlier call" in other.text
    split = server.post("/verify", verify_body("more", 1, "whole", 4))
    assert split.status_code == 400 and "has 2 responses, and 4 in this call" in split.text


def test_a_task_that_comes_again_is_scored_again(server):
    for texts in (GROUP["responses"], ("io", "europa"), ("io", "luna")):  # three epochs
        bodies = [
            verify_body(text, i, None) | {"_ng_task_index": 7} for i, text in enumerate(texts)
        ]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            replies = list(pool.map(lambda body: server.post("/verify", body), bodies))
        assert [reply.status_code for reply in replies] == [200, 200]


def test_a_missing_sibling_fails_by_the_deadline(server):
    reply = server.post("/verify", verify_body(group="half", timeout=0.05))
    assert reply.status_code == 504 and "not complete" in reply.text
    limits = server.service.limits
    server.service.cohorts.timeout, kept = 0.05, server.service.cohorts.timeout
    try:
        reply = server.post("/verify", verify_body(group="half 2"))
    finally:
        server.service.cohorts.timeout = kept
    assert limits.cohort_timeout == kept
    assert reply.status_code == 503 and "1 of 2 responses of group 'half 2'" in reply.text


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"response": {}}, "no list 'output'"),
        ({"responses_create_params": {}}, "responses_create_params.input"),
        ({"responses_create_params": {"input": [1]}}, "message 0 of the conversation has no role"),
        ({"group_size": 10_000}, "group_size = 10000"),
        ({"_ng_rollout_index": -1}, "_ng_rollout_index"),
    ],
)
def test_a_wrong_verify_is_refused(server, changes, words):
    reply = server.post("/verify", verify_body(group="wrong") | changes)
    assert reply.status_code == 400 and words in reply.json()["error"]["message"]


def test_pairs_of_a_block_have_the_indices_of_their_group():
    results = pairs([Critique("", scores=(3, 9, 1), order=(4, 0, 2))])
    assert [tuple(result.values()) for result in results] == [
        (0, 2, 0, 3, 9),
        (2, 4, 0, 9, 1),
        (4, 0, 0, 1, 3),
    ]
