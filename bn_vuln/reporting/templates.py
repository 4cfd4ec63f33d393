"""The templates of pages, and the style that they share. Pages have no scripts and load nothing from elsewhere."""

from __future__ import annotations

from importlib import resources


def render(name: str, **values: object) -> str:
    """Return a page; the template may use `style`, that of reports. Text is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bn_vuln.reporting", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    report = (resources.files("bn_vuln.reporting") / "report.html.jinja").read_text(encoding="utf-8")
    style = report.partition("<style>")[2].partition("</style>")[0]
    return environment.get_template(name).render(style=style, **values)
