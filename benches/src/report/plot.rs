//! Curves as SVG.

use crate::section::{Axis, Plot, Spread};
use anyhow::anyhow;
use plotters::prelude::*;
use std::ops::Range;
use std::path::Path;

const SIZE: (u32, u32) = (860, 520);

/// Distinct also for those who don't see red and green apart (Okabe and Ito).
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(120, 120, 120),
];

/// Draws `plot` to `path`. Points that an axis can't show (zero on a logarithmic one) are left out.
///
/// # Errors
/// The file can't be written.
pub(super) fn draw(plot: &Plot, path: &Path) -> anyhow::Result<()> {
    chart(plot, path).map_err(|error| anyhow!("can't draw {}: {error}", path.display()))
}

fn chart(plot: &Plot, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (x, y) = (Scale(plot.x.is_log), Scale(plot.y.is_log));
    let series: Vec<(&str, Vec<Point>)> =
        plot.series.iter().map(|series| (series.name.as_str(), points(&series.points, x, y))).collect();
    let all = || series.iter().flat_map(|(_, points)| points);
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(&plot.title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(46)
        .y_label_area_size(76)
        .build_cartesian_2d(
            x.range(all().map(|point| point.x)),
            y.range(all().flat_map(|point| [point.low, point.high])),
        )?;
    chart
        .configure_mesh()
        .x_desc(label(&plot.x))
        .y_desc(label(&plot.y))
        .x_label_formatter(&|at| x.write(*at))
        .y_label_formatter(&|at| y.write(*at))
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .label_style(("sans-serif", 14))
        .draw()?;
    for (index, (name, points)) in series.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        chart
            .draw_series(LineSeries::new(
                points.iter().map(|point| (point.x, point.y)),
                color.stroke_width(2),
            ))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(3)));
        chart.draw_series(points.iter().map(|point| Circle::new((point.x, point.y), 3, color.filled())))?;
        chart.draw_series(
            points
                .iter()
                .filter(|point| point.low < point.high)
                .map(|point| PathElement::new([(point.x, point.low), (point.x, point.high)], color.mix(0.6))),
        )?;
    }
    if !series.is_empty() {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 14))
            .draw()?;
    }
    area.present()?;
    Ok(())
}

fn label(axis: &Axis) -> String {
    if axis.is_log { format!("{} (logarithmic)", axis.label) } else { axis.label.clone() }
}

/// A point as it is placed.
struct Point {
    x: f64,
    y: f64,
    low: f64,
    high: f64,
}

fn points(of: &[(f64, Spread)], x: Scale, y: Scale) -> Vec<Point> {
    of.iter()
        .filter_map(|&(at, spread)| {
            let middle = y.place(spread.median)?;
            Some(Point {
                x: x.place(at)?,
                y: middle,
                // A round of zero is below every logarithmic axis: its bar ends at the median.
                low: y.place(spread.low).unwrap_or(middle),
                high: y.place(spread.high).unwrap_or(middle),
            })
        })
        .collect()
}

/// Where values are placed along an axis: at themselves, or at their decimal logarithm.
#[derive(Clone, Copy)]
struct Scale(bool);

impl Scale {
    fn place(self, value: f64) -> Option<f64> {
        let placed = if self.0 { value.log10() } else { value };
        placed.is_finite().then_some(placed)
    }

    /// With room around; a linear axis starts at zero.
    fn range(self, placed: impl Iterator<Item = f64>) -> Range<f64> {
        let (low, high) =
            placed.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), at| (low.min(at), high.max(at)));
        if low > high {
            return 0.0..1.0;
        }
        let room = ((high - low) * 0.05).max(if self.0 { 0.05 } else { high.abs() * 0.05 }).max(1e-9);
        if self.0 || low < 0.0 { low - room..high + room } else { 0.0..high + room }
    }

    fn write(self, at: f64) -> String {
        let value = if self.0 { 10_f64.powf(at) } else { at };
        let (unit, scaled) = match value.abs() {
            size if size >= 1e9 => ("G", value / 1e9),
            size if size >= 1e6 => ("M", value / 1e6),
            size if size >= 1e4 => ("k", value / 1e3),
            _ => ("", value),
        };
        let text = if scaled.abs() >= 10.0 { format!("{scaled:.0}") } else { format!("{scaled:.2}") };
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        format!("{text}{unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short() {
        assert_eq!(Scale(true).write(3.0), "1000");
        assert_eq!(Scale(true).write(6.0), "1M");
        assert_eq!(Scale(false).write(2_500_000_000.0), "2.5G");
        assert_eq!(Scale(false).write(0.5), "0.5");
        assert_eq!(Scale(false).write(0.0), "0");
        assert_eq!(Scale(true).write(4.3), "20k");
    }

    #[test]
    fn zero_has_no_place_on_a_logarithmic_axis() {
        let zero = (0.0, Spread { median: 1.0, low: 0.0, high: 2.0 });
        assert!(points(&[zero], Scale(true), Scale(true)).is_empty());
        let drawn = points(&[zero], Scale(false), Scale(true));
        assert!((drawn[0].low - drawn[0].y).abs() < 1e-12);
    }

    #[test]
    fn an_empty_plot_is_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let axis = |is_log| Axis { label: "x".to_owned(), is_log };
        let plot = Plot {
            name: "empty".to_owned(),
            title: "Empty".to_owned(),
            x: axis(true),
            y: axis(false),
            series: Vec::new(),
        };
        draw(&plot, &dir.path().join("empty.svg")).unwrap();
    }
}
