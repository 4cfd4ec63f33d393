"""The result of an audit in Python: findings, with tables of pandas and figures for notebooks."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bn_vuln.auditing.findings import Findings
from bn_vuln.reporting import audit_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Attributes:
        findings: everything, as `audit.json` has it.
        folder: of the page; None where nothing was kept.
    """

    findings: Findings
    folder: Path | None

    @property
    def page(self) -> Path | None:
        """The page; None where nothing was kept."""
        return None if self.folder is None else self.folder / audit_page.FILE

    @property
    def met(self) -> bool:
        """Return if all requirements are met."""
        return all(one.met for one in self.findings.requirements)

    @property
    def tables(self) -> dict[str, DataFrame]:
        """Tables of pandas by name: accuracies, curve, layers, what_ifs, finalists, advice."""
        import pandas

        return {name: pandas.DataFrame(rows) for name, rows in audit_page.tables(self.findings).items()}

    @property
    def figures(self) -> dict[str, Figure]:
        """Figures of matplotlib by name: curve, layers."""
        return audit_page.figures(self.findings)

    def __str__(self) -> str:
        """The findings in words, the advice first."""
        return audit_page.text(self.findings)

    def _repr_html_(self) -> str:
        page = html.escape(audit_page.html(self.findings, self.folder))
        return f'<iframe srcdoc="{page}" style="width:100%;height:800px;border:0"></iframe>'
