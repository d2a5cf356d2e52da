"""Peak bytes of a step: states, activations in flight and what lives for a moment, on the fullest stage.

Many plans share one setting of the knobs that bytes depend on, so a setting is priced once.  It is also what
tells first whether a plan fits: seconds need asking of those alone that do.
"""

from dataclasses import dataclass

import numpy as np

from objectives.cost import pipeline
from objectives.cost.activations import (
    ACTIVATION_KNOBS,
    StageActivations,
    boundary_bytes,
    stage_activations,
)
from objectives.cost.factored import distinct, factored, spread
from objectives.cost.result import StepMemory
from objectives.cost.stages import Stages, held_stages, representatives
from objectives.cost.states import STATE_BYTES_KNOBS, StateBytes, held_parameters, held_states, state_bytes
from objectives.cost.tokens import microbatches
from objectives.metrics import Job
from search_spaces.framework import framework_named
from search_spaces.memory_habits import Release
from search_spaces.plan import Floats, Ints, Plans

MEMORY_KNOBS = tuple(
    dict.fromkeys(
        (
            *STATE_BYTES_KNOBS, *ACTIVATION_KNOBS, "schedule", "n_microbatches", "pipeline_limit",
            "extra_warmup", "overlap_dp",
        )
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PeakMemory:
    """Bytes of the fullest representative stage, and which it is: of every setting, (n_settings,).

    `setting` says which of them a plan has; shape (n_plans,).
    """

    memory: StepMemory
    stage: Ints
    setting: Ints

    @property
    def total_bytes(self) -> Floats:
        """Peak bytes of every plan; shape (n_plans,)."""
        total: Floats = self.memory.total_bytes[self.setting]
        return total

    def take(self, index: Ints) -> "PeakMemory":
        """That of the plans at the given positions."""
        return PeakMemory(memory=self.memory, stage=self.stage, setting=self.setting[index])

    def by_plan(self) -> tuple[StepMemory, Ints]:
        """Parts and stage of every plan; shape (n_plans,)."""
        return spread(self.memory, self.setting), self.stage[self.setting]


def peak_memory(job: Job, plans: Plans) -> PeakMemory:
    """Peak bytes of every plan; of many with one setting of `MEMORY_KNOBS` only the first is looked at."""
    some, setting = distinct(plans, MEMORY_KNOBS)
    memory, stage = fullest_stage(job, some)
    return PeakMemory(memory=memory, stage=stage, setting=setting)


def fullest_stage(job: Job, plans: Plans) -> tuple[StepMemory, Ints]:
    """Bytes of the fullest of the representative stages, by part; each of shape (n_plans,)."""
    index = representatives(job, plans).index
    states = factored(plans, STATE_BYTES_KNOBS, lambda rows: held_states(job, rows))
    kept = factored(plans, ACTIVATION_KNOBS, lambda rows: kept_activations(job, rows))
    flights = pipeline.in_flight(plans, microbatches(job, plans), index, release_of(job))
    by_stage = _at_peak(job, plans, states, kept, flights)
    flat = np.argmax(by_stage.total_bytes, axis=0) * len(plans) + np.arange(len(plans))
    parts = {name: getattr(by_stage, name).ravel()[flat] for name in StepMemory.__dataclass_fields__}
    return StepMemory(**parts), index.ravel()[flat]


def kept_activations(job: Job, plans: Plans) -> StageActivations:
    """Activations of the representative stages; arrays of shape (n_representatives, n_plans)."""
    return stage_activations(job, plans, held_stages(job, plans, representatives(job, plans).index))


def release_of(job: Job) -> Release:
    """When the trainer gives back activations where it splits the backward pass."""
    return framework_named(job.workload.framework).memory.release


def buffer_bytes(job: Job, plans: Plans, boundary: Floats, transient: Floats, held: StateBytes) -> Floats:
    """What lives for a moment only, per stage.

    Two messages each way between stages, the sequences that lie whole beside sp, a layer being recomputed,
    the layers that ZeRO holds whole, and the buckets of an overlapped reduction.
    """
    between = np.where(plans.pp > 1, 4 * boundary, 0.0)
    n_whole = framework_named(job.workload.framework).memory.whole_sequences
    messages = between + np.where(plans.sequence_parallel, n_whole * boundary * plans.tp, 0.0)
    return messages + transient + held.whole_bytes + plans.overlap_dp * held.bucket_bytes


def _beside_activations(job: Job, m: Ints, gradients: Floats, freed: Floats) -> Floats:
    """Gradients at the peak: all, or with one micro-batch in a step what they need beyond all that it frees.

    Where a trainer makes gradients as they come, there are none when activations are most.
    """
    if not framework_named(job.workload.framework).memory.gradients_on_demand:
        return gradients
    return np.where(m == 1, np.maximum(gradients - freed, 0.0), gradients)


def _through_update(buffers: Floats, update: Floats, freed: Floats) -> Floats:
    """Buffers at the peak: those of the passes, or what the update needs beyond all that the passes free."""
    return np.maximum(buffers, update - freed)


def stage_memory(
    job: Job, one: Plans, stages: Stages, activations: StageActivations, flights: Floats
) -> StepMemory:
    """Bytes of every stage of one plan, by part."""
    held = state_bytes(job, one, held_parameters(job, one, stages), stages)
    by_stage = _at_peak(job, one, held, activations, flights)
    return StepMemory(**{name: getattr(by_stage, name)[:, 0] for name in StepMemory.__dataclass_fields__})


def _at_peak(
    job: Job, plans: Plans, states: StateBytes, kept: StageActivations, flights: Floats
) -> StepMemory:
    """Bytes of each stage at its peak, by part; arrays of shape (n_stages, n_plans)."""
    activations = flights * kept.kept_bytes
    with_loss = activations + kept.logits_bytes
    buffers = buffer_bytes(job, plans, boundary_bytes(job, plans), kept.transient_bytes, states)
    parts = dict(
        weights_bytes=states.weights_bytes,
        gradients_bytes=_beside_activations(
            job, microbatches(job, plans), states.gradients_bytes, with_loss + kept.transient_bytes
        ),
        optimizer_bytes=states.optimizer_bytes,
        activations_bytes=activations,
        logits_bytes=kept.logits_bytes,
        buffers_bytes=_through_update(buffers, states.update_bytes, with_loss),
        reserve_bytes=np.array(job.cluster.memory_reserve_bytes.value),
    )
    return StepMemory(**{name: np.broadcast_to(part, flights.shape) for name, part in parts.items()})
