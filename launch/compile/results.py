"""The figures of a compiled program, and result files: JSON with every figure, Markdown tables."""

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax import strict_json
from grm_jax.evals.tables import markdown_table, text_table
from grm_jax.run_store import RunStore
from grm_jax.storage import PathLike, as_path, write_atomic
from launch.compile.slices import GIB

# Names in result files of earlier versions.
_OLD_NAMES = {
    "beside": "resident",
    "load": "load_average",
    "unbounded_loops": "loops_without_bound",
    "unstated_kernels": "kernels_without_cost",
}


@dataclasses.dataclass
class Result:
    """Figures of one program. Bytes and FLOPs are per chip, times are seconds.

    Attributes:
      load_average: of the machine when the compiler started; on a busy one, compile times mislead.
      hbm_available: bytes that the compiler grants a program.
      resident: bytes of other arrays on the chip while the program runs.
      arguments, outputs: bytes of the program's arrays.
      aliased: bytes of outputs that reuse donated arguments.
      temporaries: `peak` less `resident`, arguments, and outputs that are not aliased.
      peak: the most bytes alive at once, `resident` included; it must fit `hbm_available`. If the
        program does not fit, the bytes that it needs (0: unknown).
      headroom: free share of the HBM at the peak.
      roofline_seconds: the largest of the compute, hbm, ici and dcn times, each at its full rate
        and all overlapped; `bound` names it.
      loops_without_bound: loops counted `assumed_trip_count` times.
      kernels_without_cost: kernels that state no FLOPs; `flops` does not include them.
      error: why the program does not fit.
    """

    program: str
    slice: str
    num_slices: int
    chips: int
    mesh: dict[str, int]
    compile_seconds: float = 0.0
    compile_cpu_seconds: float = 0.0
    load_average: float = 0.0
    hbm_available: int = 0
    resident: int = 0
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
    loops_without_bound: int = 0
    kernels_without_cost: int = 0
    error: str = ""

    @property
    def fits(self) -> bool:
        return not self.error

    @property
    def flops_ratio(self) -> float:
        """FLOPs of the program over the model's formula: remat, padding and masked work add up."""
        return self.flops / self.model_flops if self.model_flops else 0.0

    @property
    def slices(self) -> str:
        """`2 x v5p-128`, or `v5p-128` for one slice."""
        return f"{self.num_slices} x {self.slice}" if self.num_slices > 1 else self.slice

    def set_peak(self, peak: int) -> None:
        self.peak, self.headroom = peak, 1 - peak / self.hbm_available


def from_json(row: Mapping[str, Any]) -> Result:
    """Reads one result of a JSON file, also of earlier versions."""
    fields = {_OLD_NAMES.get(k, k): v for k, v in row.items() if k != "flops_ratio"}
    return Result(**fields)


def open_store(path: PathLike, overwrite: bool = False) -> RunStore:
    """Opens the results beside the result files `path`, one per program that ever completed.

    Raises ValueError if the file is damaged, BlockingIOError if another run is writing it.
    """
    existing = "overwrite" if overwrite else "resume"
    return RunStore(
        _beside(path, ".programs.jsonl"),
        {"records": "compiled programs"},
        key="program_key",
        existing=existing,
    )


def heading(result: Result) -> str:
    """Returns the start of a summary: `sft_update on v5p-128: `."""
    return f"{result.program} on {result.slices}: "


def summary(result: Result, with_heading: bool = True) -> str:
    """One line: `sft_update on v5p-128: compiled in 60 s, peak 61.27 of 95.74 GiB ...`."""
    r = result
    head = heading(result) if with_heading else ""
    if not r.fits:
        stopped = f" (the compiler stopped after {r.compile_seconds:.0f} s)"
        return head + r.error + (stopped if r.compile_seconds else "")
    kernels = f", without the FLOPs of {r.kernels_without_cost} kernels"
    return (
        f"{head}compiled in {r.compile_seconds:.0f} s, "
        f"peak {_gib(r.peak)} of {_gib(r.hbm_available)} GiB ({r.headroom:.0%} free), "
        f"roofline {_duration(r.roofline_seconds)} ({r.bound})"
        f"{kernels if r.kernels_without_cost else ''}"
    )


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


