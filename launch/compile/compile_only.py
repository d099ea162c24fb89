"""Compiles programs for a slice that is not there and says what they need: HBM, FLOPs, traffic, and a roofline.

These are the compiler's figures and a roofline's, not measurements: no TPU is used.
"""

import contextlib
import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.compile import collectives, hlo_cost
from launch.compile.slices import GIB, Slice, get_slice


@dataclasses.dataclass(frozen=True)
class Task:
    """A program to compile. fn: jitted. args: abstract, with shardings on a mesh of the slice's devices.

    model_flops: what the whole program must compute by the model's own formula, over all chips (0: not said).
    tokens: how many tokens one run works on, over all chips.
    beside: bytes per chip of what stays there while the program runs, and is none of its arguments.
    one_trip: the program is a loop that ends on data; its FLOPs, traffic and times are those of one trip.
    """

    name: str
    fn: Any
    args: tuple
    mesh: Any
    model_flops: float = 0.0
    tokens: int = 0
    assumed_trips: int = 1
    beside: int = 0
    one_trip: bool = False


@dataclasses.dataclass
class Result:
    """Figures of one program. Bytes and FLOPs are per chip, times are seconds.

    load: the machine's load average when compiling began: compile seconds mean little on a busy one.
    arguments, outputs, aliased: of the compiled program; aliased outputs take the place of donated arguments. peak: the most that is alive at
    once, which is what must fit, `beside` included: what else stays on the chip meanwhile. temporaries: peak less `beside`, arguments, and
    outputs that stand by themselves. headroom: what is left of the HBM, as a share of it. roofline: the largest of compute, hbm, ici and dcn,
    had each of them its full rate and all overlapped; `bound` names it.
    unstated_kernels: kernels whose FLOPs nobody states, and which are missing from `flops`.
    error: why the program does not fit, with the bytes that it asks for in `peak` where they are known.
    """

    program: str
    slice: str
    num_slices: int
    chips: int
    mesh: dict[str, int]
    compile_seconds: float = 0.0
    compile_cpu_seconds: float = 0.0
    load: float = 0.0
    hbm_available: int = 0
    beside: int = 0
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    peak: int = 0
    headroom: float = 0.0
    flops: float = 0.0
    model_flops: float = 0.0
    hbm_bytes: float = 0.0
    ici_bytes: dict[str, float] = dataclasses.field(default_factory=dict)
    dcn_bytes: dict[str, float] = dataclasses.field(default_factory=dict)
    compute_seconds: float = 0.0
    hbm_seconds: float = 0.0
    ici_seconds: float = 0.0
    dcn_seconds: float = 0.0
    roofline_seconds: float = 0.0
    bound: str = ""
    tokens: int = 0
    unbounded_loops: int = 0
    unstated_kernels: int = 0
    error: str = ""

    @property
    def fits(self) -> bool:
        return not self.error

    @property
    def flops_ratio(self) -> float:
        """FLOPs in the program over those of the model's formula: rematerialisation, padding and masked work show here."""
        return self.flops / self.model_flops if self.model_flops else 0.0


