//! The report: what was measured, as Markdown for reading, JSON for comparing and SVG for looking at.

mod markdown;
mod plot;

use crate::pairs::Turns;
use crate::section::{Section, Target, Verdict};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The file in a report's directory that has all data.
const DATA: &str = "report.json";

/// All that a run has to say.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The command that makes it again.
    pub command: String,
    /// When it started, RFC 3339 in UTC.
    pub started: String,
    /// What it ran on, by property.
    pub machine: BTreeMap<String, String>,
    /// Versions of what was measured, by system.
    pub versions: BTreeMap<String, String>,
    /// The parts.
    pub sections: Vec<Section>,
    /// Every round of each row of the table, by the row's name.
    pub rounds: BTreeMap<String, Turns>,
}

impl Report {
    /// Writes `report.md`, `report.json` and the plots to `dir`.
    ///
    /// # Errors
    /// The directory can't be written to; with its name.
    pub fn save(&self, dir: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
        for plot in self.sections.iter().flat_map(|section| &section.plots) {
            plot::draw(plot, &dir.join(format!("{}.svg", plot.name)))?;
        }
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
        };
        write(DATA, &serde_json::to_string_pretty(self)?)?;
        write("report.md", &markdown::write(self))
    }

    /// Reads what [`Report::save`] wrote.
    ///
    /// # Errors
    /// There is no report in `dir`, or it is of another version.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(DATA);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{} is no report's directory", dir.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is no report of this version", path.display()))
    }

    /// Takes in what another run has: the later run's figures stand where both have the same.
    ///
    /// # Errors
    /// The runs are from different machines: their figures say nothing about each other.
    pub fn merge(&mut self, later: Self) -> anyhow::Result<()> {
        if !self.machine.is_empty() {
            for property in ["cpu", "cores", "kernel"] {
                let (one, other) = (self.machine.get(property), later.machine.get(property));
                anyhow::ensure!(
                    one == other,
                    "the runs are from different machines ({property}: {} and {}); merge runs of one machine only",
                    one.map_or("unknown", String::as_str),
                    other.map_or("unknown", String::as_str)
                );
            }
        }
        for (property, value) in later.machine {
            self.machine.entry(property).or_insert(value);
        }
        if self.started.is_empty() || (!later.started.is_empty() && later.started < self.started) {
            self.started = later.started;
        }
        if !later.command.is_empty() && self.command != later.command {
            let joint = if self.command.is_empty() { "" } else { "; " };
            self.command = format!("{}{joint}{}", self.command, later.command);
        }
        self.versions.extend(later.versions);
        self.rounds.extend(later.rounds);
        for section in later.sections {
            match self.sections.iter_mut().find(|own| own.title == section.title) {
                Some(own) => merge_section(own, section),
                None => self.sections.push(section),
            }
        }
        Ok(())
    }

    /// The targets and the noise, as Markdown.
    #[must_use]
    pub fn summary(&self) -> String {
        markdown::summary(self)
    }

    /// All targets, with the title of their section.
    pub fn targets(&self) -> impl Iterator<Item = (&str, &Target)> {
        self.sections
            .iter()
            .flat_map(|section| section.targets.iter().map(move |target| (section.title.as_str(), target)))
    }
}

/// One section as Markdown.
#[must_use]
pub fn section(section: &Section) -> String {
    markdown::one_section(section)
}

fn merge_section(own: &mut Section, later: Section) {
    if !later.method.is_empty() {
        own.method = later.method;
    }
    for table in later.tables {
        // As a whole: systems that took turns in different runs don't stand in one table.
        match own.tables.iter_mut().find(|old| old.title == table.title) {
            Some(old) => *old = table,
            None => own.tables.push(table),
        }
    }
    for target in later.targets {
        match own.targets.iter_mut().find(|old| old.what == target.what) {
            Some(old) if target.verdict != Verdict::NotMeasured => *old = target,
            Some(_) => {}
            None => own.targets.push(target),
        }
    }
    for plot in later.plots {
        own.plots.retain(|old| old.name != plot.name);
        own.plots.push(plot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section::{Axis, Bound, Cell, Plot, Series, Spread, Table};

    fn spread(median: f64) -> Spread {
        Spread { median, low: median * 0.9, high: median * 1.1 }
    }

    fn one(figure: Option<f64>) -> Report {
        let section = Section {
            title: "Bulk".to_owned(),
            method: "Four streams.".to_owned(),
            tables: vec![Table {
                title: "64 MiB".to_owned(),
                columns: vec!["system".to_owned(), "MB/s".to_owned()],
                rows: vec![vec![
                    Cell::Text("keyway".to_owned()),
                    figure.map_or(Cell::Text("–".to_owned()), |value| Cell::Figure {
                        value: spread(value),
                        digits: 0,
                    }),
                ]],
            }],
            targets: vec![Target::judge("sealed / plain", Bound::AtLeast(0.9), figure.map(spread), "")],
            plots: vec![Plot {
                name: "sizes".to_owned(),
                title: "By size".to_owned(),
                x: Axis { label: "bytes".to_owned(), is_log: true },
                y: Axis { label: "MB/s".to_owned(), is_log: true },
                series: vec![Series {
                    name: "keyway".to_owned(),
                    points: (6..30)
                        .map(|power| (f64::from(1 << power), spread(f64::from(power).exp2())))
                        .collect(),
                }],
            }],
        };
        Report {
            machine: BTreeMap::from([("cpu".to_owned(), "one".to_owned())]),
            sections: vec![section],
            ..Report::default()
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let report = one(Some(1200.0));
        report.save(dir.path()).unwrap();
        let loaded = Report::load(dir.path()).unwrap();
        assert_eq!(serde_json::to_value(&loaded).unwrap(), serde_json::to_value(&report).unwrap());
        assert!(std::fs::read_to_string(dir.path().join("sizes.svg")).unwrap().contains("<svg"));
        let text = std::fs::read_to_string(dir.path().join("report.md")).unwrap();
        assert!(text.contains("| sealed / plain | ≥ 0.9 | 1 200 | 1 080 … 1 320 | met |"), "{text}");
        assert!(text.contains("![By size](sizes.svg)"), "{text}");
    }

    #[test]
    fn a_later_run_fills_in_and_replaces() {
        let mut report = one(None);
        assert_eq!(report.targets().next().unwrap().1.verdict, Verdict::NotMeasured);
        report.merge(one(Some(2.0))).unwrap();
        assert_eq!(report.sections.len(), 1);
        assert_eq!(report.sections[0].tables[0].rows.len(), 1);
        assert_eq!(report.targets().next().unwrap().1.verdict, Verdict::Met);
        report.merge(one(None)).unwrap();
        assert_eq!(report.targets().next().unwrap().1.verdict, Verdict::Met, "not measured does not replace");
    }

    #[test]
    fn machines_are_not_mixed() {
        let mut other = one(Some(1.0));
        other.machine.insert("cpu".to_owned(), "another".to_owned());
        let error = one(Some(1.0)).merge(other).unwrap_err().to_string();
        assert!(error.contains("different machines (cpu: one and another)"), "{error}");
    }

    #[test]
    fn no_report_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Report::load(dir.path()).unwrap_err().to_string().contains("is no report's directory"));
    }
}
