"""`jumok devices`: what a run would find here."""

from dataclasses import dataclass
from typing import Any

import jax

from train.console import Console
from train.environment import versions
from train.hardware import memory_limit, peak_flops


@dataclass(frozen=True)
class Arguments:
    """Shows the devices that JAX sees, their memory, their peak where it is known, and the versions in use."""


def main(arguments: Arguments, console: Console) -> dict[str, Any]:
    """The `devices` command."""
    devices = [
        {
            "id": device.id,
            "platform": device.platform,
            "kind": device.device_kind,
            "process": device.process_index,
            "memory_bytes": memory_limit(device) if device in jax.local_devices() else None,
            "peak_flops": peak_flops(device),
        }
        for device in jax.devices()
    ]
    found = versions()
    rows = [
        [
            device["id"],
            device["platform"],
            device["kind"],
            f"{device['memory_bytes'] / 2**30:.1f} GiB" if device["memory_bytes"] else "unknown",
            f"{device['peak_flops'] / 1e12:.0f} TFLOP/s" if device["peak_flops"] else "unknown",
        ]
        for device in devices
    ]
    console.table("", ("device", "platform", "kind", "memory", "peak (bfloat16)"), rows)
    console.say()
    console.table("", ("", ""), sorted(found.items()))
    return {"devices": devices, "versions": found}
