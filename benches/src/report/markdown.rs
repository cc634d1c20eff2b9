//! The report as Markdown: the targets first.

use super::Report;
use crate::pairs::Turns;
use crate::section::{Bound, Cell, Section, Spread, Table, Verdict};
use std::fmt::Write as _;

/// The whole report.
pub(super) fn write(report: &Report) -> String {
    let mut text = String::from("# Load report\n\n");
    if !report.command.is_empty() {
        push(&mut text, format_args!("Made by `{}`, started {}.\n", report.command, report.started));
    }
    text.push_str(
        "Figures are medians over the rounds, with the lowest and the highest round. Ratios are taken within each \
         round. Only ratios and differences of one run are concluded from.\n",
    );
    targets(&mut text, report);
    noise(&mut text, report);
    for part in &report.sections {
        section(&mut text, part);
    }
    pairs(&mut text, "Machine", "property", &report.machine);
    pairs(&mut text, "Versions", "system", &report.versions);
    text
}

/// Targets and noise alone.
pub(super) fn summary(report: &Report) -> String {
    let mut text = String::new();
    targets(&mut text, report);
    noise(&mut text, report);
    text.trim().to_owned()
}

/// A section alone.
pub(super) fn one_section(of: &Section) -> String {
    let mut text = String::new();
    section(&mut text, of);
    text.trim().to_owned()
}

/// Writing to a string can't fail.
fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(arguments);
}

fn targets(text: &mut String, report: &Report) {
    if report.targets().next().is_none() {
        return;
    }
    let count = |verdict| report.targets().filter(|(_, target)| target.verdict == verdict).count();
    push(
        text,
        format_args!(
            "\n## Targets\n\n{} met, {} not met, {} too noisy to tell, {} not measured.\n\n\
             | what | target | figure | spread | verdict | why, or how to read it |\n|---|--:|--:|--:|---|---|\n",
            count(Verdict::Met),
            count(Verdict::NotMet),
            count(Verdict::TooNoisy),
            count(Verdict::NotMeasured)
        ),
    );
    for (_, target) in report.targets() {
        let (sign, aim) = match target.bound {
            Bound::AtLeast(aim) => ('≥', aim),
            Bound::AtMost(aim) => ('≤', aim),
        };
        let (figure, spread) = match target.figure {
            Some(Spread { median, low, high }) => {
                (short(median), format!("{} … {}", short(low), short(high)))
            }
            None => ("–".to_owned(), "–".to_owned()),
        };
        push(
            text,
            format_args!(
                "| {} | {sign} {} | {figure} | {spread} | {} | {} |\n",
                escape(&target.what),
                plain(aim),
                verdict(target.verdict),
                escape(&target.why)
            ),
        );
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Met => "met",
        Verdict::NotMet => "**not met**",
        Verdict::TooNoisy => "*too noisy*",
        Verdict::NotMeasured => "not measured",
    }
}

/// How quiet the machine was, row by row.
fn noise(text: &mut String, report: &Report) {
    if report.rounds.is_empty() {
        return;
    }
    let count = |of: fn(&Turns) -> usize| report.rounds.values().map(of).sum::<usize>();
    let (quiet, all) = (count(|turns| turns.quiet().count()), count(|turns| turns.rounds.len()));
    let unrest_max = report.rounds.values().next().map_or(0.0, |turns| turns.unrest_max) * 100.0;
    push(
        text,
        format_args!(
            "\n## Noise\n\nA fixed piece of work was timed before every turn. A round is quiet if none of these took \
             more than {unrest_max:.0} % longer than the row's median. {quiet} of {all} rounds were quiet; the others \
             were set aside where enough were left.\n\n\
             | row | quiet rounds | slowest / median | conclusive |\n|---|--:|--:|---|\n"
        ),
    );
    for (row, turns) in &report.rounds {
        push(
            text,
            format_args!(
                "| {row} | {} of {} | {} | {} |\n",
                turns.quiet().count(),
                turns.rounds.len(),
                turns.unrest().map_or("–".to_owned(), |unrest| short(unrest.high)),
                if turns.too_noisy().is_none() { "yes" } else { "only where all rounds agree" }
            ),
        );
    }
}

