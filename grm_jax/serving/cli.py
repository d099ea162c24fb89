"""`grm serve --model MODEL`: answers HTTP requests with a judge's rewards and critiques."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import ipaddress
import sys
from typing import TYPE_CHECKING

from grm_jax import strict_json
from grm_jax.commands import Number, Parser, add_device_arguments, add_lora_argument, run_command
from grm_jax.endpoint.server import api_key
from grm_jax.judging.options import POSITIVE, Options
from grm_jax.serving.limits import RANGES, Limits

if TYPE_CHECKING:  # JAX and the server are imported only when a model is loaded
    from grm_jax.judging.rewards import RewardOptions
    from grm_jax.serving.service import Service

KEY_VARIABLE = "GRM_API_KEY"
# Options without effect on a scalar reward model.
WITH_CRITIQUES = (
    *("meta_rm", "template", "meta_template", "rows", "max_new_tokens", "expected"),
    "kv_cache_dtype",
)
PORT = Number(int, 0, 65535)
_HELP = {
    "body_mib": "largest body of a request, in MiB",
    "groups": "most groups of a request",
    "responses": "most responses of a group",
    "n": "most samples of a chat completion, and critiques of a group",
    "queue": "most requests that run or wait; one more is answered with status 429",
    "connections": "most open connections",
    "timeout": "seconds until a request fails with status 504",
    "read_timeout": "seconds for a client to send a head or a body, or to read an answer",
    "grace": "seconds for running requests to finish after SIGTERM",
    "group_size": "responses of a group of /verify",
    "cohort_timeout": "seconds until a group of /verify that misses responses fails",
    "cohorts": "groups of /verify whose rewards are kept for retries",
}


def parser() -> Parser:
    """Returns the parser of the command line."""
    p = Parser(
        prog="grm serve",
        usage="grm serve --model MODEL [--meta_rm MODEL] [--port N] [options]",
        description="Serves a judge over HTTP: rewards for trainers (/v1/score, /get_reward, "
        "/compare, /verify) and OpenAI-style chat completions. /docs describes the routes.",
        epilog=f"An API key is read from ${KEY_VARIABLE}, or from the file that "
        f"${KEY_VARIABLE}_FILE names. Exit status: 0 after SIGTERM or Ctrl-C, 2 wrong command "
        "line, files or weights.",
    )
    add = p.add_argument
    add("--model", required=True, help="model folder, checkpoint, GGUF file or hub name")
    add_lora_argument(add)
    add("--meta_rm", metavar="PATH", help="meta reward model that selects the critiques that vote")
    add("--tokenizer", metavar="PATH", help="tokenizer (default: the model's own)")
    add("--template", metavar="NAME", help="template family, name or file (default: the model's)")
    add("--meta_template", metavar="NAME", help="template of the meta reward model")
    add("--host", default="127.0.0.1", help="address to bind (default 127.0.0.1: this machine)")
    add("--port", type=PORT, default=8000, help="port; 0: any free one (default 8000)")
    add_device = add_device_arguments(p)
    add_device("--prompt_slots", type=POSITIVE, help="prompts in a batch (default 64, on a CPU 16)")
    add_device("--rows", type=POSITIVE, help="samples of one prompt in a batch (default 4)")
    add_device(
        "--max_prompt",
        type=POSITIVE,
        help="longest prompt in tokens (default: half of the context, at most 4096); of a scalar "
        "reward model, longest conversation with its response (default: the context, at most 4096)",
    )
    add_device(
        "--max_new_tokens",
        type=POSITIVE,
        help="longest critique in tokens (default: from the model's judge.json, else 1024)",
    )
    add_device(
        "--expected", action="store_true", help="allow expected scores; compiles more programs"
    )
    add(
        "--options",
        metavar="JSON",
        default="{}",
        help='fields of RewardOptions for /get_reward, /compare and /verify, such as {"k": 4}',
    )
    limits = p.add_argument_group("limits")
    for field in dataclasses.fields(Limits):
        limits.add_argument(
            f"--{field.name}",
            type=RANGES[field.name],
            default=field.default,
            help=f"{_HELP[field.name]} (default {field.default:g})",
        )
    add("--log_texts", action="store_true", help="write request bodies to the log")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs `grm serve`; returns the exit status."""
    return run_command("grm serve", lambda: _run(parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    limits = Limits(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Limits)})
    options, key = reward_options(args.options), api_key(KEY_VARIABLE)
    if not key and not _is_loopback(args.host):
        print(
            f"grm serve: warning: {args.host} is reachable from other machines and no API key is "
            f"set: anybody who reaches the port can use the model; set ${KEY_VARIABLE}",
            file=sys.stderr,
        )
    try:
        from grm_jax.serving.guard import log_to_stderr
        from grm_jax.serving.scoring import check_options
        from grm_jax.serving.server import SIGNALS, bound, serve
    except ModuleNotFoundError as error:
        raise ValueError(
            f'{error.name} is not installed: pip install "grm_jax[serve]" has what the server needs'
        ) from None

    with bound(args.host, args.port) as listener:
        service = service_from(args, limits)
        check_options(service, options)
        service.options = options
        log_to_stderr()
        return asyncio.run(serve(service, listener, key, SIGNALS))


def reward_options(text: str) -> RewardOptions:
    """Returns the options of --options. Raises ValueError that names it."""
    from grm_jax.judging.rewards import options_of

    try:
        fields = strict_json.loads(text, unique_keys=True)
        if not isinstance(fields, dict):
            raise ValueError("give a JSON object")
        return options_of(fields)
    except ValueError as error:
        raise ValueError(f"--options {text:.80}: {error}") from None


def service_from(args: argparse.Namespace, limits: Limits) -> Service:
    """Loads the judge of the arguments and builds its service.

    Raises ValueError for an option that has no effect on a scalar reward model, before its weights
    are read.
    """
    from grm_jax.judging.arguments import mesh_from
    from grm_jax.judging.judge import Judge
    from grm_jax.judging.scalar_options import check_options, check_unused, is_scalar
    from grm_jax.serving.service import Lengths, build

    if scalar := is_scalar(args.model, args.lora):
        given = {name: getattr(args, name) for name in WITH_CRITIQUES}
        check_unused(args.model, given, is_command_line=True)
        options = reward_options(args.options)
        check_options(args.model, options.of_judge(Options().max_new_tokens))
    judge = Judge.load(
        args.model,
        meta_rm=args.meta_rm,
        mesh=mesh_from(args.mesh),
        template=args.template,
        dtype=args.dtype,
        quantize=args.quantize,
        lora=args.lora,
        kv_cache_dtype=args.kv_cache_dtype,
        tokenizer=args.tokenizer,
        meta_template=args.meta_template,
        prompt_slots=args.prompt_slots if scalar else None,
    )
    context = judge.context or 8192
    longest = min(4096, context if scalar else context // 2)
    lengths = Lengths(args.max_prompt or longest, args.max_new_tokens or judge.max_new_tokens)
    batch = (args.prompt_slots, args.rows)
    return build(judge, limits, lengths, batch, args.expected, args.log_texts)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
