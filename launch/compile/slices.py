"""TPU slices by the names that Google Cloud gives them, and their devices without having them.

v4-N and v5p-N count TensorCores (two per chip); v5litepod-N and v6e-N count chips. Bandwidths and peaks: Google Cloud's pages on each
generation and the scaling book (jax-ml.github.io/scaling-book). `hbm_bytes` is what the compiler leaves to a program, a little under the
figure on the page: it is read off the compiler's own out-of-memory message (libtpu 0.0.42).
"""

import dataclasses
import difflib
import os

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip: peaks in FLOP/s and bytes/s. `ici_link` is one link, one way; `dcn_host` is one host's network, one way."""

    kind: str
    topology_prefix: str
    config: str
    cores: int
    bf16_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_link: float
    torus: int
    dcn_host: float = 25e9


CHIPS = {
    "v4": Chip("v4", "v4", "megacore", 2, 275e12, int(30.75 * GIB), 1200e9, 45e9, 3),
    "v5litepod": Chip("v5e", "v5e", "default", 1, 197e12, int(15.75 * GIB), 819e9, 45e9, 2),
    "v5p": Chip("v5p", "v5p", "megacore", 2, 459e12, int(95.74 * GIB), 2765e9, 90e9, 3),
    "v6e": Chip("v6e", "v6e", "default", 1, 918e12, int(31.25 * GIB), 1600e9, 90e9, 2),
}
ALIASES = {"v5e": "v5litepod"}

_FLAT = {
    1: (1, 1),
    4: (2, 2),
    8: (2, 4),
    16: (4, 4),
    32: (4, 8),
    64: (8, 8),
    128: (8, 16),
    256: (16, 16),
}
_SMALL_3D = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}
# Whole cubes of 4 x 4 x 4 chips; the count is of cubes.
_CUBES = {
    "v4": (1, 2, 3, 4, 8, 12, 16, 32),
    "v5p": (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 14, 16, 18, 24, 32, 48, 64, 96),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice. `shape` is its chips along each torus axis, `wrap` whether that axis closes to a ring, `host` one host's chips."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    wrap: tuple[bool, bool, bool]
    host: tuple[int, int, int]

    @property
    def chips(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def chips_per_host(self) -> int:
        return self.host[0] * self.host[1] * self.host[2]

    @property
    def hosts(self) -> int:
        return max(1, self.chips // self.chips_per_host)

    @property
    def topology_name(self) -> str:
        return f"{self.chip.topology_prefix}:{'x'.join(map(str, self.shape))}"


def _compact(cubes: int) -> tuple[int, int, int]:
    """The box of `cubes` cubes with the least sum of sides, in chips: 12 -> (8, 8, 12)."""
    boxes = [
        (a, b, cubes // (a * b))
        for a in range(1, cubes + 1)
        for b in range(a, cubes + 1)
        if cubes % (a * b) == 0 and cubes // (a * b) >= b
    ]
    a, b, c = min(boxes, key=sum)
    return 4 * a, 4 * b, 4 * c


def _slices() -> dict[str, Slice]:
    table: dict[str, Slice] = {}
    for family, chip in CHIPS.items():
        if chip.torus == 2:
            for chips, shape in _FLAT.items():
                host = (1, 1, 1) if chips == 1 else (2, 4, 1) if chips == 8 else (2, 2, 1)
                wrap = (shape[0] == 16, shape[1] == 16, False)
                table[f"{family}-{chips}"] = Slice(f"{family}-{chips}", chip, shape, wrap, host)
        else:
            cubes = {64 * n: _compact(n) for n in _CUBES[family]}
            for chips, box in (_SMALL_3D | cubes).items():
                closed = chips >= 64
                name = f"{family}-{chips * chip.cores}"
                table[name] = Slice(name, chip, box, (closed,) * 3, (2, 2, 1))
    return table


SLICES = _slices()


def get_slice(name: str) -> Slice:
    """The slice of that accelerator name (`v5e-16` is taken for `v5litepod-16`).

    Raises ValueError with the nearest names for one that does not exist.
    """
    family, _, size = name.strip().lower().partition("-")
    key = f"{ALIASES.get(family, family)}-{size}"
    if key in SLICES:
        return SLICES[key]
    family = key.partition("-")[0]
    if family in CHIPS:
        same = [n for n in SLICES if n.partition("-")[0] == family]
        unit = "TensorCores, two per chip" if CHIPS[family].cores == 2 else "chips"
        wanted = int(size) if size.isdigit() else 0
        near = sorted(
            sorted(same, key=lambda n: abs(int(n.partition("-")[2]) - wanted))[:6], key=same.index
        )
        raise ValueError(
            f"slice {name!r} does not exist ({family} counts {unit}): nearest are {', '.join(near)}"
        )
    near = difflib.get_close_matches(key, SLICES, n=3, cutoff=0.5) or [
        "v4-8",
        "v5litepod-8",
        "v5p-8",
        "v6e-8",
    ]
    raise ValueError(f"slice {name!r} does not exist: nearest are {', '.join(near)}")


def quiet_environment() -> None:
    """Keeps libtpu from looking for a metadata server or a chip, and from wanting the machine for itself. Call before JAX is first used."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def slice_devices(name: str, num_slices: int = 1) -> list:
    """The devices of `num_slices` slices of that name, to compile for; none of them exists. `slice_index` tells the slices apart.

    Raises ValueError for an unknown name or number of slices, RuntimeError without libtpu.
    """
    part = get_slice(name)
    if num_slices < 1:
        raise ValueError(f"num_slices={num_slices}: use 1 or more")
    quiet_environment()
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(
            platform="tpu",
            topology_name=part.topology_name,
            chip_config_name=part.chip.config,
            chips_per_host_bounds=part.host,
            num_slices=num_slices,
            wrap=part.wrap,
        )
    except Exception as error:
        raise RuntimeError(
            f"cannot describe {part.name} ({part.topology_name}) to the TPU compiler: {_first_line(error)}; "
            'compiling for a slice needs libtpu, on Linux: pip install "grm_jax[tpu]"'
        ) from error
    devices = list(topology.devices)
    if len(devices) != num_slices * part.chips:
        raise RuntimeError(
            f"{part.name} should have {num_slices * part.chips} devices, libtpu shows {len(devices)}"
        )
    return devices


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
