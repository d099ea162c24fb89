"""Compiles programs for a TPU slice without having one: HBM, FLOPs, traffic, and a roofline.

All figures are the compiler's or a roofline's; nothing is measured.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from grm_jax.run_store import RunStore
from grm_jax.training.machines import argument_bytes
from launch.compile import collectives, hlo_cost
from launch.compile.results import Result, from_json, heading, summary, versions
from launch.compile.slices import GIB, Slice, get_slice

# The modules that compute the figures of a compiled program.
FIGURE_MODULES = ("compile_only", "collectives", "hlo_cost", "hlo_loops", "hlo_text")


@dataclasses.dataclass(frozen=True)
class Task:
    """A program to compile.

    Attributes:
      fn: jitted function.
      args: abstract arguments, with shardings on a mesh of the slice's devices.
      model_flops: FLOPs by the model's formula, over all chips (0: unknown).
      tokens: tokens that one run processes, over all chips.
      resident: bytes per chip of arrays that stay there meanwhile and are not arguments.
      assumed_trip_count: iterations of a loop whose bound the program does not state.
      one_iteration: the program is a loop that ends on data; report one iteration of it.
      cheapest_branches: of conditionals; such as of a decode step without top-p and top-k.
    """

    name: str
    fn: Any
    args: tuple[Any, ...]
    mesh: Any
    model_flops: float = 0.0
    tokens: int = 0
    resident: int = 0
    assumed_trip_count: int = 1
    one_iteration: bool = False
    cheapest_branches: bool = False


def compile_task(task: Task, slice_name: str, num_slices: int = 1) -> Result:
    """Compiles one program and returns its figures.

    A program that does not fit is a Result with `error`; any other failure is raised.
    """
    return _compile(task, *_lower(task, slice_name, num_slices))


def compile_tasks(
    tasks: Sequence[Task],
    slice_name: str,
    num_slices: int = 1,
    report: Callable[..., None] = print,
    store: RunStore | None = None,
) -> list[Result]:
    """Compiles all tasks; reports each in one line as it completes.

    Args:
      report: called as `print`.
      store: results of earlier runs (`results.open_store`). Each result is added to it as it
        completes; a program whose `program_key` is in it is not compiled again.
    """
    lowered = [_lower(task, slice_name, num_slices) for task in tasks]
    keys = [program_key(task, *one) for task, one in zip(tasks, lowered)]
    total = len(tasks)
    if earlier := sum(key in store for key in keys) if store is not None else 0:
        report(f"{earlier} of {total} programs from an earlier run")
    results = []
    for number, (task, key, (result, program)) in enumerate(zip(tasks, keys, lowered), start=1):
        # Before the compiler starts, so that a stopped run shows where it was.
        report(f"{number} of {total}: {heading(result)}", end="", flush=True)
        if store is not None and key in store:
            result = from_json({k: v for k, v in store[key].items() if k != store.key})
            report("compiled by an earlier run")
        else:
            result = _compile(task, result, program)
            if store is not None:
                store.append(key, dataclasses.asdict(result))
            report(summary(result, with_heading=False), flush=True)
        results.append(result)
    return results


def program_key(task: Task, result: Result, lowered: Any) -> str:
    """Returns a hash of everything that the figures of a program depend on.

    That is the lowered module (model, settings, shardings, donation), the task's own figures, the
    slice and the order of its devices, the versions and flags of the compiler, and the code that
    computes the figures. Hashing the module rather than the config and the source tree keeps a
    result until an edit changes the program itself.
    """
    parts = [
        lowered.as_text(),
        repr(dataclasses.replace(task, fn=None, args=(), mesh=None)),
        repr(get_slice(result.slice)),
        result.mesh,
        [str(device) for device in task.mesh.devices.flat],
        versions("jax", "jaxlib", "libtpu"),
        [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")],
        _source_digest(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def _source_digest() -> str:
    files = [Path(__file__).with_name(f"{name}.py") for name in FIGURE_MODULES]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@contextlib.contextmanager
def immediate_interrupt() -> Iterator[None]:
    """Lets Ctrl-C end the process at once; Python would wait until the compiler returns."""
    before = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or before is not signal.default_int_handler:  # ignored, or handled
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _lower(task: Task, slice_name: str, num_slices: int) -> tuple[Result, Any]:
    """Returns (a Result with what is known before compiling, the lowered program)."""
    tpu_slice = get_slice(slice_name)
    result = Result(
        program=task.name,
        slice=tpu_slice.name,
        num_slices=num_slices,
        chips=task.mesh.size,
        mesh=dict(task.mesh.shape),
        hbm_available=tpu_slice.generation.hbm_bytes,
        resident=task.resident,
        arguments=argument_bytes(task.args),
        model_flops=task.model_flops / task.mesh.size,
        tokens=task.tokens,
    )
    with jax.set_mesh(task.mesh), _timed(result):
        return result, task.fn.lower(*task.args)


def _compile(task: Task, result: Result, lowered: Any) -> Result:
    """Compiles a lowered program and adds its figures to the result."""
    result.load_average = os.getloadavg()[0]
    if (required := result.arguments + result.resident) > result.hbm_available:
        # The compiler would search for a schedule for minutes, in vain.
        _reject(result, "the arguments alone need", required)
        result.compile_seconds = result.compile_cpu_seconds = 0.0
        return result
    try:
        with jax.set_mesh(task.mesh), _no_compilation_cache(), _timed(result):
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        _reject(result, "the program needs", _required_bytes(str(error)))
        return result
    tpu_slice, devices = get_slice(result.slice), list(task.mesh.devices.flat)
    _add_memory(result, compiled.memory_analysis())
    _add_cost(result, _cost(compiled.as_text(), task), devices, tpu_slice)
    return result


@contextlib.contextmanager
def _timed(result: Result) -> Iterator[None]:
    start, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        result.compile_seconds += time.perf_counter() - start
        result.compile_cpu_seconds += time.process_time() - cpu


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Disables the cache: it distorts compile times, and cannot load programs of absent devices."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX reads the setting only once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _required_bytes(message: str) -> int:
    """Bytes named in the compiler's out-of-memory message, 0 if there are none."""
    match = re.search(r"\(([\d.]+)([KMGT])\) exceeds available|Used ([\d.]+)([KMGT]) of", message)
    if not match:
        return 0
    number, unit = [group for group in match.groups() if group]
    return int(float(number) * 2 ** (10 * (1 + "KMGT".index(unit))))


