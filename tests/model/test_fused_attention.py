"""Fused kernels for attention beside the reference: TPUs' interpreted, NVIDIA's in XLA's place; and which is taken."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import model.cudnn
import model.kernels
import model.splash
from model.decoder import Decoder
from model.kernels import attend
from model.mask import Mask
from model.parameters import merge, split
from train.mesh import MeshConfig, make_mesh, parameter_shardings
from train.state import blueprint

SEGMENTS = jnp.repeat(jnp.array([[1, 1, 2, 2], [1, 2, 2, 3]]), 64, axis=1)  # documents of 64 to 128 tokens
CAUSAL, FULL = Mask(), Mask(causal=False)
MASKS = {
    "causal": CAUSAL,
    "full": FULL,
    "window": Mask(window=100),
    "segments": Mask(q_segments_BL=SEGMENTS, k_segments_BM=SEGMENTS),
}


def operands(length=256, memory=256, dtype=jnp.float32):
    """Four query heads of two key/value heads, of 16 numbers."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((2, length, 4, 16), (2, memory, 2, 16), (2, memory, 2, 16))
    q, k, v = (jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True))
    return q, k, v


def outcome(implementation, mask, qkv):
    """The output and the gradients of all three."""

    def weighed(q, k, v):
        out = attend(q, k, v, mask, scale=0.25, implementation=implementation).astype(jnp.float32)
        return jnp.sin(out).sum(), out

    gradients, out = jax.jit(jax.grad(weighed, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return out, *gradients


def assert_agrees(actual, expected, tolerance):
    for found, reference in zip(actual, expected, strict=True):
        found, reference = np.asarray(found, np.float32), np.asarray(reference, np.float32)
        assert np.abs(found - reference).max() <= tolerance * np.abs(reference).max()


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks a row, of which masks empty some."""
    monkeypatch.setattr(model.splash, "_BLOCKS", (128,))


@pytest.mark.parametrize(
    ("mask", "memory"),
    [(MASKS["segments"], 256), (MASKS["window"], 256), (FULL, 128)],
    ids=["segments", "window", "cross"],
)
def test_splash_agrees_with_the_reference(mask, memory, small_blocks):
    qkv = operands(256, memory)
    assert_agrees(outcome("splash", mask, qkv), outcome("reference", mask, qkv), 1e-6)


def test_splash_computes_the_same_on_a_mesh(tiny_llama, small_blocks):
    """Rows, queries, heads and weights are all split, and one of the key/value heads lies on each device."""
    tokens = jax.random.randint(jax.random.key(1), (2, 256), 0, 70)
    config = dataclasses.replace(tiny_llama, num_layers=1, max_length=256, remat="attention")
    params = split(Decoder(config, nnx.Rngs(params=jax.random.key(0))))[1]

    def gradients(attention):
        skeleton = split(jax.eval_shape(lambda: Decoder(dataclasses.replace(config, attention=attention), nnx.Rngs(0))))

        def loss(params):
            return jnp.sin(merge(skeleton[0], params)(tokens, None, SEGMENTS)[..., :70]).sum()

        return jax.jit(jax.grad(loss))(params)

    expected = gradients("reference")
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, context=2, tensor=2))
    params = jax.device_put(params, parameter_shardings(blueprint(config).declared, mesh))
    with jax.set_mesh(mesh):
        actual = gradients("splash")
    for name in expected:
        assert np.abs(actual[name] - expected[name]).max() <= 1e-5 * np.abs(expected[name]).max(), name


def through_xla(monkeypatch, spoil=1.0):
    """Lets XLA compute what cuDNN is asked for."""
    original = jax.nn.dot_product_attention

    def replaced(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return original(*args, implementation="xla", **kwargs) * spoil

    monkeypatch.setattr(jax.nn, "dot_product_attention", replaced)
    monkeypatch.setattr("model.kernels.device_platform", lambda: "gpu")


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_cudnn_is_asked_for_what_the_reference_computes(mask, monkeypatch):
    through_xla(monkeypatch)
    qkv = operands(dtype=jnp.bfloat16)
    with warnings.catch_warnings(action="error"):
        assert_agrees(outcome("cudnn", mask, qkv), outcome("reference", mask, qkv), 0.02)


def test_cudnn_is_lowered_for_gpus(monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91300)
    monkeypatch.setattr("model.kernels.device_platform", lambda: "gpu")

    def weighed(q, k, v):
        return attend(q, k, v, CAUSAL, scale=0.25, implementation="cudnn").astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(weighed)).trace(*operands(dtype=jnp.bfloat16))
    lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmax" in lowered
    assert "__cudnn$fmhaSoftmaxBackward" in lowered


@pytest.mark.parametrize(
    ("spoil", "said"), [(1.0, None), (1.2, "its output differs from the reference's by 0.2 of the largest")]
)
def test_cudnn_is_tried_before_it_is_used(spoil, said, monkeypatch):
    through_xla(monkeypatch, spoil)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model.cudnn._failure.cache_clear()
    qkv = operands(dtype=jnp.bfloat16)
    with warnings.catch_warnings(record=True, action="always") as caught:
        found = outcome("cudnn", CAUSAL, qkv)
    model.cudnn._failure.cache_clear()
    assert [str(warning.message) for warning in caught] == (
        [f"attention is computed by xla, not by cudnn: {said}"] if said else []
    )
    assert_agrees(found, outcome("reference", CAUSAL, qkv), 0.02)


def test_cudnn_that_is_not_there_is_said(monkeypatch):
    with pytest.warns(UserWarning, match="not by cudnn: it is for NVIDIA GPUs"):
        attend(*operands(dtype=jnp.bfloat16), CAUSAL, scale=0.25, implementation="cudnn")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.warns(UserWarning, match="not by cudnn: it fails \\(RuntimeError: cuDNN is not detected"):
        attend(*operands(dtype=jnp.bfloat16), CAUSAL, scale=0.25, implementation="cudnn")
    model.cudnn._failure.cache_clear()


@pytest.mark.parametrize(("platform", "taken"), [("cpu", "xla"), ("tpu", "splash"), ("gpu", "cudnn")])
def test_the_devices_say_what_is_taken(platform, taken, monkeypatch):
    monkeypatch.setattr(model.kernels, "device_platform", lambda: platform)
    marks = {name: lambda q, *_, mark=mark: q + mark for mark, name in enumerate(model.kernels.IMPLEMENTATIONS)}
    monkeypatch.setattr(model.kernels, "IMPLEMENTATIONS", marks)
    q, k, v = operands(dtype=jnp.bfloat16)
    out = attend(q * 0, k, v, CAUSAL, scale=0.25)
    assert list(marks)[int(out[0, 0, 0, 0])] == taken


OBSTACLES = {
    "splash": {
        "200 queries and 256 keys are not both multiples of 128": {"length": 200},
        "it adds no bias to the scores": {"bias_BHLM": jnp.zeros((1, 4, 256, 256))},
        "its window would have to be that of every layer": {"mask": Mask(window=jnp.array(9))},
    },
    "cudnn": {
        "it computes in 16 bits, not in float32": {"dtype": jnp.float32},
        "its window goes with a causal mask only": {"mask": Mask(causal=False, window=9)},
        "it is given no bias of the scores": {"bias_BHLM": jnp.zeros((1, 4, 256, 256))},
    },
}


@pytest.mark.parametrize(
    ("implementation", "said", "changes"),
    [(name, *case) for name, cases in OBSTACLES.items() for case in cases.items()],
)
def test_what_a_kernel_cannot_is_computed_by_xla_and_said(implementation, said, changes, monkeypatch):
    monkeypatch.setattr("model.kernels.device_platform", lambda: "gpu")
    options = {"length": 256, "dtype": jnp.bfloat16, "mask": CAUSAL, "bias_BHLM": None} | changes
    qkv, mask = operands(options["length"], dtype=options["dtype"]), options["mask"]

    def run(implementation):
        return attend(*qkv, mask, scale=0.25, bias_BHLM=options["bias_BHLM"], implementation=implementation)

    with pytest.warns(UserWarning, match=f"by xla, not by {implementation}: .*{said}"):
        found = run(implementation)
    np.testing.assert_array_equal(found.astype(jnp.float32), run("xla").astype(jnp.float32))


def test_decoding_is_not_remarked_upon():
    q, k, v = operands(1)
    with warnings.catch_warnings(action="error"):
        attend(q, k, v, Mask(q_index_BL=jnp.full((2, 1), 9)), scale=0.25, implementation="splash")
