"""TPU generations and slices by Google Cloud's accelerator types, and devices to compile for.

To add a generation, register it below: the command line, error messages, `--compile_only`, queued
resources and GKE manifests all read GENERATIONS.

Bandwidths and peaks are from Google Cloud's page on each generation and the scaling book
(jax-ml.github.io/scaling-book). `hbm_bytes` is what the compiler grants a program, slightly less
than the page says: the figure is from the compiler's out-of-memory message (libtpu 0.0.42).
"""

import dataclasses
import difflib
import math
import os
from typing import Any, Literal

from grm_jax.registry import Registry

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Generation:
    """One TPU generation: Google Cloud's names for it, the peaks of one chip, its slice shapes.

    Attributes:
      name: prefix of the accelerator types, as in `v5litepod-16`.
      names_count: what the number in an accelerator type counts: chips, or cores (two per chip).
      topology_prefix, chip_config: the TPU compiler's names.
      runtime_version: software of the TPU VMs (Google Cloud's page on TPU runtime versions).
      gke_accelerator: node label of GKE (its page on planning TPUs).
      bf16_flops: peak FLOP/s.
      hbm_bytes: memory that the compiler grants a program.
      hbm_bandwidth: bytes/s.
      ici_link_bandwidth: bytes/s of one link between chips, in one direction.
      shapes: chips along each torus axis, one tuple per slice, in increasing size.
      dcn_host_bandwidth: bytes/s of one host's network, in one direction.
      aliases: other prefixes that users write.
    """

    name: str
    names_count: Literal["chips", "cores"]
    topology_prefix: str
    chip_config: str
    runtime_version: str
    gke_accelerator: str
    bf16_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_link_bandwidth: float
    shapes: tuple[tuple[int, ...], ...]
    dcn_host_bandwidth: float = 25e9
    aliases: tuple[str, ...] = ()

    def slices(self) -> dict[int, "Slice"]:
        """All slices, by the number in their accelerator type."""
        units = 2 if self.names_count == "cores" else 1
        numbers = {math.prod(shape) * units: shape for shape in self.shapes}
        return {n: Slice(f"{self.name}-{n}", self, shape) for n, shape in numbers.items()}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One TPU slice: `shape` is its number of chips along each torus axis."""

    name: str
    generation: Generation
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Whether each axis is a ring: in 2D an axis of 16; in 3D all axes, from one cube on."""
        if len(self.shape) == 2:
            return (self.shape[0] == 16, self.shape[1] == 16, False)
        return (self.chips >= 64,) * 3

    @property
    def host(self) -> tuple[int, int, int]:
        """Chips of one host along each axis."""
        if len(self.shape) == 2 and self.chips in (1, 8):
            return (*self.shape, 1)  # type: ignore[return-value]
        return (2, 2, 1)

    @property
    def chips_per_host(self) -> int:
        return math.prod(self.host)

    @property
    def hosts(self) -> int:
        return max(1, self.chips // self.chips_per_host)

    @property
    def topology(self) -> str:
        """`4x4x8`, as GKE writes it."""
        return "x".join(map(str, self.shape))

    @property
    def topology_name(self) -> str:
        """`v5p:4x4x8`, as the compiler writes it."""
        return f"{self.generation.topology_prefix}:{self.topology}"


def _boxes_of_cubes(*counts: int) -> tuple[tuple[int, ...], ...]:
    """The most compact box of so many 4 x 4 x 4 cubes, in chips: 12 -> (8, 8, 12)."""

    def compact(cubes: int) -> tuple[int, ...]:
        sides = [n for n in range(1, cubes + 1) if cubes % n == 0]
        boxes = [
            (a, b, cubes // (a * b))
            for a in sides
            for b in sides
            if cubes % (a * b) == 0 and a <= b <= cubes // (a * b)
        ]
        return tuple(4 * side for side in min(boxes, key=sum))

    return tuple(compact(n) for n in counts)


_RECTANGLES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL_BOXES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))

GENERATIONS: Registry[Generation] = Registry("TPU generation")


def register(generation: Generation) -> Generation:
    """Adds a generation to GENERATIONS. Raises ValueError if its name is taken."""
    return GENERATIONS.add(generation.name, generation)


