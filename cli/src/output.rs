//! What a command prints: text, tables, JSON.
//!
//! Results go to standard output, everything else to standard error. A reader that went away (`| head`) ends the
//! command quietly.

#![allow(
    clippy::print_stdout,
    reason = "the results of a command are its output; only this module prints them"
)]

use crate::error::Failure;
use serde::Serialize;
use std::io::{self, Write as _};
use std::time::{Duration, UNIX_EPOCH};

/// Prints a text and a line feed.
///
/// # Errors
/// Standard output can't be written.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::Told),
        other => Ok(other?),
    }
}

/// Prints a value as JSON, indented.
///
/// # Errors
/// Standard output can't be written.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string_pretty(value)?)
}

/// A table of text with aligned columns.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

/// On which side a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let heads = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        Self { columns: columns.iter().map(|&(_, align)| align).collect(), rows: vec![heads] }
    }

    /// Adds a row; it has as many cells as there are columns.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// The text, without a line feed at its end.
    #[must_use]
    pub fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        let lines = self.rows.iter().map(|row| {
            let cells =
                row.iter().zip(&widths).zip(&self.columns).map(|((cell, &width), align)| match align {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// A time in milliseconds since the Unix epoch as RFC 3339; `None` for 0, which means never.
#[must_use]
pub fn time(unix_ms: u64) -> Option<String> {
    (unix_ms > 0)
        .then(|| humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms)).to_string())
}

/// How long ago (or how far ahead) a time is, for people: `5s ago`, `in 3h 59m`, `-` for never.
#[must_use]
pub fn relative(unix_ms: u64, now_ms: u64) -> String {
    if unix_ms == 0 {
        return "-".into();
    }
    let span = |ms: u64| {
        let s = ms / 1000;
        match s {
            0..60 => format!("{s}s"),
            60..3600 => format!("{}m {}s", s / 60, s % 60),
            3600..86400 => format!("{}h {}m", s / 3600, s / 60 % 60),
            _ => format!("{}d {}h", s / 86400, s / 3600 % 24),
        }
    };
    if unix_ms > now_ms {
        format!("in {}", span(unix_ms - now_ms))
    } else {
        format!("{} ago", span(now_ms - unix_ms))
    }
}

/// A number with thin groups of three: `1 245 396`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_has_no_space_at_line_ends() {
        let mut table = Table::new(&[("name", Align::Left), ("count", Align::Right), ("note", Align::Left)]);
        table.row(vec!["a".into(), "7".into(), String::new()]);
        table.row(vec!["größer".into(), "1234567".into(), "x".into()]);
        assert_eq!(table.render(), "name      count  note\na             7\ngrößer  1234567  x");
    }

    #[test]
    fn times_for_people() {
        assert_eq!(relative(0, 10), "-");
        assert_eq!(relative(1_000, 6_500), "5s ago");
        assert_eq!(relative(4 * 3_600_000, 1_000), "in 3h 59m");
        assert_eq!(relative(1, 86_400_000 * 2 + 3_600_001), "2d 1h ago");
        assert_eq!(time(0), None);
        assert_eq!(time(1_500).as_deref(), Some("1970-01-01T00:00:01.500Z"));
    }

    #[test]
    fn numbers_in_groups() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1 000", "1 234 567"]);
    }
}
