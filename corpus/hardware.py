"""What devices can compute, for estimates: peaks of data sheets, and the shares of them that are reached."""

from dataclasses import dataclass

from .runs import RunError

# What of a peak a large transformer and the search for nearest centroids reach, rounded down.
ENCODER_SHARE = {"fp32": 0.6, "bf16": 0.4, "fp16": 0.4}
SEARCH_SHARE = 0.3  # of 16-bit products
FILTERBANK_GBYTE = 0.03  # that the filterbank of a window moves in memory
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Hardware:
    """Dense peaks in TFLOP/s of float32 (outside tensor cores) and of 16-bit floats, and of memory in TB/s."""

    name: str
    fp32: float
    half: float
    memory: float

    def encoder_seconds(self, flops: float, precision: str) -> float:
        """Return the seconds of products in an encoder, in fp32, bf16 or fp16."""
        peak = self.fp32 if precision == "fp32" else self.half
        return flops / (1e12 * peak * ENCODER_SHARE[precision])

    def search_seconds(self, flops: float) -> float:
        """Return the seconds of products in the exact search, which scores in 16 bits."""
        return flops / (1e12 * self.half * SEARCH_SHARE)

    @property
    def filterbank_seconds(self) -> float:
        """Seconds of one window's filterbank."""
        return FILTERBANK_GBYTE / (1e3 * self.memory * MEMORY_SHARE)


# Vendor data sheets, without sparsity.
HARDWARE = {
    each.name: each
    for each in (
        Hardware("h200", 67, 989, 4.8),
        Hardware("h100", 67, 989, 3.35),
        Hardware("h100-pcie", 51, 756, 2.0),
        Hardware("b200", 75, 2250, 8.0),
        Hardware("a100", 19.5, 312, 2.0),
        Hardware("a10", 31, 125, 0.6),
        Hardware("l40s", 92, 362, 0.86),
        Hardware("l4", 30, 121, 0.3),
        Hardware("v100", 15.7, 125, 0.9),
        Hardware("t4", 8.1, 65, 0.32),
        Hardware("4090", 83, 165, 1.0),
        Hardware("3090", 36, 71, 0.94),
    )
}


def find_hardware(name: str) -> Hardware:
    """Return a device of the table. Raises RunError, listing them, for another."""
    if name.lower() not in HARDWARE:
        raise RunError(f"the device {name!r} is not in the table: {', '.join(HARDWARE)}, or here for this machine")
    return HARDWARE[name.lower()]
