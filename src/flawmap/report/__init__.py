"""One self-contained HTML page that shows what a detector can do, and where it fails."""

from flawmap.report.page import write_report

__all__ = ["write_report"]
