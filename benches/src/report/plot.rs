//! Curves as SVG.

use crate::section::{Axis, Plot, Spread};
use anyhow::anyhow;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use std::ops::Range;
use std::path::Path;

const SIZE: (u32, u32) = (960, 520);
/// For the names of the curves, beside the chart.
const LEGEND: u32 = 180;
const LEGEND_LINE: i32 = 22;

/// Distinct also for those who don't see red and green apart (Okabe and Ito).
const COLORS: [RGBColor; 12] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(120, 120, 120),
    RGBColor(102, 51, 153),
    RGBColor(139, 90, 43),
    RGBColor(0, 80, 60),
    RGBColor(190, 190, 60),
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
    let (left, right) = area.split_horizontally(SIZE.0 - LEGEND);
    let across = x.range(all().map(|point| point.x));
    let up = y.range(all().flat_map(|point| [point.low, point.high]));
    let mut chart = ChartBuilder::on(&left)
        .caption(&plot.title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(46)
        .y_label_area_size(76)
        .build_cartesian_2d(Ticked::of(x, across), Ticked::of(y, up))?;
    chart
        .configure_mesh()
        .x_desc(label(&plot.x))
        .y_desc(label(&plot.y))
        .x_label_formatter(&|at| x.write(*at))
        .y_label_formatter(&|at| y.write(*at))
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .label_style(("sans-serif", 14))
        .draw()?;
    for (index, (name, points)) in series.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        let line = points.iter().map(|point| (point.x, point.y));
        chart.draw_series(LineSeries::new(line, color.stroke_width(2)))?;
        chart.draw_series(points.iter().map(|point| Circle::new((point.x, point.y), 3, color.filled())))?;
        let bars = points.iter().filter(|point| point.low < point.high);
        chart.draw_series(bars.map(|point| {
            PathElement::new([(point.x, point.low), (point.x, point.high)], color.mix(0.6).stroke_width(1))
        }))?;
        let at = 60 + LEGEND_LINE * i32::try_from(index)?;
        right.draw(&PathElement::new([(0, at), (18, at)], color.stroke_width(3)))?;
        right.draw(&Text::new((*name).to_owned(), (24, at - 7), ("sans-serif", 14)))?;
    }
    area.present()?;
    Ok(())
}

fn label(axis: &Axis) -> String {
    if axis.is_log { format!("{} (logarithmic)", axis.label) } else { axis.label.clone() }
}

/// A range that is labelled where values are round.
struct Ticked {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ticked {
    fn of(scale: Scale, range: Range<f64>) -> Self {
        Self { ticks: scale.ticks(&range), range }
    }
}

impl Ranged for Ticked {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        #[expect(clippy::cast_possible_truncation, reason = "a pixel of the drawing")]
        let pixels = (f64::from(limit.1 - limit.0) * share).round() as i32;
        limit.0 + pixels
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
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

    /// Round values: powers of ten, with 2 and 5 between where there is room; or steps of 1, 2 or 5.
    fn ticks(self, range: &Range<f64>) -> Vec<f64> {
        const MOST: f64 = 10.0;
        let span = range.end - range.start;
        if self.0 {
            let between: &[f64] = if span > 4.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            // No more than some 300 powers of ten are finite.
            let decades = (-310_i32..310).map(f64::from);
            let all = decades.flat_map(|decade| between.iter().map(move |step| decade + step.log10()));
            return all.filter(|tick| range.contains(tick)).collect();
        }
        let decade = 10_f64.powf((span / MOST).log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|step| step * decade).into_iter().find(|step| span / step <= MOST);
        let Some(step) = step else { return Vec::new() };
        let first = (range.start / step).ceil();
        (0..=10).map(|index| (first + f64::from(index)) * step).filter(|tick| range.contains(tick)).collect()
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
    fn ticks_are_round() {
        assert_eq!(Scale(false).ticks(&(0.0..5.25)), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let labels = |scale: Scale, range| -> Vec<String> {
            scale.ticks(&range).into_iter().map(|at| scale.write(at)).collect()
        };
        assert_eq!(labels(Scale(true), 0.9..2.1), ["10", "20", "50", "100"]);
        assert_eq!(labels(Scale(true), 0.0..6.5), ["1", "10", "100", "1000", "10k", "100k", "1M"]);
        assert_eq!(labels(Scale(false), 0.0..2600.0), ["0", "500", "1000", "1500", "2000", "2500"]);
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
