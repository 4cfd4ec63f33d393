"""bnvuln: what does batch normalization cost a classifier in robustness, and what to do instead?

The public API is the functions below; `import bn_vuln` is quick, TensorFlow is imported by the first call that
needs it. See README.md for the commands.
"""

from bn_vuln.errors import BnvulnError, ConfigError, UsageError
from bn_vuln.runtime import backend
from bn_vuln.version import __version__

backend.prepare_environment()

__all__ = ["BnvulnError", "ConfigError", "UsageError", "__version__"]