def compile_task(task: Task, slice_name: str, num_slices: int = 1) -> Result:
    """Compiles one program and reads its figures. A program that does not fit is a Result with `error`, other failures are raised."""
    import jax

    part = get_slice(slice_name)
    devices = list(task.mesh.devices.flat)
    result = Result(
        task.name,
        part.name,
        num_slices,
        len(devices),
        dict(task.mesh.shape),
        hbm_available=part.chip.hbm_bytes,
    )
    result.model_flops, result.tokens = task.model_flops / len(devices), task.tokens
    result.arguments, result.beside = argument_bytes(task.args), task.beside
    if result.arguments + task.beside > part.chip.hbm_bytes:
        # The compiler would look for ways out for minutes, and there are none.
        result.peak = result.arguments + task.beside
        result.error = _refusal("the arguments alone need", result.peak, part)
        result.headroom = 1 - result.peak / part.chip.hbm_bytes
        return result
    result.load = os.getloadavg()[0]
    start, cpu = time.perf_counter(), time.process_time()

    def stop():
        result.compile_seconds = time.perf_counter() - start
        result.compile_cpu_seconds = time.process_time() - cpu

    try:
        with jax.set_mesh(task.mesh), _no_compilation_cache():
            compiled = task.fn.lower(*task.args).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        stop()
        result.error, result.peak = _overflow(str(error), part)
        result.headroom = 1 - result.peak / part.chip.hbm_bytes
        return result
    stop()
    _memory(result, compiled.memory_analysis())
    if (
        result.peak > part.chip.hbm_bytes
    ):  # the compiler knows nothing of what stays beside the program
        result.error = _refusal("the program and what stays beside it need", result.peak, part)
    cost = hlo_cost.cost(compiled.as_text(), task.assumed_trips)
    if task.one_trip:
        twice = hlo_cost.cost(compiled.as_text(), task.assumed_trips + 1)
        twice.add(cost, -1)
        cost = twice
    result.flops, result.hbm_bytes, result.unbounded_loops = (
        cost.flops,
        cost.hbm_bytes,
        len(cost.unbounded),
    )
    result.unstated_kernels = len(cost.unstated)
    first = [
        d for d in devices if getattr(d, "slice_index", 0) == getattr(devices[0], "slice_index", 0)
    ]
    result.ici_bytes, result.ici_seconds = collectives.summarise(cost.collectives, first, part)
    result.dcn_bytes = dict(cost.dcn)
    result.dcn_seconds = collectives.dcn_seconds(result.dcn_bytes, part, num_slices)
    result.compute_seconds = cost.flops / part.chip.bf16_flops
    result.hbm_seconds = cost.hbm_bytes / part.chip.hbm_bandwidth
    times = {name: getattr(result, f"{name}_seconds") for name in ("compute", "hbm", "ici", "dcn")}
    result.bound = max(times, key=times.__getitem__)
    result.roofline_seconds = times[result.bound]
    return result


@contextlib.contextmanager
def _no_compilation_cache():
    """Compile seconds are those of compiling; and an executable for devices that do not exist cannot be read back."""
    import jax

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _memory(result: Result, stats) -> None:
    result.arguments = stats.argument_size_in_bytes
    result.outputs = stats.output_size_in_bytes
    result.aliased = stats.alias_size_in_bytes
    # XLA's temp_size counts what loops carry more than once; the peak is what its own check of the HBM goes by.
    program = stats.peak_memory_in_bytes
    result.peak = program + result.beside
    result.temporaries = max(0, program - result.arguments - (result.outputs - result.aliased))
    result.headroom = 1 - result.peak / result.hbm_available


