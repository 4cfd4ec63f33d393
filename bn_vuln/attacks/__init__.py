"""Attacks: searches of (predict, x, y, threat model, settings), independent of data sets and architectures."""

from bn_vuln.attacks.threat_model import ThreatModel, from_config
from bn_vuln.typing import Predict

__all__ = ["Predict", "ThreatModel", "from_config"]
