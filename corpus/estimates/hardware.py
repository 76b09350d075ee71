"""Speed of devices for estimates: peaks from data sheets, and the fractions of them that are reached."""

from dataclasses import dataclass

from sctok.corpus.runs.run_folder import RunError

# Measured on an H100 with the bundled encoder (width 192), 4096 centroids and batches of 64 windows: 0.10 of the 16-bit
# peak and 0.40 of the float32 peak; 27 µs of filterbank and 90 µs of search per window, nearly all of it launches.
# Assumed: 16-bit products get more efficient up to the width of `base`, and large searches reach SEARCH_SHARE.
FULL_WIDTH = 768
ENCODER_SHARE = {"fp32": 0.4, "bf16": 0.4, "fp16": 0.4}  # at the full width
SEARCH_SHARE = 0.3  # of the 16-bit peak
SEARCH_OVERHEAD = 8e-5  # seconds per window
FILTERBANK_GBYTE = 0.045  # memory traffic of the filterbank per window
MEMORY_SHARE = 0.5


def encoder_share(precision: str, width: int) -> float:
    """Return the fraction of its peak that a device reaches in an encoder."""
    return ENCODER_SHARE[precision] * (1.0 if precision == "fp32" else min(1.0, width / FULL_WIDTH))


@dataclass(frozen=True)
class Hardware:
    """Dense peaks of a device: float32 (without tensor cores) and 16-bit floats in TFLOP/s, and memory in TB/s."""

    name: str
    fp32: float
    half: float
    memory: float

    def encoder_seconds(self, flops: float, precision: str, width: int) -> float:
        """Return the seconds for the products of an encoder of this width, in fp32, bf16 or fp16."""
        peak = self.fp32 if precision == "fp32" else self.half
        return flops / (1e12 * peak * encoder_share(precision, width))

    def search_seconds(self, flops: float) -> float:
        """Return the seconds for the exact search of one window, which scores in 16 bits."""
        return flops / (1e12 * self.half * SEARCH_SHARE) + SEARCH_OVERHEAD

    @property
    def filterbank_seconds(self) -> float:
        """Seconds for the filterbank of one window."""
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
    """Return a device of the table by name. Raises RunError for an unknown name."""
    if name.lower() not in HARDWARE:
        raise RunError(f"unknown device {name!r}; use one of {', '.join(HARDWARE)}, or here for this machine")
    return HARDWARE[name.lower()]
