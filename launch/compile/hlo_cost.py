"""Per-chip cost of a compiled XLA program: matrix FLOPs, HBM bytes, collectives.

XLA's `cost_analysis()` counts the body of a loop once. This module walks the optimized program and
multiplies each body by its trip count:

    while (i < 46) { while (j < 8) { dot } }      ->  46 * 8 dots

FLOPs are those of dots and convolutions (a multiply-add is two), without the positions that padded
or dilated convolutions skip. HBM bytes are what each instruction or fusion reads and writes in main
memory: arrays in on-chip memory are free, and a slice of a larger array counts as the slice.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from launch.compile import hlo_text
from launch.compile.hlo_loops import trip_count
from launch.compile.hlo_text import Computation, Instruction, Leaf, Program

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Opcodes that move no data: views, and the ends of asynchronous operations counted at their start.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "domain", "add-dependency", "send-done", "recv", "recv-done",
    "async-done", "async-update",
}  # fmt: skip


def _zeros() -> dict:
    return collections.defaultdict(float)


@dataclasses.dataclass
class Cost:
    """Cost per chip.

    Attributes:
      collectives: (kind, XLA's replica groups) -> input bytes.
      dcn: kind -> bytes sent between slices.
      unbounded: loops whose trip count the program does not state.
      kernels_without_cost: kernels that state no FLOPs; they count as zero.
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    collectives: dict[tuple[str, str], float] = dataclasses.field(default_factory=_zeros)
    dcn: dict[str, float] = dataclasses.field(default_factory=_zeros)
    unbounded: set[str] = dataclasses.field(default_factory=set)
    kernels_without_cost: set[str] = dataclasses.field(default_factory=set)

    def add(self, other: "Cost", times: float = 1.0) -> None:
        self.flops += times * other.flops
        self.hbm_bytes += times * other.hbm_bytes
        for groups, value in other.collectives.items():
            self.collectives[groups] += times * value
        for kind, value in other.dcn.items():
            self.dcn[kind] += times * value
        self.unbounded |= other.unbounded
        self.kernels_without_cost |= other.kernels_without_cost


def cost(text: str, assumed_trip_count: int = 1, cheapest_branches: bool = False) -> Cost:
    """Returns the cost of one run of a program, from `compiled.as_text()`.

    Args:
      assumed_trip_count: for loops that end on data and state no bound, such as a sampler's.
      cheapest_branches: a conditional costs its cheapest branch; by default, its most expensive.
    """
    program = hlo_text.parse(text)
    walk = _Walk(program, assumed_trip_count, min if cheapest_branches else max)
    return walk.computation(program.entry, fused=False)


class _Walk:
    """Adds up the costs of computations. Inside a fusion (`fused`), only FLOPs and collectives."""

    def __init__(self, program: Program, assumed_trip_count: int, choose_branch: Callable):
        self.program = program
        self.assumed_trip_count = assumed_trip_count
        self.choose_branch = choose_branch

    @functools.cache  # noqa: B019 - the walk lives for one program
    def computation(self, name: str, fused: bool) -> Cost:
        total = Cost()
        computation = self.program.computations[name]
        for instruction in computation.instructions.values():
            self.add(total, computation, instruction, fused)
        return total

    def add(self, total: Cost, computation: Computation, i: Instruction, fused: bool) -> None:
        """Adds the cost of one instruction."""
        if i.opcode in _FREE or i.opcode.endswith("-done"):
            return
        if i.opcode == "while":
            self.add_loop(total, computation, i, fused)
        elif i.opcode == "conditional":
            names = i.attribute_list("branch_computations")
            names += [i.attribute("true_computation"), i.attribute("false_computation")]
            branches = [self.computation(name, fused) for name in names if name]
            by_cost = lambda branch: (branch.flops, branch.hbm_bytes)
            total.add(self.choose_branch(branches, key=by_cost))
        elif i.opcode in ("call", "async-start"):
            total.add(self.computation(i.attribute("to_apply") or i.attribute("calls"), fused))
        elif i.opcode == "fusion":
            called = self.program.computations[i.attribute("calls")]
            total.add(self.fusion(called))
            if not fused:
                total.hbm_bytes += self.fusion_bytes(called, computation.operands(i), i)
        else:
            operands = computation.operands(i)
            _add_operation(total, i, operands)
            if not fused:
                total.hbm_bytes += _operation_bytes(i, operands)

    def add_loop(self, total: Cost, computation: Computation, i: Instruction, fused: bool) -> None:
        trips = trip_count(self.program, computation, i)
        if trips is None:
            trips = self.assumed_trip_count
            total.unbounded.add(i.name)
        total.add(self.computation(i.attribute("body"), fused), trips)
        total.add(self.computation(i.attribute("condition"), fused), trips + 1)

    def fusion(self, called: Computation) -> Cost:
        """FLOPs and collectives of a fusion.

        TPU programs write a reduce-scatter as a fusion of an all-reduce and a slice of its result.
        """
        inner = self.computation(called.name, fused=True)
        if _async_stage(called) in ("continue", "done"):
            return dataclasses.replace(inner, collectives={})
        if not called.name.startswith("all-reduce-scatter"):
            return inner
        renamed = {
            ("reduce-scatter" if kind == "all-reduce" else kind, groups): payload
            for (kind, groups), payload in inner.collectives.items()
        }
        return dataclasses.replace(inner, collectives=renamed)

    def fusion_bytes(
        self, called: Computation, operands: Sequence[Instruction], i: Instruction
    ) -> float:
        """Main-memory traffic of a fusion."""
        stage = _async_stage(called)
        if stage == "done":
            return 0.0
        if stage == "start":
            moved = [c for c in called.instructions.values() if c.opcode in COLLECTIVES]
            return sum(x.hbm_bytes for x in (*operands, *moved))
        buffers = _async_buffers(called) if stage else set()
        total = 0.0
        for number, operand in enumerate(operands):
            if operand.hbm_bytes and called.parameters.get(number) not in buffers:
                total += min(operand.hbm_bytes, self.read_bytes(called.name, number))
        if not buffers:
            return total + self.written_bytes(called, called.root, i.leaves)
        outputs = zip(called.operands(called.root), i.leaves, strict=True)
        return total + sum(
            self.written_bytes(called, output, (leaf,))
            for output, leaf in outputs
            if output.name not in buffers
        )

    @functools.cache  # noqa: B019 - the walk lives for one program
    def read_bytes(self, name: str, number: int) -> float:
        """Bytes that a fusion reads of its parameter `number`: all of it, or its slices."""
        computation = self.program.computations[name]
        if number not in computation.parameters:
            return 0.0
        parameter = computation.instructions[computation.parameters[number]]
        return self.used_bytes(computation, parameter)

    def used_bytes(self, computation: Computation, value: Instruction) -> float:
        """Bytes of a value that its users read."""
        whole = float(sum(leaf.bytes for leaf in value.leaves))
        if value.name == computation.root.name:  # returned as a view; users may read all of it
            return whole
        used = 0.0
        for user in computation.users[value.name]:
            is_source = user.operands[0] == value.name
            if user.opcode in ("dynamic-slice", "slice", "gather") and is_source:
                used += user.leaves[0].bytes
            elif user.opcode == "bitcast" or self.is_view(user):
                used += self.used_bytes(computation, user)
            elif user.opcode == "fusion":
                inner = self.program.computations[user.attribute("calls")]
                numbers = [n for n, operand in enumerate(user.operands) if operand == value.name]
                used += sum(self.read_bytes(inner.name, n) for n in numbers)
            elif not (user.opcode == "dynamic-update-slice" and is_source):
                return whole
        return min(used, whole)

    def is_view(self, i: Instruction) -> bool:
        """Returns whether a fusion inside another only reads its operand in another tiling.

        TPU programs write so the slice of a stack of int8 weights: the stack, aliased by a "copy"
        of all of it in the tiling of the slice, of which the outer fusion computes the slice alone.
        """
        if i.opcode != "fusion" or "output_to_operand_aliasing={{}: (0, {})}" not in i.attributes:
            return False
        called = self.program.computations[i.attribute("calls")]
        return called.root.opcode == "copy" and len(called.instructions) == 2

    def written_bytes(
        self, computation: Computation, root: Instruction, leaves: Sequence[Leaf]
    ) -> float:
        """Bytes that a fusion writes: its result, or the slice that an in-place update changes."""
        if not any(leaf.hbm_bytes for leaf in leaves):
            return 0.0
        if root.opcode == "tuple" and len(root.operands) == len(leaves):
            outputs = zip(computation.operands(root), leaves, strict=True)
            return sum(self.written_bytes(computation, x, (leaf,)) for x, leaf in outputs)
        while root.opcode == "bitcast":
            root = computation.operands(root)[0]
        if root.opcode == "dynamic-update-slice":
            return computation.operands(root)[1].leaves[0].bytes
        if root.opcode == "fusion":
            inner = self.program.computations[root.attribute("calls")]
            return self.written_bytes(inner, inner.root, leaves)
        return float(sum(leaf.hbm_bytes for leaf in leaves))


def _add_operation(total: Cost, i: Instruction, operands: Sequence[Instruction]) -> None:
    """Adds FLOPs and communication of an instruction that runs no other computation."""
    kind = i.opcode.removesuffix("-start")
    if i.opcode == "dot":
        total.flops += dot_flops(i, operands)
    elif i.opcode == "convolution":
        total.flops += convolution_flops(i, operands)
    elif i.opcode == "custom-call":
        total.flops += _stated(i, "flops")
        if '"tpu_custom_call"' in i.attributes and not _stated(i, "flops"):
            total.kernels_without_cost.add(i.name)
    elif i.opcode == "send" and "megascale" in i.attributes:
        total.dcn[_dcn_kind(i)] += operands[0].leaves[0].bytes
    elif kind in COLLECTIVES:
        payload = sum(operand.leaves[0].bytes for operand in operands if operand.leaves)
        total.collectives[kind, _groups(i)] += payload


def _operation_bytes(i: Instruction, operands: Sequence[Instruction]) -> float:
    """Main-memory traffic of an instruction outside fusions."""
    reads, writes, opcode = sum(x.hbm_bytes for x in operands), i.hbm_bytes, i.opcode
    if opcode == "custom-call":
        allocates = "AllocateBuffer" in i.attributes
        return 0 if allocates else max(_stated(i, "bytes_accessed"), reads + writes)
    if opcode in ("dynamic-slice", "slice"):
        return (writes or i.leaves[0].bytes) * (bool(reads) + bool(writes))
    if opcode == "gather":
        rows = i.leaves[0].bytes if operands[0].hbm_bytes else 0
        return writes + rows + operands[1].hbm_bytes
    if opcode in ("dynamic-update-slice", "scatter"):
        update = operands[1] if opcode == "dynamic-update-slice" else operands[-1]
        written = update.leaves[0].bytes if writes else 0
        return update.hbm_bytes + written * (2 if opcode == "scatter" else 1)
    # The result of a start is a tuple of the operands and what is written.
    if opcode == "copy-start":
        return i.leaves[0].hbm_bytes + reads
    if opcode in ("slice-start", "dynamic-slice-start"):
        return max(writes - reads, 0) + min(reads, i.leaves[0].bytes)
    if opcode.endswith("-start"):
        return max(writes - reads, 0) + reads
    return reads + writes


def _async_stage(computation: Computation) -> str:
    """Stage of a collective that spans several fusions: "start", "continue", "done", or "".

    TPUs overlap a collective with the dots of several fusions. Each fusion names the collective and
    its buffers again, but the data moves only once.
    """
    target = r'custom_call_target="AsyncCollective(Start|Done)"'
    if match := re.search(target, computation.root.attributes):
        return match.group(1).lower()
    return "continue" if computation.name.startswith("async_collective_fusion") else ""


def _async_buffers(computation: Computation) -> set[str]:
    """An asynchronous collective, and the parameters that only it and the result use."""
    moved = {i.name for i in computation.instructions.values() if i.opcode in COLLECTIVES}
    ends = {*moved, computation.root.name}
    return moved | {
        name
        for name in computation.parameters.values()
        if {user.name for user in computation.users[name]} <= ends
    }


def dot_flops(i: Instruction, operands: Sequence[Instruction]) -> float:
    """2 x elements of the result x length of the contraction."""
    lhs = operands[0].leaves[0]
    contraction = math.prod(lhs.dims[d] for d in i.ints("lhs_contracting_dims"))
    return 2.0 * i.leaves[0].elements * contraction


def convolution_flops(i: Instruction, operands: Sequence[Instruction]) -> float:
    """2 x batch x features in x features out x (output, kernel) positions with an input element.

    TPU programs write dots as convolutions. Batch dimensions become spatial ones, whose stride and
    dilation pair each element with one other: `window={size=8 stride=7 lhs_dilate=8}` over 8
    elements has 8 pairs, not 64.
    """
    lhs, rhs, out = operands[0].leaves[0].dims, operands[1].leaves[0].dims, i.leaves[0].dims
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    assert labels, i.attributes
    lhs_labels, rhs_labels, out_labels = labels.groups()
    batch_groups = re.search(r"batch_group_count=(\d+)", i.attributes)
    window = _window(i.attributes)
    pairs = 1
    for d in range(len(lhs_labels) - 2):
        values = {key: sizes.get(d, "") for key, sizes in window.items()}
        pairs *= _position_pairs(
            lhs[lhs_labels.index(str(d))],
            rhs[rhs_labels.index(str(d))],
            out[out_labels.index(str(d))],
            stride=int(values.get("stride") or 1),
            pad=int((values.get("pad") or "0").split("_")[0]),
            lhs_dilate=int(values.get("lhs_dilate") or 1),
            rhs_dilate=int(values.get("rhs_dilate") or 1),
        )
    batch = lhs[lhs_labels.index("b")] // (int(batch_groups[1]) if batch_groups else 1)
    return 2.0 * batch * rhs[rhs_labels.index("i")] * out[out_labels.index("f")] * pairs


def _window(attributes: str) -> dict[str, dict[int, str]]:
    """`window={size=2x4 pad=0_0x3_3}` -> {"size": {0: "2", 1: "4"}, "pad": ...}."""
    match = re.search(r"window=\{([^}]*)\}", attributes)
    fields = (field.split("=") for field in match.group(1).split()) if match else ()
    return {key: dict(enumerate(value.split("x"))) for key, value in fields}


@functools.lru_cache(maxsize=4096)
def _position_pairs(
    size: int, kernel: int, out: int, stride: int, pad: int, lhs_dilate: int, rhs_dilate: int
) -> int:
    """Pairs of an output and a kernel position, along one axis, that read an input element."""
    starts, offsets = np.arange(out)[:, None] * stride, np.arange(kernel)[None, :] * rhs_dilate
    position = starts + offsets - pad
    inside = (position >= 0) & (position <= (size - 1) * lhs_dilate)
    return int((inside & (position % lhs_dilate == 0)).sum())


def _stated(i: Instruction, key: str) -> float:
    match = re.search(rf'"{key}":\s*"?(\d+)', i.attributes)
    return float(match.group(1)) if match else 0.0


def _groups(i: Instruction) -> str:
    for key in ("replica_groups=", "source_target_pairs="):
        if key in i.attributes:
            rest = i.attributes.partition(key)[2]
            if rest.startswith("mesh["):
                return rest[: rest.index("}") + 1]
            return re.split(r", (?=[a-z_]+=)", rest)[0]
    return ""


def _dcn_kind(i: Instruction) -> str:
    """`_xla_host_transfer_rendezvous="all-reduce.15_0"` -> "all-reduce"."""
    match = re.search(r'_xla_host_transfer_rendezvous="([a-z\-]+)', i.attributes)
    return match.group(1) if match else "send"
