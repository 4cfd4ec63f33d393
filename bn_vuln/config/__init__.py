"""Configs: typed, frozen, validated. A config is the experiment: all that changes a result is a field here.

YAML or command-line options become the objects below. Unknown keys, wrong types and impossible values raise
`ConfigError`, which names the file, the key, what was expected, what was received and the nearest known key.
Numbers may be written as fractions: "8/255". Short forms: `normalization: batch` means `{name: batch}`, and
likewise for `data`, `arch` and `schedule`.
"""

from bn_vuln.config.cell import (
    Arch,
    BatchNormalization,
    Cell,
    ConstantSchedule,
    Data,
    LinearArch,
    MLPArch,
    NoNormalization,
    Normalization,
    Schedule,
    StepSchedule,
    Train,
)
from bn_vuln.config.experiment import SCALES, Experiment, PaperValue, Scale, Table
from bn_vuln.config.perturbation import AWGN, Attack, Box, Clean, Evaluation, Perturbation, StandardizedBox, Suite, Unit
from bn_vuln.config.reading import (
    apply_override,
    load_experiment,
    parse_assignment,
    read_yaml,
    to_plain,
    to_yaml,
    validate,
)
from bn_vuln.config.values import Frozen, Interval, nearest, parse_number
from bn_vuln.config.words import describe, describe_fields, describe_perturbation

__all__ = [
    "Arch",
    "BatchNormalization",
    "Cell",
    "ConstantSchedule",
    "Data",
    "LinearArch",
    "MLPArch",
    "NoNormalization",
    "Normalization",
    "Schedule",
    "StepSchedule",
    "Train",
    "SCALES",
    "Experiment",
    "PaperValue",
    "Scale",
    "Table",
    "AWGN",
    "Attack",
    "Box",
    "Clean",
    "Evaluation",
    "Perturbation",
    "StandardizedBox",
    "Suite",
    "Unit",
    "apply_override",
    "load_experiment",
    "parse_assignment",
    "read_yaml",
    "to_plain",
    "to_yaml",
    "validate",
    "Frozen",
    "Interval",
    "nearest",
    "parse_number",
    "describe",
    "describe_fields",
    "describe_perturbation",
]
