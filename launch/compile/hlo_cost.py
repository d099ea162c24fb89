"""What a compiled XLA program does per chip: matrix FLOPs, HBM bytes and collectives, with every loop counted as often as it runs.

XLA's own `cost_analysis()` counts the body of a loop once. Here the optimized program is walked, each body times its trip count:

    while (i < 46) { while (j < 8) { dot } }      ->  46 * 8 dots

FLOPs are those of dot and convolution (a multiplication and an addition are two), the work of the matrix unit; positions that a padded or
dilated convolution skips are not counted. HBM bytes are, per instruction, what it reads and writes in main memory: arrays in on-chip memory
are free, and a slice that is read from or written into a larger array counts as the slice, in fusions too.
"""

import collections
import dataclasses
import functools
import math
import re

import numpy as np

from launch.compile import hlo_text
from launch.compile.hlo_loops import trip_count
from launch.compile.hlo_text import Computation, Instruction, Program

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Opcodes that move nothing: names for what is there already, or the end of what a -start began.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "opt-barrier", "domain",
    "add-dependency", "send-done", "recv", "recv-done", "async-done", "async-update",
}  # fmt: skip


@dataclasses.dataclass
class Cost:
    """Per chip. `collectives`: (kind, groups as XLA writes them) -> bytes that enter it, `dcn`: kind -> bytes sent between slices.

    `unbounded` names the loops whose trip count is not in the program; they were counted `assumed_trip_count` times. `kernels_without_cost` names the kernels
    that say nothing of their FLOPs; they were counted as none.
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    collectives: dict[tuple[str, str], float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    dcn: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    unbounded: set[str] = dataclasses.field(default_factory=set)
    kernels_without_cost: set[str] = dataclasses.field(default_factory=set)

    def add(self, other: "Cost", times: float = 1.0) -> None:
        self.flops += times * other.flops
        self.hbm_bytes += times * other.hbm_bytes
        for key, value in other.collectives.items():
            self.collectives[key] += times * value
        for key, value in other.dcn.items():
            self.dcn[key] += times * value
        self.unbounded |= other.unbounded
        self.kernels_without_cost |= other.kernels_without_cost


def cost(text: str, assumed_trip_count: int = 1) -> Cost:
    """The cost of one run of a program, from `compiled.as_text()`.

    assumed_trip_count: for loops that end on data (a sampler's stop), where the program states no bound.
    """
    return _Walk(hlo_text.parse(text), assumed_trip_count).total()


class _Walk:
    def __init__(self, program: Program, assumed_trip_count: int):
        self.program = program
        self.assumed_trip_count = assumed_trip_count
        self.done: dict[tuple[str, bool], Cost] = {}

    def total(self) -> Cost:
        return self.computation(self.program.entry, fused=False)

    def computation(self, name: str, fused: bool) -> Cost:
        """`fused`: inside a fusion nothing touches main memory by itself; the fusion's own operands and results do."""
        if (name, fused) not in self.done:
            result = Cost()
            computation = self.program.computations[name]
            for instruction in computation.instructions.values():
                self.instruction(result, computation, instruction, fused)
            self.done[name, fused] = result
        return self.done[name, fused]

    def instruction(self, result: Cost, inside: Computation, i: Instruction, fused: bool) -> None:
        opcode = i.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return
        if opcode == "while":
            body, condition = i.attribute("body"), i.attribute("condition")
            trips = trip_count(self.program, inside, i)
            if trips is None:
                trips = self.assumed_trip_count
                result.unbounded.add(i.name)
            result.add(self.computation(body, fused), trips)
            result.add(self.computation(condition, fused), trips + 1)
            return
        if opcode == "conditional":
            branches = i.attribute_list("branch_computations") or [
                i.attribute("true_computation"),
                i.attribute("false_computation"),
            ]
            result.add(
                max(
                    (self.computation(b, fused) for b in branches if b),
                    key=lambda c: (c.flops, c.hbm_bytes),
                )
            )
            return
        if opcode == "call" or opcode == "async-start":
            result.add(self.computation(i.attribute("to_apply") or i.attribute("calls"), fused))
            return
        operands = inside.operands(i)
        if opcode == "fusion":
            called = self.program.computations[i.attribute("calls")]
            result.add(self.fused(called))
            if not fused:
                result.hbm_bytes += self.fusion_bytes(called, operands, i)
            return
        if opcode in ("dot", "convolution"):
            result.flops += (
                dot_flops(i, operands) if opcode == "dot" else convolution_flops(i, operands)
            )
        elif opcode == "custom-call":
            result.flops += _stated(i, "flops")
            if '"tpu_custom_call"' in i.attributes and not _stated(i, "flops"):
                result.kernels_without_cost.add(i.name)
        elif opcode == "send":
            if "megascale" in i.attributes:
                result.dcn[_rendezvous(i)] += operands[0].leaves[0].bytes
        else:
            kind = opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                result.collectives[kind, _groups(i)] += sum(
                    o.leaves[0].bytes for o in operands if o.leaves
                )
        if not fused:
            result.hbm_bytes += self.plain_bytes(inside, i, operands)

    def fused(self, computation: Computation) -> Cost:
        """FLOPs and collectives in a fusion. TPU writes a reduce-scatter as a fusion of an all-reduce and the slice that is kept."""
        inner = self.computation(computation.name, fused=True)
        if _in_flight(computation) in ("runs on", "ends"):
            return dataclasses.replace(inner, collectives={})
        if not computation.name.startswith("all-reduce-scatter"):
            return inner
        renamed = {
            ("reduce-scatter" if k == "all-reduce" else k, groups): n
            for (k, groups), n in inner.collectives.items()
        }
        return dataclasses.replace(inner, collectives=renamed)

    def plain_bytes(
        self, inside: Computation, i: Instruction, operands: list[Instruction]
    ) -> float:
        """Main-memory traffic of one instruction that stands by itself."""
        reads = sum(o.hbm_bytes for o in operands)
        writes = i.hbm_bytes
        opcode = i.opcode
        if opcode == "custom-call":
            return (
                0
                if "AllocateBuffer" in i.attributes
                else max(_stated(i, "bytes_accessed"), reads + writes)
            )
        if opcode in ("dynamic-slice", "slice"):
            return (writes or i.leaves[0].bytes) * (bool(reads) + bool(writes))
        if opcode == "gather":
            return (
                writes + (i.leaves[0].bytes if operands[0].hbm_bytes else 0) + operands[1].hbm_bytes
            )
        if opcode in ("dynamic-update-slice", "scatter"):
            update = operands[1] if opcode == "dynamic-update-slice" else operands[-1]
            written = update.leaves[0].bytes if writes else 0
            return update.hbm_bytes + written * (2 if opcode == "scatter" else 1)
        if opcode == "slice-start" or opcode == "copy-start" or opcode.endswith("-start"):
            # The result is a tuple that names the operands again beside what is written.
            moved = max(writes - reads, 0) if opcode != "copy-start" else i.leaves[0].hbm_bytes
            return moved + (
                min(reads, i.leaves[0].bytes)
                if opcode in ("slice-start", "dynamic-slice-start")
                else reads
            )
        return reads + writes

    def fusion_bytes(
        self, called: Computation, operands: list[Instruction], i: Instruction
    ) -> float:
        flight = _in_flight(called)
        if flight == "begins":
            moved = [c for c in called.instructions.values() if c.opcode in COLLECTIVES]
            return sum(o.hbm_bytes for o in operands) + sum(
                leaf.hbm_bytes for c in moved for leaf in c.leaves
            )
        if flight == "ends":
            return 0.0
        passing = _passing(called) if flight else set()
        total = 0.0
        for number, operand in enumerate(operands):
            if operand.hbm_bytes and called.parameters.get(number) not in passing:
                total += min(operand.hbm_bytes, self.read_bytes(called.name, number))
        if not passing:
            return total + self.written_bytes(called, called.root, i.leaves)
        results = zip(called.operands(called.root), i.leaves, strict=True)
        return total + sum(
            self.written_bytes(called, r, (leaf,)) for r, leaf in results if r.name not in passing
        )

    @functools.cache  # noqa: B019 - the walk lives for one program
    def read_bytes(self, name: str, number: int) -> float:
        """What a fused computation reads of its parameter `number`: all of it, or only the slices that it takes."""
        computation = self.program.computations[name]
        if number not in computation.parameters:
            return 0.0
        return self.used_bytes(
            computation, computation.instructions[computation.parameters[number]]
        )

    def used_bytes(self, computation: Computation, value: Instruction) -> float:
        whole = float(sum(leaf.bytes for leaf in value.leaves))
        if (
            value.name == computation.root.name
        ):  # a view that leaves the fusion as it is: what follows may read all of it
            return whole
        used = 0.0
        for user in computation.users[value.name]:
            if (
                user.opcode in ("dynamic-slice", "slice", "gather")
                and user.operands[0] == value.name
            ):
                used += user.leaves[0].bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
                used += 0.0
            elif user.opcode == "bitcast":
                used += self.used_bytes(computation, user)
            elif user.opcode == "fusion":
                inner = self.program.computations[user.attribute("calls")]
                for number, operand in enumerate(user.operands):
                    if operand == value.name:
                        used += self.read_bytes(inner.name, number)
            else:
                return whole
            if used >= whole:
                return whole
        return used

    def written_bytes(self, computation: Computation, root: Instruction, leaves) -> float:
        """What a fusion writes: its result, or only the part of it that an update in place touches."""
        if not any(leaf.hbm_bytes for leaf in leaves):
            return 0.0
        if root.opcode == "tuple" and len(root.operands) == len(leaves):
            parts = zip(computation.operands(root), leaves, strict=True)
            return sum(self.written_bytes(computation, part, (leaf,)) for part, leaf in parts)
        while root.opcode == "bitcast":
            root = computation.operands(root)[0]
        if root.opcode == "dynamic-update-slice":
            return computation.operands(root)[1].leaves[0].bytes
        if root.opcode == "fusion":
            inner = self.program.computations[root.attribute("calls")]
            return self.written_bytes(inner, inner.root, leaves)
        return float(sum(leaf.hbm_bytes for leaf in leaves))


def _in_flight(computation: Computation) -> str:
    """What a fused computation does to a collective that spans several fusions: "begins", "runs on", "ends", or "".

    TPUs run a collective beside the products of several fusions. Each of them names it again, with the same buffers, which nothing moves twice.
    """
    target = re.search(
        r'custom_call_target="AsyncCollective(Start|Done)"', computation.root.attributes
    )
    if target:
        return {"Start": "begins", "Done": "ends"}[target.group(1)]
    return "runs on" if computation.name.startswith("async_collective_fusion") else ""


def _passing(computation: Computation) -> set[str]:
    """Values of a collective in flight: it, and the parameters that only it and the result name."""
    moved = {i.name for i in computation.instructions.values() if i.opcode in COLLECTIVES}
    ends = {*moved, computation.root.name}
    through = {
        name
        for name in computation.parameters.values()
        if {u.name for u in computation.users[name]} <= ends
    }
    return moved | through


def dot_flops(i: Instruction, operands: list[Instruction]) -> float:
    """2 * elements of the result * length of the contraction."""
    lhs = operands[0].leaves[0]
    return (
        2.0 * i.leaves[0].elements * math.prod(lhs.dims[d] for d in i.ints("lhs_contracting_dims"))
    )


def convolution_flops(i: Instruction, operands: list[Instruction]) -> float:
    """2 * batch * features in * features out * pairs of (result position, kernel position) that meet an input element.

    TPU programs hold every dot as a convolution; batch dimensions become spatial ones, with a stride and a dilation that let each element
    meet its own partner only: `window={size=8 stride=7 lhs_dilate=8}` over 8 elements has 8 pairs, not 64.
    """
    lhs, rhs, out = operands[0].leaves[0], operands[1].leaves[0], i.leaves[0]
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    lhs_labels, rhs_labels, out_labels = labels.groups()
    batch_groups = int((re.search(r"batch_group_count=(\d+)", i.attributes) or [0, 1])[1])
    window = _window(i.attributes)
    pairs = 1
    for d in range(len(lhs_labels) - 2):
        sizes = (
            lhs.dims[lhs_labels.index(str(d))],
            rhs.dims[rhs_labels.index(str(d))],
            out.dims[out_labels.index(str(d))],
        )
        pad = window.get("pad", {}).get(d, "0_0")
        pairs *= _meeting(
            *sizes,
            stride=int(window.get("stride", {}).get(d, 1)),
            pad=int(pad.split("_")[0]),
            lhs_dilate=int(window.get("lhs_dilate", {}).get(d, 1)),
            rhs_dilate=int(window.get("rhs_dilate", {}).get(d, 1)),
        )
    batch = lhs.dims[lhs_labels.index("b")] // batch_groups
    return 2.0 * batch * rhs.dims[rhs_labels.index("i")] * out.dims[out_labels.index("f")] * pairs


def _window(attributes: str) -> dict[str, dict[int, str]]:
    """`window={size=2x4 pad=0_0x3_3}` -> {"size": {0: "2", 1: "4"}, "pad": {0: "0_0", 1: "3_3"}}."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = (field.split("=") for field in found.group(1).split()) if found else ()
    return {key: dict(enumerate(value.split("x"))) for key, value in fields}


@functools.lru_cache(maxsize=4096)
def _meeting(
    size: int, kernel: int, out: int, stride: int, pad: int, lhs_dilate: int, rhs_dilate: int
) -> int:
    position = np.arange(out)[:, None] * stride + np.arange(kernel)[None, :] * rhs_dilate - pad
    return int(
        (
            (position >= 0) & (position <= (size - 1) * lhs_dilate) & (position % lhs_dilate == 0)
        ).sum()
    )


def _stated(i: Instruction, key: str) -> float:
    """A kernel's own estimate, in its cost_estimate."""
    found = re.search(rf'"{key}":\s*"?(\d+)', i.attributes)
    return float(found.group(1)) if found else 0.0


def _groups(i: Instruction) -> str:
    for key in ("replica_groups=", "source_target_pairs="):
        at = i.attributes.find(key)
        if at >= 0:
            rest = i.attributes[at + len(key) :]
            if rest.startswith("mesh["):
                return rest[: rest.index("}") + 1]
            return re.split(r", (?=[a-z_]+=)", rest)[0]
    return ""


def _rendezvous(i: Instruction) -> str:
    """`_xla_host_transfer_rendezvous="all-reduce.15_0"` -> "all-reduce"."""
    found = re.search(r'_xla_host_transfer_rendezvous="([a-z\-]+)', i.attributes)
    return found.group(1) if found else "send"