fn section(text: &mut String, section: &Section) {
    push(text, format_args!("\n## {}\n", section.title));
    if !section.method.is_empty() {
        push(text, format_args!("\n{}\n", section.method));
    }
    for part in &section.tables {
        push(text, format_args!("\n### {}\n\n{}", part.title, table(part)));
    }
    for plot in &section.plots {
        push(text, format_args!("\n![{}]({}.svg)\n", plot.title, plot.name));
    }
}

/// One table.
pub(super) fn table(table: &Table) -> String {
    let mut text = String::new();
    let heads: Vec<String> = table.columns.iter().map(|column| escape(column)).collect();
    push(&mut text, format_args!("| {} |\n", heads.join(" | ")));
    push(&mut text, format_args!("|---|{}\n", "--:|".repeat(table.columns.len().saturating_sub(1))));
    for row in &table.rows {
        let cells: Vec<String> = row.iter().map(cell).collect();
        push(&mut text, format_args!("| {} |\n", cells.join(" | ")));
    }
    text
}

fn pairs<'a>(
    text: &mut String,
    title: &str,
    head: &str,
    of: impl IntoIterator<Item = (&'a String, &'a String)>,
) {
    let mut of = of.into_iter().peekable();
    if of.peek().is_none() {
        return;
    }
    push(text, format_args!("\n## {title}\n\n| {head} | |\n|---|---|\n"));
    for (key, value) in of {
        push(text, format_args!("| {} | {} |\n", escape(key), escape(value)));
    }
}

/// One cell: a figure with its lowest and highest round.
pub(super) fn cell(cell: &Cell) -> String {
    match cell {
        Cell::Text(text) => escape(text),
        Cell::Figure { value: Spread { median, low, high }, digits } => {
            let write = |value| grouped(value, *digits);
            format!("{} ({}–{})", write(*median), write(*low), write(*high))
        }
    }
}

/// What would end a cell, or the line.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// Three significant digits; more only before the point.
fn short(value: f64) -> String {
    let size = value.abs();
    let digits = if size >= 100.0 || value == 0.0 {
        0
    } else if size >= 10.0 {
        1
    } else if size >= 0.1 {
        2
    } else {
        4
    };
    grouped(value, digits)
}

/// As it was given: `0.9`, `15`, `2000` as `2 000`.
fn plain(value: f64) -> String {
    if value.fract() == 0.0 { grouped(value, 0) } else { format!("{value}") }
}

/// With a thin gap between thousands.
fn grouped(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, fraction) =
        text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut out = String::from(sign);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(grouped(1_234_567.0, 0), "1 234 567");
        assert_eq!(grouped(-1234.56, 1), "-1 234.6");
        assert_eq!(grouped(12.0, 2), "12.00");
        assert_eq!(short(0.9149), "0.91");
        assert_eq!(short(31.26), "31.3");
        assert_eq!(short(0.0), "0");
        assert_eq!(plain(0.86), "0.86");
        assert_eq!(plain(200.0), "200");
    }

    #[test]
    fn a_bar_does_not_end_a_cell() {
        assert_eq!(cell(&Cell::Text("a | b\nc".to_owned())), "a \\| b c");
    }

    #[test]
    fn tables_have_a_line_of_rules() {
        let table = Table {
            title: String::new(),
            columns: vec!["system".to_owned(), "req/s".to_owned()],
            rows: vec![vec![
                Cell::Text("a".to_owned()),
                Cell::Figure { value: Spread { median: 1000.0, low: 900.0, high: 1100.4 }, digits: 0 },
            ]],
        };
        assert_eq!(super::table(&table), "| system | req/s |\n|---|--:|\n| a | 1 000 (900–1 100) |\n");
    }
}
