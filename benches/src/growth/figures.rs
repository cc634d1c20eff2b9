//! Cells, series and bounds that the parts of this module have in common.

use crate::load::Sample;
use crate::section::{Axis, Cell, Series, Spread};
use anyhow::ensure;
use std::collections::BTreeMap;

/// Figures by curve and x, one more each round.
#[derive(Debug, Default)]
pub(super) struct Curves(BTreeMap<(String, u64), Vec<f64>>);

impl Curves {
    pub(super) fn add(&mut self, curve: &str, x: u64, figure: f64) {
        self.0.entry((curve.to_owned(), x)).or_default().push(figure);
    }

    pub(super) fn at(&self, curve: &str, x: u64) -> Option<Spread> {
        Spread::of(self.0.get(&(curve.to_owned(), x))?)
    }

    /// A cell of a table; `–` for what was not measured.
    pub(super) fn cell(&self, curve: &str, x: u64, digits: usize) -> Cell {
        cell(self.at(curve, x), digits)
    }

    /// The curve for a plot, under another name.
    pub(super) fn series(&self, curve: &str, name: &str) -> Series {
        let points = self.0.iter().filter(|((own, _), _)| own == curve);
        let points = points.filter_map(|((_, x), figures)| Some((float(*x), Spread::of(figures)?)));
        Series { name: name.to_owned(), points: points.collect() }
    }
}

pub(super) fn cell(figure: Option<Spread>, digits: usize) -> Cell {
    figure.map_or_else(|| text("–"), |value| Cell::Figure { value, digits })
}

pub(super) fn text(text: impl Into<String>) -> Cell {
    Cell::Text(text.into())
}

pub(super) fn axis(label: &str, is_log: bool) -> Axis {
    Axis { label: label.to_owned(), is_log }
}

pub(super) fn columns(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "counts and bytes here stay far below 2^52")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

/// Responses a second.
pub(super) fn rate(sample: &Sample) -> f64 {
    float(sample.requests) / sample.elapsed.as_secs_f64()
}

/// Bodies' bytes a second, in MB of a million.
pub(super) fn megabytes_per_second(sample: &Sample) -> f64 {
    float(sample.bytes) / 1e6 / sample.elapsed.as_secs_f64()
}

/// In µs.
pub(super) fn p99_us(sample: &Sample) -> f64 {
    float(sample.latency.value_at_quantile(0.99)) / 1e3
}

/// A figure that comes with failures is no figure.
pub(super) fn without_failures(sample: Sample, what: &str) -> anyhow::Result<Sample> {
    let first = sample.first_failure.as_deref().unwrap_or("not said");
    ensure!(sample.failures == 0, "{what}: {} requests failed; the first: {first}", sample.failures);
    Ok(sample)
}

/// By how much y grows for each x: the least squares' line through the points.
pub(super) fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = float(points.len() as u64);
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let across = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>();
    let along = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum::<f64>();
    (along > 0.0).then(|| across / along)
}

/// A length as people write it.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 30 && bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Curves, size, slope};

    #[test]
    fn a_line_has_its_slope() {
        let points = [(0.0, 5.0), (10.0, 25.0), (50.0, 105.0)];
        assert!((slope(&points).unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(slope(&[(3.0, 1.0), (3.0, 2.0)]), None);
        assert_eq!(slope(&[]), None);
    }

    #[test]
    fn curves_by_x() {
        let mut curves = Curves::default();
        for (x, figure) in [(10, 3.0), (2, 1.0), (10, 5.0)] {
            curves.add("own", x, figure);
        }
        let series = curves.series("own", "Own");
        assert_eq!(
            series.points.iter().map(|(x, spread)| (*x, spread.median)).collect::<Vec<_>>(),
            [(2.0, 1.0), (10.0, 4.0)]
        );
        assert!(curves.at("other", 2).is_none());
    }

    #[test]
    fn lengths() {
        assert_eq!([64, 1 << 10, 3 << 20, 1 << 30].map(size), ["64 B", "1 KiB", "3 MiB", "1 GiB"]);
    }
}
