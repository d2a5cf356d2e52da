"""What a device holds beside live tensors: the allocator's blocks that nothing fills, and the context.

    reserved = allocated (1 + f)                          what the caching allocator has taken
    device   = min(reserved + context, device memory)     what nvidia-smi shows

f is fragmentation.  The allocator gives free blocks back before it fails, so a plan may run with none of it:
`StepMemory.total_bytes` counts the context alone, and the interval runs from there to all of it.

Source: PyTorch, "CUDA semantics", section on memory management; f from published device figures beside
predicted tensors (benchmarks/data).
"""

import numpy as np

from objectives.cost.result import StepMemory
from objectives.metrics import Job
from search_spaces.cluster import Constant, Origin
from search_spaces.plan import Floats

FRAGMENTATION = Constant(
    value=0.15, origin=Origin.FITTED, source="fitted to published device memory (benchmarks/data)", spread=0.5
)


def reserved_bytes(memory: StepMemory) -> Floats:
    """Bytes in the allocator's blocks."""
    return memory.allocated_bytes * (1 + FRAGMENTATION.value)


def device_bytes(job: Job, memory: StepMemory) -> Floats:
    """Bytes that the device has given away; never more than it has."""
    return np.minimum(reserved_bytes(memory) + memory.reserve_bytes, job.cluster.device.memory_bytes)


def memory_bounds_bytes(job: Job, memory: StepMemory) -> tuple[Floats, Floats]:
    """Least and most peak bytes: a small context and no fragments; a large context and many.

    Returns
    -------
    two arrays of the shape of the memory's parts, bytes
    """
    context = job.cluster.memory_reserve_bytes
    fragments = FRAGMENTATION.value * (1 + FRAGMENTATION.spread)
    low = memory.allocated_bytes + memory.reserve_bytes / (1 + context.spread)
    high = memory.allocated_bytes * (1 + fragments) + memory.reserve_bytes * (1 + context.spread)
    return low, high
