//! Rounds as tables and plots.

use super::{Group, Part, Row, Unit};
use crate::pairs::Turns;
use crate::section::{Axis, Cell, Plot, Section, Series, Spread, Table};
use std::collections::BTreeMap;

/// A column: its head, the metric, what it is divided by, and digits.
type Column = (String, String, f64, usize);

/// What the last column says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Relation {
    /// This system's throughput in relation to the row's.
    OfTo(&'static str),
    /// The row's in relation to this system's.
    ToThis(&'static str),
}

/// A section for each group of which a row was measured.
pub(super) fn sections(rows: &[Row], rounds: &BTreeMap<String, Turns>) -> Vec<Section> {
    let mut sections = Vec::new();
    for group in Group::ALL {
        let of_group: Vec<(&Row, &Turns)> = rows
            .iter()
            .filter(|row| row.group == group)
            .filter_map(|row| Some((row, rounds.get(row.name)?)))
            .collect();
        if of_group.is_empty() {
            continue;
        }
        sections.push(Section {
            title: group.title().to_owned(),
            method: method(group),
            tables: of_group
                .iter()
                .map(|(row, turns)| table(row, turns, Relation::OfTo(group.own())))
                .collect(),
            targets: Vec::new(),
            plots: plots(group, &of_group),
        });
    }
    sections
}

fn method(group: Group) -> String {
    let own = match group {
        Group::Small => "Closed loop: each connection asks again when it was answered.",
        Group::Latency => "One request at a time: what a client waits for when nothing else is going on.",
        Group::Bulk => "Bodies are read and written as fast as both sides take them.",
        Group::Mixed => {
            "Both loads run at the same time against one worker. A proxy that lets bulk run far before it looks at the \
             others has a high small p99 here."
        }
        Group::Http2 => {
            "HTTP/2 towards clients, HTTP/1.1 towards the upstream. The upstream speaks no HTTP/2, so there is no \
             direct figure."
        }
        Group::Tcp => {
            "A pair of ends that encrypt between them, both on the one core; each takes plaintext on its other side. \
             HTTP/1.1 is carried, which none of them looks at."
        }
        Group::Tls => {
            "TLS 1.3, connections kept open but in the rows of handshakes; there Keyway and the generator agree on \
             X25519MLKEM768, and others on what their library has. Direct has TLS on its one connection, whichever side the others have it \
             on."
        }
    };
    let own_name = group.own();
    format!(
        "{own} “busy” is how much of its core the system used: below some 90 %, something else was the limit, and CPU \
         per request or per GB compares better than throughput. The last column is {own_name} in relation to the row's \
         system, of throughput, round by round."
    )
}

fn columns(row: &Row) -> Vec<Column> {
    let mut columns = Vec::new();
    for part in &row.parts {
        let head = |text: &str| {
            if part.label.is_empty() { text.to_owned() } else { format!("{}: {text}", part.label) }
        };
        let mut push = |text: &str, metric: &str, divisor: f64, digits: usize| {
            columns.push((head(text), part.key(metric), divisor, digits));
        };
        match part.unit {
            Unit::Requests => {
                push("req/s", "requests_per_s", 1.0, 0);
                push("p50 µs", "p50_us", 1.0, 1);
                push("p99 µs", "p99_us", 1.0, 1);
            }
            Unit::Megabytes => {
                push("MB/s", "mb_per_s", 1.0, 0);
                push("p50 ms", "p50_us", 1e3, 1);
                push("p99 ms", "p99_us", 1e3, 1);
            }
        }
    }
    if let [part] = row.parts.as_slice() {
        columns.push(match part.unit {
            Unit::Requests => ("CPU µs/request".to_owned(), "cpu_us_per_request".to_owned(), 1.0, 1),
            Unit::Megabytes => ("CPU ms/GB".to_owned(), "cpu_ms_per_gb".to_owned(), 1.0, 0),
        });
    }
    columns.push(("busy %".to_owned(), "busy_percent".to_owned(), 1.0, 0));
    columns
}

/// The metric that says how much gets through.
pub(super) fn throughput(part: &Part) -> String {
    part.key(match part.unit {
        Unit::Requests => "requests_per_s",
        Unit::Megabytes => "mb_per_s",
    })
}

/// A row's systems, with all figures.
pub(crate) fn table(row: &Row, turns: &Turns, relation: Relation) -> Table {
    let (reference, head) = match relation {
        Relation::OfTo(own) => (own, format!("{own} / it")),
        Relation::ToThis(base) => (base, format!("it / {base}")),
    };
    let columns = columns(row);
    let mut heads = vec!["system".to_owned()];
    heads.extend(columns.iter().map(|(head, ..)| head.clone()));
    heads.push(head);
    let mut rows = Vec::new();
    for &system in &row.systems {
        let left_out = !turns.systems.iter().any(|name| name == system) || turns.failed.contains_key(system);
        if left_out {
            if let Some(why) = turns.failed.get(system) {
                let why = Cell::Text(format!("left out: {}", brief(why)));
                rows.push(
                    [Cell::Text(system.to_owned()), why].into_iter().chain(blank(heads.len() - 2)).collect(),
                );
            }
            continue;
        }
        let mut cells = vec![Cell::Text(system.to_owned())];
        for (_, metric, divisor, digits) in &columns {
            cells.push(cell(turns.figure(system, metric).map(|figure| scaled(figure, *divisor)), *digits));
        }
        let ratio = row.parts.first().map(throughput).and_then(|metric| match relation {
            Relation::OfTo(own) => turns.ratio(own, system, &metric),
            Relation::ToThis(base) => turns.ratio(system, base, &metric),
        });
        cells.push(if system == reference { Cell::Text("1".to_owned()) } else { cell(ratio, 2) });
        rows.push(cells);
    }
    Table { title: format!("{} (`{}`)", row.what, row.name), columns: heads, rows }
}

fn blank(cells: usize) -> impl Iterator<Item = Cell> {
    std::iter::repeat_n(Cell::Text("–".to_owned()), cells)
}

/// An error on one line, and not all of a log.
pub(super) fn brief(text: &str) -> String {
    const CHARACTERS: usize = 240;
    let line: Vec<&str> = text.split_whitespace().collect();
    let line = line.join(" ");
    match line.char_indices().nth(CHARACTERS) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

pub(super) fn cell(figure: Option<Spread>, digits: usize) -> Cell {
    figure.map_or(Cell::Text("–".to_owned()), |value| Cell::Figure { value, digits })
}

fn scaled(figure: Spread, divisor: f64) -> Spread {
    Spread { median: figure.median / divisor, low: figure.low / divisor, high: figure.high / divisor }
}

/// Round by round: drift and single outliers are seen at once.
fn plots(group: Group, rows: &[(&Row, &Turns)]) -> Vec<Plot> {
    rows.iter()
        .filter(|(_, turns)| turns.rounds.len() > 1)
        .filter_map(|(row, turns)| {
            let part = row.parts.first()?;
            let (metric, label) = match (group, part.unit) {
                (Group::Latency | Group::Mixed, _) => (part.key("p99_us"), "p99, µs"),
                (_, Unit::Requests) => (throughput(part), "requests/s"),
                (_, Unit::Megabytes) => (throughput(part), "MB/s"),
            };
            Some(Plot {
                name: format!("rounds-{}", row.name),
                title: format!("{}, round by round", row.what),
                x: Axis { label: "round".to_owned(), is_log: false },
                y: Axis { label: label.to_owned(), is_log: true },
                series: turns
                    .systems
                    .iter()
                    .enumerate()
                    .filter(|(_, system)| !turns.failed.contains_key(*system))
                    .map(|(index, system)| Series {
                        name: system.clone(),
                        points: by_round(turns, index, &metric),
                    })
                    .collect(),
            })
        })
        .collect()
}

fn by_round(turns: &Turns, system: usize, metric: &str) -> Vec<(f64, Spread)> {
    (1_u32..)
        .zip(&turns.rounds)
        .filter_map(|(number, round)| {
            let figure = *round.readings.get(system)?.as_ref()?.get(metric)?;
            Some((f64::from(number), Spread { median: figure, low: figure, high: figure }))
        })
        .collect()
}