def _reject(result: Result, subject: str, required: int) -> None:
    """Records that a program does not fit; required: bytes per chip, 0 if unknown."""
    need = f"{required / GIB:.1f} GiB per chip" if required else "more than a chip has"
    hbm = f"{result.hbm_available / GIB:.2f}"
    result.set_peak(required)
    result.error = f"does not fit: {subject} {need}, {result.slice} has {hbm}"


def _add_memory(result: Result, stats: Any) -> None:
    result.arguments = stats.argument_size_in_bytes
    result.outputs = stats.output_size_in_bytes
    result.aliased = stats.alias_size_in_bytes
    # XLA's temp_size counts loop carries more than once; its own check of the HBM uses the peak.
    program = stats.peak_memory_in_bytes
    result.temporaries = max(0, program - result.arguments - (result.outputs - result.aliased))
    result.set_peak(program + result.resident)
    if result.peak > result.hbm_available:  # the compiler ignores resident arrays
        _reject(result, "the program and the resident arrays need", result.peak)


def _cost(text: str, task: Task) -> hlo_cost.Cost:
    cost = hlo_cost.cost(text, task.assumed_trip_count, task.cheapest_branches)
    if not task.one_iteration:
        return cost
    longer = hlo_cost.cost(text, task.assumed_trip_count + 1, task.cheapest_branches)
    longer.add(cost, -1)
    return longer


def _add_cost(
    result: Result, cost: hlo_cost.Cost, devices: Sequence[Any], tpu_slice: Slice
) -> None:
    """Adds FLOPs and traffic, the time of each at its full rate, and the largest of them."""
    chip = tpu_slice.generation
    first_slice = getattr(devices[0], "slice_index", 0)
    first_devices = [d for d in devices if getattr(d, "slice_index", 0) == first_slice]
    result.flops, result.hbm_bytes = cost.flops, cost.hbm_bytes
    result.loops_without_bound = len(cost.unbounded)
    result.kernels_without_cost = len(cost.kernels_without_cost)
    result.ici_bytes, result.ici_seconds = collectives.ici_traffic(
        cost.collectives, first_devices, tpu_slice
    )
    result.dcn_bytes = dict(cost.dcn)
    result.dcn_seconds = collectives.dcn_seconds(cost.dcn, tpu_slice, result.num_slices)
    result.compute_seconds = cost.flops / chip.bf16_flops
    result.hbm_seconds = cost.hbm_bytes / chip.hbm_bandwidth
    times = {name: getattr(result, f"{name}_seconds") for name in ("compute", "hbm", "ici", "dcn")}
    result.bound = max(times, key=times.__getitem__)
    result.roofline_seconds = times[result.bound]
