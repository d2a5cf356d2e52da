"""What can be chosen: models, clusters, workloads, plans, and the space of legal ones."""

from search_spaces.cluster import ClusterSpec, Constant, DeviceSpec, Origin, TierSpec
from search_spaces.cluster_presets import cluster_names, load_cluster
from search_spaces.errors import (
    InvalidSpec,
    MeshtuneError,
    NoLegalPlan,
    NothingFits,
    RunnerError,
    UnknownName,
)
from search_spaces.hf_config import load_hf_config
from search_spaces.model import AttentionSpec, EmbeddingSpec, MlpSpec, ModelSpec, MoeSpec
from search_spaces.model_presets import load_model, model_names
from search_spaces.plan import Plan, Plans
from search_spaces.space import SearchSpace, SpaceSpec
from search_spaces.state import TrainingState
from search_spaces.workload import Precision, Workload

__all__ = [
    "AttentionSpec",
    "ClusterSpec",
    "Constant",
    "DeviceSpec",
    "EmbeddingSpec",
    "InvalidSpec",
    "MeshtuneError",
    "MlpSpec",
    "ModelSpec",
    "MoeSpec",
    "NoLegalPlan",
    "NothingFits",
    "Origin",
    "Plan",
    "Plans",
    "Precision",
    "RunnerError",
    "SearchSpace",
    "SpaceSpec",
    "TierSpec",
    "TrainingState",
    "UnknownName",
    "Workload",
    "cluster_names",
    "load_cluster",
    "load_hf_config",
    "load_model",
    "model_names",
]
