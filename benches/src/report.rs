//! Writes a report down: Markdown, JSON, SVG.
