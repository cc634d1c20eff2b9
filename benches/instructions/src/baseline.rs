//! The committed counts, and the comparison with them.

use crate::conditions::Conditions;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Instructions by name, per operation or per request.
pub(crate) type Counts = BTreeMap<String, u64>;

/// Whole requests; everything else has `tolerance_percent`.
const REQUESTS: &str = "request/";
/// Counts of one build are the same to a fifth of a percent (`--repeat` shows it), but a small function changes by a
/// percent or so when the compiler inlines another way for a change elsewhere.
const TOLERANCE_PERCENT: f64 = 2.0;
/// Counts of one build are within 0.2 %, though threads and sockets are in them.
const REQUEST_TOLERANCE_PERCENT: f64 = 1.0;

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Baseline {
    /// Counts that were made under others are not compared with these.
    pub(crate) conditions: Conditions,
    /// How far a count of a function may be from the baseline.
    tolerance_percent: f64,
    /// How far a count of a request may be.
    request_tolerance_percent: f64,
    counts: Counts,
}

/// How one count stands to the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    More,
    Less,
    /// Not in the baseline.
    New,
    /// In the baseline only.
    Gone,
}

impl Baseline {
    /// Reads it; `None` if there is none.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).with_context(|| format!("reading {}", path.display()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// With new counts; the tolerances stay as somebody may have set them. Unless `whole`, so do the other counts.
    pub(crate) fn updated(
        old: Option<Self>,
        conditions: Conditions,
        counts: Counts,
        whole: bool,
    ) -> anyhow::Result<Self> {
        let Some(old) = old else {
            return Ok(Self {
                conditions,
                tolerance_percent: TOLERANCE_PERCENT,
                request_tolerance_percent: REQUEST_TOLERANCE_PERCENT,
                counts,
            });
        };
        anyhow::ensure!(
            whole || old.conditions == conditions,
            "the baseline was made under other conditions: save all of it, without --only"
        );
        let mut kept = if whole { Counts::new() } else { old.counts };
        kept.extend(counts);
        Ok(Self { conditions, counts: kept, ..old })
    }

    /// Writes it.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Prints the table; whether nothing costs more than it may, and, if `whole`, every name is in both.
    pub(crate) fn compare(&self, now: &Counts, whole: bool, out: &mut dyn Write) -> anyhow::Result<bool> {
        let names: BTreeSet<&String> = now.keys().chain(self.counts.keys().filter(|_| whole)).collect();
        let width = names.iter().map(|name| name.len()).max().unwrap_or_default();
        let mut seen = Vec::new();
        writeln!(out, "{:width$} {:>12} {:>12} {:>9}", "instructions", "baseline", "now", "change")?;
        for name in names {
            let (before, after) = (self.counts.get(name).copied(), now.get(name).copied());
            let verdict = self.judge(name, before, after);
            let cell = |count: Option<u64>| count.map_or_else(|| "–".to_owned(), |count| count.to_string());
            let change = before.zip(after).map_or_else(
                || "–".to_owned(),
                |(before, after)| format!("{:+.2} %", change_percent(before, after)),
            );
            let note = match verdict {
                Verdict::Same => "",
                Verdict::More => "  MORE",
                Verdict::Less => "  less",
                Verdict::New => "  not in the baseline",
                Verdict::Gone => "  no longer counted",
            };
            writeln!(out, "{name:width$} {:>12} {:>12} {change:>9}{note}", cell(before), cell(after))?;
            seen.push(verdict);
        }
        self.conclude(&seen, out)
    }

    fn conclude(&self, seen: &[Verdict], out: &mut dyn Write) -> anyhow::Result<bool> {
        let many = |verdict| seen.iter().filter(|&&other| other == verdict).count();
        let (more, less) = (many(Verdict::More), many(Verdict::Less));
        let renamed = many(Verdict::New) + many(Verdict::Gone);
        writeln!(
            out,
            "\ntolerance: {} %, of requests {} %",
            self.tolerance_percent, self.request_tolerance_percent
        )?;
        let update = "`just bench-instructions --save`, and commit benches/instructions/baseline.json";
        if more > 0 {
            writeln!(
                out,
                "{more} cost more than the baseline allows. If it has to be so: {update}, saying why"
            )?;
        }
        if less > 0 {
            writeln!(out, "{less} cost less than in the baseline. So that it stays so: {update}")?;
        }
        if renamed > 0 {
            writeln!(out, "{renamed} are in the baseline or in this program only: {update}")?;
        }
        Ok(more == 0 && renamed == 0)
    }

