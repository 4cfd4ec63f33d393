"""bnvuln: the robustness of classifiers, and what normalization has to do with it.

    import bn_vuln as bnv

    run = bnv.train({"arch": "mlp", "normalization": "batch"}, "runs/bn")
    result = bnv.attack("runs/bn", attack="pgd", eps="8/255", steps=20, limit=1000)
    result.record.accuracy, result.record.flags

The functions are those of `bn_vuln.api`. `import bn_vuln` is quick; TensorFlow is imported by the first call that needs
it.
"""

from typing import TYPE_CHECKING

from bn_vuln.errors import BnvulnError, ConfigError, UsageError
from bn_vuln.runtime import backend as _backend
from bn_vuln.version import __version__

_backend.prepare_environment()

__all__ = [
    "BnvulnError",
    "ConfigError",
    "UsageError",
    "__version__",
    "attack",
    "audit",
    "compare",
    "evaluate",
    "measure",
    "mend",
    "open_classifier",
    "pretrained",
    "publish",
    "report",
    "reproduce",
    "train",
    "transfer",
    "unpack",
    "verify",
]

if TYPE_CHECKING:
    from bn_vuln.api import (
        attack,
        audit,
        compare,
        evaluate,
        measure,
        mend,
        open_classifier,
        pretrained,
        publish,
        report,
        reproduce,
        train,
        transfer,
        unpack,
        verify,
    )
else:

    def __getattr__(name: str) -> object:
        """Import a public function when it is first asked for."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from bn_vuln import api

        return getattr(api, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
