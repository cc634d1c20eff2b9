//! What a part of the harness has to say: tables, targets and plots, before they are written down.

use serde::{Deserialize, Serialize};

/// A median with the lowest and highest of its rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median over the rounds.
    pub median: f64,
    /// The lowest round.
    pub low: f64,
    /// The highest round.
    pub high: f64,
}

/// One part of a report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Section {
    /// Title, as a heading.
    pub title: String,
    /// How it was measured, in a few sentences.
    pub method: String,
    /// The figures.
    pub tables: Vec<Table>,
    /// What was aimed at, and what came out.
    pub targets: Vec<Target>,
    /// Curves.
    pub plots: Vec<Plot>,
}

/// A table of figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// Title.
    pub title: String,
    /// Heads of the columns; the first is what the row is.
    pub columns: Vec<String>,
    /// One for each row, as many cells as columns.
    pub rows: Vec<Vec<Cell>>,
}

/// One cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    /// A measured figure.
    Figure {
        /// The figure.
        value: Spread,
        /// Digits behind the point when it is written down.
        digits: usize,
    },
    /// Anything else; `–` for what was not measured.
    Text(String),
}

/// A target and what came out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// What was measured, with unit.
    pub what: String,
    /// What is aimed at.
    pub bound: Bound,
    /// What came out; `None` if it could not be measured.
    pub figure: Option<Spread>,
    /// Whether it is met.
    pub verdict: Verdict,
    /// Why not, or how to read it.
    pub why: String,
}

/// What a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// No less than this.
    AtLeast(f64),
    /// No more than this.
    AtMost(f64),
}

/// Whether a target is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The median is within the bound.
    Met,
    /// It is not, and the spread leaves no doubt.
    NotMet,
    /// The spread crosses the bound: this run can't tell.
    TooNoisy,
    /// Not measured in this run.
    NotMeasured,
}

/// A curve or several, drawn as SVG.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plot {
    /// File name without extension.
    pub name: String,
    /// Title.
    pub title: String,
    /// Label of the horizontal axis, with unit.
    pub x: Axis,
    /// Label of the vertical axis, with unit.
    pub y: Axis,
    /// The curves.
    pub series: Vec<Series>,
}

/// An axis.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Axis {
    /// Label with unit.
    pub label: String,
    /// Logarithmic.
    pub is_log: bool,
}

/// One curve.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    /// What it shows.
    pub name: String,
    /// Points, by x.
    pub points: Vec<(f64, Spread)>,
}

impl Spread {
    /// Of the rounds' figures; `None` without any.
    #[must_use]
    pub fn of(rounds: &[f64]) -> Option<Self> {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, low, high })
    }
}

impl Bound {
    /// Whether `value` is within.
    #[must_use]
    pub fn takes(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl Target {
    /// Judges `figure`: by its median where that is met, and as too noisy where the median fails but a round passed.
    #[must_use]
    pub fn judge(
        what: impl Into<String>,
        bound: Bound,
        figure: Option<Spread>,
        why: impl Into<String>,
    ) -> Self {
        let verdict = match figure {
            None => Verdict::NotMeasured,
            Some(figure) if bound.takes(figure.median) => Verdict::Met,
            Some(figure) if bound.takes(figure.low) || bound.takes(figure.high) => Verdict::TooNoisy,
            Some(_) => Verdict::NotMet,
        };
        Self { what: what.into(), bound, figure, verdict, why: why.into() }
    }
}
