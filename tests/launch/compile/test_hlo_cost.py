"""Costs of compiled CPU and TPU programs: loops cost as much as the same program unrolled.

Axes: U layers, L length, D width, C query chunk.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from launch.compile import hlo_cost, slices

U, L, D, C = 3, 256, 256, 64
PARAMS = {"qkv": (U, D, 3 * D), "out": (U, D, D), "up": (U, D, 2 * D), "down": (U, 2 * D, D)}


def attention(x_LxD, p, scanned):
    q, k, v = jnp.split(x_LxD @ p["qkv"], 3, axis=-1)

    def chunk(q_CxD):
        return jax.nn.softmax((q_CxD @ k.T).astype(jnp.float32)).astype(v.dtype) @ v

    chunks = q.reshape(L // C, C, D)
    o = jax.lax.map(chunk, chunks) if scanned else jnp.stack([chunk(c) for c in chunks])
    return o.reshape(L, D) @ p["out"]


def forward(params, x_LxD, scanned=True, remat=False):
    def layer(x, p):
        x = x + attention(x, p, scanned)
        return x + jax.nn.gelu(x @ p["up"]) @ p["down"], None

    if remat:
        layer = jax.checkpoint(layer)

    if scanned:
        return jax.lax.scan(layer, x_LxD, params)[0]
    for p in params:
        x_LxD, _ = layer(x_LxD, p)
    return x_LxD


def backward(params, x_LxD, scanned=True, remat=False):
    def loss(params, x_LxD):
        return jnp.sum(forward(params, x_LxD, scanned, remat).astype(jnp.float32) ** 2)

    return jax.value_and_grad(loss, argnums=(0, 1))(params, x_LxD)


FORWARD = 2 * U * L * (D * 3 * D + D * D + 2 * D * 2 * D + 2 * L * D)


@functools.cache
def device(target):
    return jax.devices("cpu")[0] if target == "cpu" else slices.slice_devices(target)[0]


def abstract(target, scanned):
    """Arguments of the programs: parameters stacked over U to be scanned, or a list of U layers."""
    place = NamedSharding(Mesh(np.array([device(target)]), ("x",)), PartitionSpec())

    def array(shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)

    stacked = {n: array(s) for n, s in PARAMS.items()}
    layers = [{n: array(s[1:]) for n, s in PARAMS.items()} for _ in range(U)]
    return (stacked if scanned else layers), array((L, D))


@functools.cache
def compiled(fn, target, **arguments):
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return (
            jax.jit(functools.partial(fn, **arguments))
            .lower(*abstract(target, arguments.get("scanned", True)))
            .compile()
        )
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def cost_of(fn, target, **arguments):
    return hlo_cost.cost(compiled(fn, target, **arguments).as_text())


@pytest.fixture(params=["cpu", "v5litepod-1"])
def target(request):
    return request.param


@pytest.mark.parametrize("program, most_bytes", [(forward, 1.05), (backward, 1.5)])
def test_a_scanned_stack_costs_as_much_as_an_unrolled_one(program, most_bytes, target):
    scanned, unrolled = (cost_of(program, target, scanned=s) for s in (True, False))
    assert not scanned.unbounded
    assert scanned.flops == pytest.approx(unrolled.flops, rel=0.01)
    if target != "cpu":
        # Forward reads the weights once. In a loop, backward passes activations through HBM.
        assert 0.95 < scanned.hbm_bytes / unrolled.hbm_bytes < most_bytes


@pytest.mark.parametrize("program, times", [(forward, 1), (backward, 3)])
def test_flops_equal_the_formula(program, times, target):
    assert cost_of(program, target).flops == pytest.approx(times * FORWARD, rel=1e-6)


def test_full_remat_costs_a_fourth_forward_without_its_last_product(target):
    down = 2 * U * L * 2 * D * D
    assert cost_of(backward, target, remat=True).flops == pytest.approx(
        4 * FORWARD - down, rel=0.03
    )


def test_unrolled_flops_agree_with_xla(target):
    ours, xla = (
        cost_of(backward, target, scanned=False).flops,
        compiled(backward, target, scanned=False).cost_analysis()["flops"],
    )
    # XLA also counts element-wise operations, about one per hundred here.
    assert ours <= xla <= 1.06 * ours


def test_xla_itself_counts_a_loop_once():
    """The reason for this module: fails if XLA starts to multiply by trip counts."""
    assert compiled(forward, "cpu").cost_analysis()["flops"] < 0.5 * FORWARD


def nested(params, x_LxD, last):
    """A while loop around scans that can end early on data: from 3 to `last` in steps of 2."""

    def more(state):
        i, x = state
        return (i < last) & (jnp.max(jnp.abs(x)) < 1e4)

    def body(state):
        i, x = state
        return i + 2, forward(params, x)

    return jax.lax.while_loop(more, body, (3, x_LxD))[1]


def test_a_while_loop_that_can_end_early_counts_its_maximum(target):
    cost = cost_of(nested, target, last=16)
    assert not cost.unbounded
    assert cost.flops == pytest.approx(7 * FORWARD, rel=1e-6)


def test_a_loop_without_a_bound_is_reported_and_counted_as_assumed(target):
    def until(params, x_LxD):
        return jax.lax.while_loop(
            lambda x: jnp.max(jnp.abs(x)) < 1e4, lambda x: forward(params, x), x_LxD
        )

    text = compiled(until, target).as_text()
    assert len(hlo_cost.cost(text).unbounded) == 1
    assert hlo_cost.cost(text, assumed_trip_count=12).flops == pytest.approx(12 * FORWARD, rel=1e-6)


def test_a_conditional_costs_its_most_expensive_branch():
    def either(params, x_LxD):
        return jax.lax.cond(x_LxD[0, 0] > 0, lambda x: forward(params, x), lambda x: x, x_LxD)

    assert cost_of(either, "cpu").flops == pytest.approx(FORWARD, rel=1e-6)
    text = compiled(either, "cpu").as_text()
    assert hlo_cost.cost(text, cheapest_branches=True).flops == 0


def test_a_slice_of_a_large_array_costs_the_slice():
    """A loop that reads one number per layer does not read the whole stack."""

    def total(params, x_LxD):
        return jax.lax.fori_loop(0, U, lambda u, x: x + params["up"][u, 0, 0], x_LxD)

    cost = cost_of(total, "v5litepod-1")
    stack = U * D * 2 * D * 2
    assert cost.hbm_bytes < 3 * U * L * D * 2 + 0.1 * stack


def test_an_update_in_place_costs_the_slice_that_changes():
    def fill(params, x_LxD):
        table = jnp.zeros((64, L, D), jnp.bfloat16)
        return jax.lax.fori_loop(
            0,
            64,
            lambda i, t: jax.lax.dynamic_update_index_in_dim(
                t, x_LxD + i.astype(x_LxD.dtype), i, 0
            ),
            table,
        )

    cost = cost_of(fill, "v5litepod-1")
    table = 64 * L * D * 2
    assert 1.5 * table < cost.hbm_bytes < 4.5 * table


BATCHED = """
HloModule m
ENTRY %main (a: bf16[8,64,32], b: bf16[8,16,32]) -> f32[8,64,16] {
  %a = bf16[8,64,32]{2,1,0} parameter(0)
  %b = bf16[8,16,32]{2,1,0} parameter(1)
  ROOT %c = f32[8,64,16]{2,1,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf
}
"""  # noqa: E501


def test_a_batched_dot_as_a_dilated_convolution():
    cost = hlo_cost.cost(BATCHED)
    assert cost.flops == 2 * 8 * 64 * 16 * 32
    assert cost.hbm_bytes == 2 * 8 * 64 * 32 + 2 * 8 * 16 * 32 + 4 * 8 * 64 * 16


def test_a_padded_convolution_skips_the_border():
    text = BATCHED.replace(
        "window={size=8 stride=7 lhs_dilate=8}", "window={size=8 pad=7_0}"
    ).replace("dim_labels=0bf_0oi->0bf", "dim_labels=0bf_0oi->0bf")
    # Causal: output o pairs with kernel positions k where o - 7 + k >= 0: 1 + 2 + ... + 8.
    assert hlo_cost.cost(text).flops == 2 * 36 * 64 * 16 * 32


def test_arrays_on_the_chip_are_free():
    text = BATCHED.replace(
        "%b = bf16[8,16,32]{2,1,0}", "%b = bf16[8,16,32]{2,1,0:T(8,128)(2,1)S(1)}"
    )
    assert hlo_cost.cost(text).hbm_bytes == 2 * 8 * 64 * 32 + 4 * 8 * 64 * 16


INT8_LAYER = """
HloModule m
%retile (s: s8[13,64,128]) -> s8[13,64,128] {
  %s = s8[13,64,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %c = s8[13,64,128]{2,1,0:T(8,128)(4,1)} copy(%s)
}
%layer (stack: s8[13,64,128], i: s32[]) -> s8[1,64,128] {
  %stack = s8[13,64,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  %view = s8[13,64,128]{2,1,0:T(8,128)(4,1)} fusion(%stack), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%retile
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %w = s8[1,64,128]{2,1,0:T(8,128)(4,1)} dynamic-slice(%view, %i, %zero, %zero), dynamic_slice_sizes={1,64,128}
}
ENTRY %main (a: s8[13,64,128], n: s32[]) -> s8[1,64,128] {
  %a = s8[13,64,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  %n = s32[] parameter(1)
  ROOT %f = s8[1,64,128]{2,1,0:T(8,128)(4,1)} fusion(%a, %n), kind=kLoop, calls=%layer
}
"""  # noqa: E501


def test_a_slice_of_a_stack_that_a_fusion_views_in_another_tiling_costs_the_slice():
    layer, index = 64 * 128, 4
    assert hlo_cost.cost(INT8_LAYER).hbm_bytes == 2 * layer + index
    copied = INT8_LAYER.replace("output_to_operand_aliasing={{}: (0, {})}, ", "")
    assert hlo_cost.cost(copied).hbm_bytes == 14 * layer + index


KERNEL_IN_A_LOOP = """
HloModule m
%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %x = f32[8,8]{1,0} get-tuple-element(%p), index=1
  %k = f32[8,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, backend_config={COST}
  %d = f32[8,8]{1,0} dot(%k, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[8,8]{1,0}) tuple(%next, %d)
}
%condition (q: (s32[], f32[8,8])) -> pred[] {
  %q = (s32[], f32[8,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %n = s32[] constant(5)
  ROOT %lt = pred[] compare(%j, %n), direction=LT
}
ENTRY %main (a: f32[8,8]) -> (s32[], f32[8,8]) {
  %a = f32[8,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %s = (s32[], f32[8,8]{1,0}) tuple(%zero, %a)
  ROOT %w = (s32[], f32[8,8]{1,0}) while(%s), condition=%condition, body=%body
}
"""  # noqa: E501


def test_line_breaks_in_the_metadata_of_a_kernel_do_not_end_the_loop():
    silent = hlo_cost.cost(KERNEL_IN_A_LOOP.replace("{COST}", "{}"))
    assert (
        silent.flops == 5 * 2 * 8**3
        and not silent.unbounded
        and silent.kernels_without_cost == {"k"}
    )
    stated = hlo_cost.cost(
        KERNEL_IN_A_LOOP.replace("{COST}", '{"cost_estimate": {"flops": "100"}}')
    )
    assert stated.flops == 5 * (2 * 8**3 + 100) and not stated.kernels_without_cost


OVERLAPPED_GATHER = """
HloModule m
%begin (s: bf16[8,16]) -> (bf16[8,16], bf16[8,64]) {
  %s = bf16[8,16]{1,0} parameter(0)
  %g0 = bf16[8,64]{1,0} all-gather(%s), channel_id=7, replica_groups=[1,4]<=[4], dimensions={1}
  ROOT %c0 = (bf16[8,16]{1,0}, bf16[8,64]{1,0}) custom-call(%g0), custom_call_target="AsyncCollectiveStart"
}
%async_collective_fusion.1 (s: bf16[8,16], f: bf16[8,64], x: bf16[8,8]) -> (bf16[8,8], bf16[8,16], bf16[8,64]) {
  %s.1 = bf16[8,16]{1,0} parameter(0)
  %f.1 = bf16[8,64]{1,0} parameter(1)
  %x.1 = bf16[8,8]{1,0} parameter(2)
  %g1 = bf16[8,64]{1,0} all-gather(%s.1), channel_id=7, replica_groups=[1,4]<=[4], dimensions={1}
  %d1 = bf16[8,8]{1,0} dot(%x.1, %x.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t1 = (bf16[8,8]{1,0}, bf16[8,16]{1,0}, bf16[8,64]{1,0}) tuple(%d1, %s.1, %g1)
}
%end (s: bf16[8,16], f: bf16[8,64]) -> bf16[8,64] {
  %s.2 = bf16[8,16]{1,0} parameter(0)
  %f.2 = bf16[8,64]{1,0} parameter(1)
  %g2 = bf16[8,64]{1,0} all-gather(%s.2), channel_id=7, replica_groups=[1,4]<=[4], dimensions={1}
  ROOT %c2 = bf16[8,64]{1,0} custom-call(%s.2, %f.2, %g2), custom_call_target="AsyncCollectiveDone"
}
ENTRY %main (a: bf16[8,16], x: bf16[8,8]) -> bf16[8,64] {
  %a = bf16[8,16]{1,0} parameter(0)
  %x = bf16[8,8]{1,0} parameter(1)
  %f0 = (bf16[8,16]{1,0}, bf16[8,64]{1,0}) fusion(%a), kind=kCustom, calls=%begin
  %a0 = bf16[8,16]{1,0} get-tuple-element(%f0), index=0
  %b0 = bf16[8,64]{1,0} get-tuple-element(%f0), index=1
  %f1 = (bf16[8,8]{1,0}, bf16[8,16]{1,0}, bf16[8,64]{1,0}) fusion(%a0, %b0, %x), kind=kOutput, calls=%async_collective_fusion.1
  %a1 = bf16[8,16]{1,0} get-tuple-element(%f1), index=1
  %b1 = bf16[8,64]{1,0} get-tuple-element(%f1), index=2
  ROOT %f2 = bf16[8,64]{1,0} fusion(%a1, %b1), kind=kCustom, calls=%end
}
"""  # noqa: E501


def test_a_collective_that_spans_several_fusions_counts_once():
    cost = hlo_cost.cost(OVERLAPPED_GATHER)
    assert dict(cost.collectives) == {("all-gather", "[1,4]<=[4]"): 8 * 16 * 2}
    assert cost.flops == 2 * 8**3
    # The shard in and the gathered array out, once; one input and the result of the dot.
    assert cost.hbm_bytes == 2 * (8 * 16 + 8 * 64) + 2 * 2 * 8 * 8


def test_text_without_an_entry_computation_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation .* pass compiled.as_text"):
        hlo_cost.cost("HloModule empty\n")