    fn judge(&self, name: &str, before: Option<u64>, after: Option<u64>) -> Verdict {
        let (before, after) = match (before, after) {
            (Some(before), Some(after)) => (before, after),
            (None, _) => return Verdict::New,
            (_, None) => return Verdict::Gone,
        };
        let tolerance =
            if name.starts_with(REQUESTS) { self.request_tolerance_percent } else { self.tolerance_percent };
        // One or two instructions are a whole percent of the smallest functions.
        if before.abs_diff(after) <= 2 {
            return Verdict::Same;
        }
        let change = change_percent(before, after);
        if change > tolerance {
            Verdict::More
        } else if change < -tolerance {
            Verdict::Less
        } else {
            Verdict::Same
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn change_percent(before: u64, after: u64) -> f64 {
    // To the digits that are printed, so that nobody sees a change that is no more than the tolerance and fails.
    let hundredths = (after as f64 / before.max(1) as f64 - 1.0) * 10_000.0;
    hundredths.round() / 100.0
}

/// The median of each name.
pub(crate) fn medians(rounds: &[Counts]) -> Counts {
    let names: BTreeSet<&String> = rounds.iter().flat_map(Counts::keys).collect();
    names
        .into_iter()
        .filter_map(|name| Some((name.clone(), *sorted(rounds, name).get(rounds.len() / 2)?)))
        .collect()
}

/// How far the rounds are apart.
pub(crate) fn print_spread(rounds: &[Counts], out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "spread of {} rounds, highest over lowest:", rounds.len())?;
    for name in medians(rounds).keys() {
        let counts = sorted(rounds, name);
        if let (Some(&low), Some(&high)) = (counts.first(), counts.last()) {
            writeln!(out, "  {:.2} %  {name} ({low} to {high})", change_percent(low, high))?;
        }
    }
    Ok(())
}

fn sorted(rounds: &[Counts], name: &str) -> Vec<u64> {
    let mut counts: Vec<u64> = rounds.iter().filter_map(|round| round.get(name).copied()).collect();
    counts.sort_unstable();
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline() -> Baseline {
        let counts = [("a", 1000), ("request/b", 10_000), ("tiny", 20)].map(|(name, n)| (name.to_owned(), n));
        Baseline {
            conditions: Conditions::default(),
            tolerance_percent: 1.0,
            request_tolerance_percent: 2.0,
            counts: counts.into(),
        }
    }

    fn compare(changed: &[(&str, u64)], whole: bool) -> (bool, String) {
        let mut now = if whole { baseline().counts } else { Counts::new() };
        now.extend(changed.iter().map(|(name, n)| ((*name).to_owned(), *n)));
        let mut out = Vec::new();
        let good = baseline().compare(&now, whole, &mut out).unwrap();
        (good, String::from_utf8(out).unwrap())
    }

    #[test]
    fn more_fails_and_less_passes_with_a_hint() {
        assert!(compare(&[], true).0);
        assert!(compare(&[("a", 1010), ("request/b", 10_200), ("tiny", 22)], true).0);
        for regression in [("a", 1011), ("request/b", 10_201), ("tiny", 23)] {
            let (good, text) = compare(&[regression], true);
            assert!(!good && text.contains("MORE") && text.contains("--save"), "{text}");
        }
        let (good, text) = compare(&[("a", 900)], true);
        assert!(good && text.contains("-10.00 %  less") && text.contains("--save"), "{text}");
    }

    #[test]
    fn names_have_to_be_in_both_unless_only_some_are_counted() {
        assert!(!compare(&[("new", 1)], true).0);
        assert!(compare(&[("a", 1000)], false).0, "the others were not asked for");
        let mut out = Vec::new();
        assert!(!baseline().compare(&Counts::new(), true, &mut out).unwrap());
    }

    #[test]
    fn an_update_keeps_tolerances_and_what_was_not_counted() {
        let only: Counts = [("a".to_owned(), 5)].into();
        let mut old = baseline();
        old.tolerance_percent = 7.0;
        let part = Baseline::updated(Some(old.clone()), Conditions::default(), only.clone(), false).unwrap();
        assert_eq!((part.tolerance_percent, part.counts["a"], part.counts["tiny"]), (7.0, 5, 20));
        let whole = Baseline::updated(Some(old), Conditions::default(), only.clone(), true).unwrap();
        assert_eq!(whole.counts, only);
    }

    #[test]
    fn the_median_of_rounds_counts() {
        let rounds: Vec<Counts> = [3, 1, 2].map(|n| [("a".to_owned(), n)].into()).into();
        assert_eq!(medians(&rounds)["a"], 2);
    }
}