register(
    Generation(
        name="v4",
        names_count="cores",
        topology_prefix="v4",
        chip_config="megacore",
        runtime_version="tpu-ubuntu2204-base",
        gke_accelerator="tpu-v4-podslice",
        bf16_flops=275e12,
        hbm_bytes=int(30.75 * GIB),
        hbm_bandwidth=1200e9,
        ici_link_bandwidth=45e9,
        shapes=_SMALL_BOXES + _boxes_of_cubes(1, 2, 3, 4, 8, 12, 16, 32),
    )
)
register(
    Generation(
        name="v5litepod",
        aliases=("v5e",),
        names_count="chips",
        topology_prefix="v5e",
        chip_config="default",
        runtime_version="v2-alpha-tpuv5-lite",
        gke_accelerator="tpu-v5-lite-podslice",
        bf16_flops=197e12,
        hbm_bytes=int(15.75 * GIB),
        hbm_bandwidth=819e9,
        ici_link_bandwidth=45e9,
        shapes=_RECTANGLES,
    )
)
register(
    Generation(
        name="v5p",
        names_count="cores",
        topology_prefix="v5p",
        chip_config="megacore",
        runtime_version="v2-alpha-tpuv5",
        gke_accelerator="tpu-v5p-slice",
        bf16_flops=459e12,
        hbm_bytes=int(95.74 * GIB),
        hbm_bandwidth=2765e9,
        ici_link_bandwidth=90e9,
        shapes=_SMALL_BOXES
        + _boxes_of_cubes(1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 14, 16, 18, 24, 32, 48, 64, 96),
    )
)
register(
    Generation(
        name="v6e",
        names_count="chips",
        topology_prefix="v6e",
        chip_config="default",
        runtime_version="v2-alpha-tpuv6e",
        gke_accelerator="tpu-v6e-slice",
        bf16_flops=918e12,
        hbm_bytes=int(31.25 * GIB),
        hbm_bandwidth=1600e9,
        ici_link_bandwidth=90e9,
        shapes=_RECTANGLES,
    )
)


def all_slices() -> dict[str, Slice]:
    """Every slice of every registered generation, by accelerator type."""
    return {s.name: s for g in GENERATIONS.values() for s in g.slices().values()}


def example_names() -> list[str]:
    """One small slice of each generation: `v4-8`, `v5litepod-8`, ..."""
    return [
        f"{name}-{min(n for n in generation.slices() if n >= 8)}"
        for name, generation in GENERATIONS.items()
    ]


def get_slice(name: str) -> Slice:
    """Returns the slice of an accelerator type; aliases such as `v5e-16` are accepted.

    Raises ValueError with the nearest names for a slice that does not exist.
    """
    prefix, _, number = name.strip().lower().partition("-")
    aliases = {alias: g.name for g in GENERATIONS.values() for alias in g.aliases}
    prefix = aliases.get(prefix, prefix)
    if prefix not in GENERATIONS:
        near = difflib.get_close_matches(f"{prefix}-{number}", all_slices(), n=3, cutoff=0.5)
        raise ValueError(
            f"slice {name!r} does not exist: nearest are {', '.join(near or example_names())}"
        )
    slices = GENERATIONS[prefix].slices()
    size = int(number) if number.isdigit() else 0
    if size in slices:
        return slices[size]
    unit = "TensorCores, two per chip" if GENERATIONS[prefix].names_count == "cores" else "chips"
    near = [f"{prefix}-{n}" for n in sorted(sorted(slices, key=lambda n: abs(n - size))[:6])]
    raise ValueError(
        f"slice {name!r} does not exist ({prefix} counts {unit}): nearest are {', '.join(near)}"
    )


def quiet_environment() -> None:
    """Stops libtpu from searching for chips or a metadata server, and from locking the machine.

    Call it before JAX is first used.
    """
    # Any known type stops a warning; the compiler takes the slice from its own arguments.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    for name in ("TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL", "TF_CPP_MIN_LOG_LEVEL"):
        os.environ.setdefault(name, "3")


def slice_devices(name: str, num_slices: int = 1) -> list[Any]:
    """Returns compile-only devices of `num_slices` slices; `slice_index` is the slice of each.

    Raises:
      ValueError: unknown name or number of slices.
      RuntimeError: libtpu is missing.
    """
    tpu_slice = get_slice(name)
    if num_slices < 1:
        raise ValueError(f"num_slices={num_slices}: use 1 or more")
    quiet_environment()
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(
            platform="tpu",
            topology_name=tpu_slice.topology_name,
            chip_config_name=tpu_slice.generation.chip_config,
            chips_per_host_bounds=tpu_slice.host,
            num_slices=num_slices,
            wrap=tpu_slice.wrap,
        )
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RuntimeError(
            f"the TPU compiler rejects {tpu_slice.name} ({tpu_slice.topology_name}): {reason}; "
            'compiling for a slice needs libtpu, on Linux: pip install -e ".[tpu]" in the clone'
        ) from error
    devices = list(topology.devices)
    if len(devices) != num_slices * tpu_slice.chips:
        raise RuntimeError(
            f"{tpu_slice.name}: libtpu reports {len(devices)} devices, "
            f"expected {num_slices * tpu_slice.chips}"
        )
    return devices