def _overflow(message: str, part: Slice) -> tuple[str, int]:
    """(one line, bytes asked for or 0) from the compiler's out-of-memory message."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    asked = re.search(r"\(([\d.]+)([KMGT])\) exceeds available|Used ([\d.]+)([KMGT]) of", message)
    peak = 0
    if asked:
        number, unit = [g for g in asked.groups() if g]
        peak = int(float(number) * units[unit])
    return _refusal("the program needs", peak, part), peak


def _refusal(what: str, asked: int, part: Slice) -> str:
    need = f"{asked / GIB:.1f} GiB per chip" if asked else "more per chip than there is"
    return f"does not fit: {what} {need}, {part.name} has {part.chip.hbm_bytes / GIB:.2f}"


def argument_bytes(args: tuple) -> int:
    """What abstract arguments take on one chip, by their shardings; without one an argument lies whole on each."""
    import math

    import jax

    def shape(leaf):
        return leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape

    return sum(math.prod(shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(args))


def compile_tasks(
    tasks: Sequence[Task], slice_name: str, num_slices: int = 1, say: Callable[[str], None] = print
) -> list[Result]:
    """All of them, one line each as they come."""
    results = []
    for task in tasks:
        results.append(compile_task(task, slice_name, num_slices))
        say(one_line(results[-1]))
    return results


def one_line(r: Result) -> str:
    where = (
        f"{r.program} on {r.num_slices} x {r.slice}"
        if r.num_slices > 1
        else f"{r.program} on {r.slice}"
    )
    if not r.fits:
        return f"{where}: {r.error}" + (
            f" (the compiler stopped after {r.compile_seconds:.0f} s)" if r.compile_seconds else ""
        )
    return (
        f"{where}: compiled in {r.compile_seconds:.0f} s, peak {r.peak / GIB:.2f} of {r.hbm_available / GIB:.2f} GiB "
        f"({r.headroom:.0%} free), roofline {_seconds(r.roofline_seconds)} ({r.bound})"
        + (f", without the FLOPs of {r.unstated_kernels} kernels" if r.unstated_kernels else "")
    )


COLUMNS = (
    ("program", lambda r: r.program),
    ("slice", lambda r: f"{r.num_slices} x {r.slice}" if r.num_slices > 1 else r.slice),
    ("mesh (data, fsdp, tensor)", lambda r: " x ".join(str(n) for n in r.mesh.values())),
    ("compile s", lambda r: f"{r.compile_seconds:.0f}"),
    ("CPU s", lambda r: f"{r.compile_cpu_seconds:.0f}"),
    ("load", lambda r: f"{r.load:.0f}"),
    ("beside GiB", lambda r: f"{r.beside / GIB:.2f}" if r.beside else "-"),
    ("arguments GiB", lambda r: f"{r.arguments / GIB:.2f}" if r.fits else "-"),
    ("temporaries GiB", lambda r: f"{r.temporaries / GIB:.2f}" if r.fits else "-"),
    ("peak GiB", lambda r: f"{r.peak / GIB:.2f}" if r.peak else "-"),
    ("HBM GiB", lambda r: f"{r.hbm_available / GIB:.2f}"),
    ("free", lambda r: f"{r.headroom:.0%}" if r.fits else "does not fit"),
    ("TFLOP", lambda r: f"{r.flops / 1e12:.2f}" if r.fits else "-"),
    ("of model", lambda r: f"{r.flops_ratio:.2f}" if r.fits and r.model_flops else "-"),
    ("HBM GB", lambda r: f"{r.hbm_bytes / 1e9:.1f}" if r.fits else "-"),
    ("ICI GB", lambda r: f"{sum(r.ici_bytes.values()) / 1e9:.2f}" if r.fits else "-"),
    ("DCN GB", lambda r: f"{sum(r.dcn_bytes.values()) / 1e9:.2f}" if r.fits else "-"),
    ("roofline", lambda r: _seconds(r.roofline_seconds) if r.fits else "-"),
    ("bound", lambda r: r.bound or "-"),
)
LEGEND = (
    "Compiled without a TPU: compiler's figures and a roofline, not measurements. Per chip. `CPU s`: seconds of all cores; `load`: of the machine "
    "when the compiler began, others' work included. `of model`: FLOPs in the program over those of the model's formula. `free`: HBM left at "
    "the peak. `roofline`: the longest of compute, HBM, ICI and DCN at their full rates."
)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def print_table(results: Sequence[Result], console=None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(caption=LEGEND, caption_justify="left")
    for title, _ in COLUMNS:
        table.add_column(
            title, justify="left" if title in ("program", "slice", "bound") else "right"
        )
    for r in results:
        table.add_row(*(column(r) for _, column in COLUMNS))
    (console or Console(width=200)).print(table)


def markdown(results: Sequence[Result]) -> str:
    lines = ["| " + " | ".join(title for title, _ in COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(column(r) for _, column in COLUMNS) + " |" for r in results]
    return "\n".join([*lines, "", LEGEND, ""])


def about(what: str) -> dict[str, str]:
    """The setting of a result file: what was compiled, by which versions, on what."""
    import importlib.metadata as metadata
    import platform

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "libtpu", "flax"))
    return {
        "what": what,
        "versions": versions,
        "compiled on": f"{os.cpu_count()} cores, {platform.machine()}, no TPU",
        "date": time.strftime("%Y-%m-%d"),
    }


def write(results: Sequence[Result], path: Path, about: dict) -> None:
    """`path`.json with every figure and `path`.md with the table. about: the setting, written into both."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**dataclasses.asdict(r), "flops_ratio": r.flops_ratio} for r in results]
    path.with_suffix(".json").write_text(
        json.dumps({"about": about, "results": rows}, indent=1) + "\n"
    )
    head = "".join(f"- {key}: {value}\n" for key, value in about.items())
    path.with_suffix(".md").write_text(
        f"# {path.stem.replace('_', ' ')}\n\n{head}\n{markdown(results)}"
    )