COLUMNS = {
    "program": lambda r: r.program,
    "slice": lambda r: r.slices,
    "mesh (data, fsdp, tensor)": lambda r: " x ".join(map(str, r.mesh.values())),
    "compile s": lambda r: f"{r.compile_seconds:.0f}",
    "CPU s": lambda r: f"{r.compile_cpu_seconds:.0f}",
    "load": lambda r: f"{r.load_average:.0f}",
    "resident GiB": lambda r: _gib(r.resident) if r.resident else "-",
    "arguments GiB": lambda r: _gib(r.arguments) if r.fits else "-",
    "temporaries GiB": lambda r: _gib(r.temporaries) if r.fits else "-",
    "peak GiB": lambda r: _gib(r.peak) if r.peak else "-",
    "HBM GiB": lambda r: _gib(r.hbm_available),
    "free": lambda r: f"{r.headroom:.0%}" if r.fits else "does not fit",
    "TFLOP": lambda r: f"{r.flops / 1e12:.2f}" if r.fits else "-",
    "of model": lambda r: f"{r.flops_ratio:.2f}" if r.fits and r.model_flops else "-",
    "HBM GB": lambda r: f"{r.hbm_bytes / 1e9:.1f}" if r.fits else "-",
    "ICI GB": lambda r: f"{sum(r.ici_bytes.values()) / 1e9:.2f}" if r.fits else "-",
    "DCN GB": lambda r: f"{sum(r.dcn_bytes.values()) / 1e9:.2f}" if r.fits else "-",
    "roofline": lambda r: _duration(r.roofline_seconds) if r.fits else "-",
    "bound": lambda r: r.bound or "-",
}
LEGEND = (
    "The compiler's figures and a roofline, per chip; not measurements: no TPU was used. `CPU s`: "
    "seconds of all cores. `load`: load average of the machine when the compiler started. "
    "`resident`: other arrays on the chip. `of model`: FLOPs of the program over the model's "
    "formula. `free`: HBM left at the peak. `roofline`: the longest of compute, HBM, ICI and DCN "
    "at their full rates."
)


# Of the terminal, at most 80 columns wide; the Markdown file has COLUMNS.
TERMINAL = {
    "program": COLUMNS["program"],
    "fits": lambda r: "yes" if r.fits else "no",
    "peak of HBM": lambda r: f"{_gib(r.peak) if r.peak else '?'} of {_gib(r.hbm_available)} GiB",
    "roofline": COLUMNS["roofline"],
    "bound": COLUMNS["bound"],
    "compile s": COLUMNS["compile s"],
}


def print_table(results: Sequence[Result]) -> None:
    """Prints six columns of the results, and their slice where there are several."""
    columns, left = dict(TERMINAL), 1
    if len({result.slices for result in results}) > 1:
        first = {name: COLUMNS[name] for name in ("program", "slice")}
        columns, left = {**first, **columns}, 2
    rows = [[column(result) for column in columns.values()] for result in results]
    print(f"\n{text_table(list(columns), rows, left)}\n")
    print("By the compiler, per chip; not measured. roofline: the least time of one run.")


def markdown(results: Sequence[Result]) -> str:
    rows = [[column(result) for column in COLUMNS.values()] for result in results]
    return "\n".join([*markdown_table(list(COLUMNS), rows), "", LEGEND, ""])


def versions(*names: str) -> str:
    """Returns `jax 0.10.2, libtpu 0.0.42` of installed packages."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def provenance(title: str) -> dict[str, str]:
    """Returns the title, the versions of the libraries, and the machine, for a result file."""
    return {
        "what": title,
        "versions": versions("jax", "libtpu", "flax"),
        "compiled on": f"{os.cpu_count()} cores, {platform.machine()}, no TPU",
        "date": time.strftime("%Y-%m-%d"),
    }


def _beside(path: PathLike, suffix: str) -> Any:
    """`DIR/gemma2.5` + `.md` is `DIR/gemma2.5.md`; so is `DIR/gemma2.5.json` + `.md`."""
    path = as_path(path)
    return path.parent / (path.name.removesuffix(".json").removesuffix(".md") + suffix)


def write(
    results: Sequence[Result], path: PathLike, about: Mapping[str, str]
) -> tuple[PathLike, PathLike]:
    """Writes `path`.json with every figure and `path`.md with the table; returns the two files.

    Args:
      about: provenance, written to both files.
    """
    rows = [{**dataclasses.asdict(r), "flops_ratio": r.flops_ratio} for r in results]
    content = strict_json.dumps({"about": dict(about), "results": rows}, indent=1)
    files = _beside(path, ".json"), _beside(path, ".md")
    write_atomic(files[0], content + "\n")
    head = "".join(f"- {key}: {value}\n" for key, value in about.items())
    title = files[1].name.removesuffix(".md").replace("_", " ")
    write_atomic(files[1], f"# {title}\n\n{head}\n{markdown(results)}")
    return files
