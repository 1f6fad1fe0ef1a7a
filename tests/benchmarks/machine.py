"""What the rows ran on."""

import importlib.metadata
import importlib.util
from typing import Any

import jax


def measure(name: str, repetitions: int) -> dict[str, Any]:
    """Device and versions."""
    packages = [package for package in ("jax", "torch", "transformers") if importlib.util.find_spec(package)]
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {"platform": jax.default_backend(), "device": jax.devices()[0].device_kind, "versions": versions}
