"""The step as the TPU's own compiler makes it, for slices that are not here; skipped where libtpu is not installed."""

import dataclasses
import re

import numpy as np
import pytest
from jax.experimental import topologies

from data.dataset import DataConfig
from train.config import RunConfig
from train.mesh import MeshConfig, make_mesh
from train.program import Program

pytest.importorskip("libtpu", reason="needs libtpu, TPUs' compiler, as the extra `tpu` installs it")

LENGTH = 256
ROW = dict.fromkeys(("tokens", "targets", "segments", "positions"), np.zeros(LENGTH, np.int32))


@pytest.mark.parametrize("slice", ["v5e:4x4", "v5p:2x2x2", "v6e:4x4"])
def test_the_step_compiles_for_a_slice(slice, tiny_llama, monkeypatch):
    """Attention is splash's, once forward and once backward, and weights travel in bfloat16, gradients in parts."""
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=slice).devices
    sizes = {"model_dim": 512, "head_dim": 128, "mlp_dim": 1024, "max_length": LENGTH}
    config = RunConfig(
        model=dataclasses.replace(tiny_llama, remat="attention", **sizes),
        data=DataConfig(max_length=LENGTH),
        batch_size=len(devices),
        precision="bfloat16",
    )
    program = Program.of(config, make_mesh(MeshConfig(data=1, fsdp=-1), devices))
    text = program.compile_step({**ROW, "scored": np.zeros(LENGTH, bool)}).as_text()

    kernels = re.findall(r"%(\w+?)[.\d]* = .*custom_call_target=\"tpu_custom_call\"", text)
    assert sorted(name.split("_")[2] for name in kernels if name.startswith("splash")) == ["dkv", "dq", "fwd"]
    gathered = set(re.findall(r"= \(?(\w+)\[[^=]* all-gather(?:-start)?\(", text))
    assert "bf16" in gathered
    assert gathered <= {"bf16", "s32", "pred"}
    assert re.search(r"reduce-scatter", text)
