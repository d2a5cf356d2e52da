"""What the cost model answers: seconds and bytes by part, per plan and per pipeline stage."""

from dataclasses import dataclass, fields

import numpy as np

from search_spaces.plan import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepTime:
    """Exposed seconds of one optimizer step on the slowest path; each part has shape (n_plans,)."""

    compute_s: Floats
    recompute_s: Floats
    tp_comm_s: Floats
    cp_comm_s: Floats
    ep_comm_s: Floats
    launch_s: Floats
    pp_comm_s: Floats
    bubble_s: Floats
    dp_comm_s: Floats
    optimizer_s: Floats
    offload_s: Floats
    fixed_s: Floats

    @property
    def total_s(self) -> Floats:
        """The parts are exposed times, so they add."""
        total = self.compute_s.copy()
        for field in fields(self)[1:]:
            total += getattr(self, field.name)
        return total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepMemory:
    """Peak bytes on one device by part: (n_plans,) at every fullest stage, or (n_stages,) of one plan."""

    weights_bytes: Floats
    gradients_bytes: Floats
    optimizer_bytes: Floats
    activations_bytes: Floats
    logits_bytes: Floats
    buffers_bytes: Floats
    reserve_bytes: Floats

    @property
    def total_bytes(self) -> Floats:
        """The parts are live at the same moment, so they add."""
        total = self.weights_bytes.copy()
        for field in fields(self)[1:]:
            total += getattr(self, field.name)
        return total

    @property
    def allocated_bytes(self) -> Floats:
        """Bytes of live tensors: without the context, and without what the allocator keeps in reserve."""
        allocated: Floats = self.total_bytes - self.reserve_bytes
        return allocated


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """Time and memory of many plans; `peak_stage` is the stage whose memory is the largest.

    `pass_share` is the mean over the stages of what passes take, by what `time` says of them; `host_s` the
    seconds in which hosts move and update an offloaded optimizer, those beside passes included.  `visited_s`
    are the exposed seconds, of `time.offload_s`, in which the device updates the state that visits it.
    """

    time: StepTime
    memory: StepMemory
    peak_stage: Ints
    pass_share: Floats
    host_s: Floats
    visited_s: Floats

    def take(self, index: Ints | slice) -> "Estimate":
        """Estimates at the given positions."""
        return Estimate(
            time=StepTime(**{f.name: getattr(self.time, f.name)[index] for f in fields(StepTime)}),
            memory=StepMemory(**{f.name: getattr(self.memory, f.name)[index] for f in fields(StepMemory)}),
            peak_stage=self.peak_stage[index],
            pass_share=self.pass_share[index],
            host_s=self.host_s[index],
            visited_s=self.visited_s[index],
        )

    @property
    def step_s(self) -> Floats:
        """Seconds of one optimizer step."""
        return self.time.total_s

    @property
    def peak_memory_bytes(self) -> Floats:
        """Bytes on the fullest device."""
        return self.memory.total_bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageProfile:
    """One plan, stage by stage: what a pipeline simulator needs; every array has shape (pp,).

    Times are those of one micro-batch through the stage's whole share of layers, with their exposed tensor-,
    context- and expert-parallel communication inside: `forward_s`, `backward_input_s` (with recomputation)
    and `backward_weight_s`.  `send_s` is one activation (or gradient) message to the next stage. `step_end_s`
    is what follows the last backward pass on every stage: exposed gradient reduction and parameter gather,
    optimizer, offload, fixed cost.
    """

    n_layers: Ints
    forward_s: Floats
    backward_input_s: Floats
    backward_weight_s: Floats
    send_s: Floats
    step_end_s: Floats
    memory: StepMemory
    activation_bytes: Floats
    in_flight: Floats

    @property
    def backward_s(self) -> Floats:
        """Full backward pass of one micro-batch."""
        return self.backward_input_s + self.backward_weight_s

    @property
    def peak_stage(self) -> int:
        """The stage that holds the most bytes."""
        return int(np.argmax(self.memory.total_bytes))
