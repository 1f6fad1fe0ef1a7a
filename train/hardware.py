"""Peaks and memory of known devices, by the name JAX gives them; read by MFU while training and by planning.

Peaks are dense bfloat16 FLOP/s with float32 accumulation (no structured sparsity), memory is bytes; both are the
makers' published figures for one JAX device, which on TPU v2, v3 and 7x is half a chip.
"""

import os
import resource
from dataclasses import dataclass
from typing import Any, Protocol

GIB = 2**30


class Device(Protocol):
    """What is asked of a `jax.Device`."""

    platform: str
    device_kind: str

    def memory_stats(self) -> dict[str, Any] | None:
        """Bytes by name ("bytes_limit", "peak_bytes_in_use"), where the runtime tells."""
        ...


@dataclass(frozen=True)
class Hardware:
    """What one JAX device of a kind can do: `peak_flops` dense bfloat16 FLOP/s, `memory_bytes` of device memory."""

    peak_flops: float
    memory_bytes: int


# Device kinds are compared as prefixes, the longest first: makers append memory sizes and form factors ("NVIDIA H100
# 80GB HBM3").
HARDWARE = {
    "TPU v2": Hardware(22.5e12, 8 * GIB),
    "TPU v3": Hardware(61.5e12, 16 * GIB),
    "TPU v4": Hardware(275e12, 32 * GIB),
    "TPU v4 lite": Hardware(138e12, 8 * GIB),
    "TPU v5 lite": Hardware(197e12, 16 * GIB),
    "TPU v5e": Hardware(197e12, 16 * GIB),
    "TPU v5": Hardware(459e12, 95 * GIB),  # as v5p reports itself
    "TPU v5p": Hardware(459e12, 95 * GIB),
    "TPU v6 lite": Hardware(918e12, 32 * GIB),
    "TPU v6e": Hardware(918e12, 32 * GIB),
    "TPU7x": Hardware(1153.5e12, 96 * GIB),
    "NVIDIA B200": Hardware(2250e12, 180 * GIB),
    "NVIDIA GH200": Hardware(989e12, 96 * GIB),
    "NVIDIA H200": Hardware(989e12, 141 * GIB),
    "NVIDIA H200 NVL": Hardware(835e12, 141 * GIB),
    "NVIDIA H100": Hardware(989e12, 80 * GIB),
    "NVIDIA H100 PCIe": Hardware(756e12, 80 * GIB),
    "NVIDIA H100 NVL": Hardware(835e12, 94 * GIB),
    "NVIDIA A100": Hardware(312e12, 40 * GIB),
    "NVIDIA A100-SXM4-80GB": Hardware(312e12, 80 * GIB),
    "NVIDIA A100 80GB": Hardware(312e12, 80 * GIB),
    "NVIDIA A10G": Hardware(70e12, 24 * GIB),
    "NVIDIA L4": Hardware(121e12, 24 * GIB),
    "NVIDIA L40S": Hardware(362e12, 48 * GIB),
    "AMD Instinct MI300X": Hardware(1307e12, 192 * GIB),
}


def find_hardware(device_kind: str) -> Hardware | None:
    """The table's entry for a `jax.Device.device_kind`, or None where it is not known ("NVIDIA L40" is not an L4)."""
    matches = [name for name in HARDWARE if device_kind == name or device_kind.startswith((f"{name} ", f"{name}-"))]
    return HARDWARE[max(matches, key=len)] if matches else None


def peak_flops(device: Device) -> float | None:
    """Dense bfloat16 FLOP/s of one device, or None where the peak is unknown (every CPU, devices not in the table)."""
    hardware = find_hardware(device.device_kind)
    return hardware.peak_flops if hardware else None


def memory_limit(device: Device) -> int | None:
    """Bytes that the process may use on a device; on a CPU the machine's memory, which all simulated devices share."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = (device.memory_stats() or {}).get("bytes_limit")
    hardware = find_hardware(device.device_kind)
    return limit or (hardware.memory_bytes if hardware else None)


def memory_in_use(device: Device) -> int | None:
    """The most bytes in use on a device so far; on a CPU the process's peak resident memory, all devices together."""
    if device.platform == "cpu":
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
        return kilobytes * 1024
    stats = device.memory_stats() or {}
    return stats.get("peak_bytes_in_use", stats.get("bytes_in_use"))


def mfu(tokens_per_second: float, flops_per_token: float, peak: float | None) -> float | None:
    """Model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B) as a fraction, or None where the peak is unknown.

    Args:
        tokens_per_second: over all devices that `peak` counts.
        flops_per_token: of the model, forward and backward, without recomputation.
        peak: FLOP/s of those devices together.
    """
    return tokens_per_second * flops_per_token / peak if peak else None
