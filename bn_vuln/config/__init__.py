"""Configs: typed, frozen, validated. A config is the experiment: all that changes a result is a field here.

YAML or command-line options become the objects below. Unknown keys, wrong types and impossible values raise
`ConfigError`, which names the file, the key, what was expected, what was received and the nearest known key.
Numbers may be written as fractions: "8/255". Short forms: `normalization: batch` means `{name: batch}`, and
likewise for `data`, `arch` and `schedule`.
"""

from bn_vuln.config.adversarial import Adversarial
from bn_vuln.config.arch import (
    Arch,
    DeepArch,
    LinearArch,
    MLPArch,
    NearestCentroidArch,
    ResNetArch,
    VGGArch,
    WideResNetArch,
)
from bn_vuln.config.augment import Augment
from bn_vuln.config.awgn import AWGN
from bn_vuln.config.box import Box, StandardizedBox, Unit
from bn_vuln.config.cell import Cell, ConstantSchedule, CosineSchedule, Data, Schedule, StepSchedule, Train
from bn_vuln.config.columns import AT, DISTANCE, LOSS, Derived, EvaluationPlan, ExtraEvaluation
from bn_vuln.config.describe import describe_cell, describe_fields, describe_perturbation
from bn_vuln.config.experiment import SCALES, Choice, Claim, Experiment, Figure, Place, Scale, Table
from bn_vuln.config.loading import (
    apply_override,
    identity,
    load_experiment,
    parse_assignment,
    read_yaml,
    to_plain,
    to_yaml,
    validate,
)
from bn_vuln.config.measurement import BatchStatistics, ColumnUnit, Fooling, Measurement, Spectrum, Tilt
from bn_vuln.config.minimal import Minimal
from bn_vuln.config.normalization import (
    BatchNormalization,
    FilterResponseNormalization,
    Fixup,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    NoNormalization,
    Normalization,
    WeightStandardizedGroupNormalization,
)
from bn_vuln.config.perturbation import (
    Attack,
    Clean,
    Corruption,
    Evaluation,
    Perturbation,
    Suite,
    radius,
    with_eps_grid,
)
from bn_vuln.config.types import Frozen, Interval, named, nearest, parse_number

__all__ = [
    "Adversarial",
    "Arch",
    "Augment",
    "BatchNormalization",
    "Cell",
    "ConstantSchedule",
    "CosineSchedule",
    "Data",
    "DeepArch",
    "LinearArch",
    "MLPArch",
    "NearestCentroidArch",
    "NoNormalization",
    "Normalization",
    "Schedule",
    "StepSchedule",
    "Train",
    "VGGArch",
    "ResNetArch",
    "WideResNetArch",
    "FilterResponseNormalization",
    "Fixup",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "WeightStandardizedGroupNormalization",
    "AT",
    "DISTANCE",
    "LOSS",
    "Derived",
    "ExtraEvaluation",
    "EvaluationPlan",
    "SCALES",
    "Choice",
    "BatchStatistics",
    "ColumnUnit",
    "Experiment",
    "Figure",
    "Claim",
    "Place",
    "Scale",
    "Table",
    "Fooling",
    "Measurement",
    "Spectrum",
    "Tilt",
    "AWGN",
    "Attack",
    "Minimal",
    "Box",
    "Clean",
    "Corruption",
    "Evaluation",
    "Perturbation",
    "StandardizedBox",
    "Suite",
    "Unit",
    "radius",
    "with_eps_grid",
    "apply_override",
    "identity",
    "load_experiment",
    "parse_assignment",
    "read_yaml",
    "to_plain",
    "to_yaml",
    "validate",
    "Frozen",
    "Interval",
    "named",
    "nearest",
    "parse_number",
    "describe_cell",
    "describe_fields",
    "describe_perturbation",
]
