//! What is aimed at, as data, and what came out.

use super::{Group, figures};
use crate::pairs::Turns;
use crate::section::{Bound, Section, Target};
use std::collections::BTreeMap;

/// How a figure is made of two systems'.
#[derive(Clone, Copy, Debug)]
enum How {
    /// The first in relation to the other.
    Ratio(&'static str),
    /// The first in relation to whichever of these is ahead; more is better.
    RatioToBest(&'static [&'static str]),
    /// What the first has more.
    Difference(&'static str),
}

/// One target.
#[derive(Clone, Copy, Debug)]
struct Aim {
    group: Group,
    what: &'static str,
    row: &'static str,
    metric: &'static str,
    how: How,
    bound: Bound,
    read: &'static str,
}

const OWN_PLAIN: &str = "keyway-pass";
const TUNED: &[&str] = &["nginx-tuned", "haproxy-tuned"];

const fn bulk(what: &'static str, row: &'static str, how: How, at_least: f64) -> Aim {
    Aim { group: Group::Bulk, what, row, metric: "mb_per_s", how, bound: Bound::AtLeast(at_least), read: "" }
}

const fn small(what: &'static str, row: &'static str, against: &'static str, read: &'static str) -> Aim {
    let how = How::Ratio(against);
    Aim { group: Group::Small, what, row, metric: "requests_per_s", how, bound: Bound::AtLeast(1.0), read }
}

const fn added(what: &'static str, metric: &'static str, at_most: f64) -> Aim {
    let how = How::Difference(OWN_PLAIN);
    Aim { group: Group::Latency, what, row: "get-1k-1", metric, how, bound: Bound::AtMost(at_most), read: "" }
}

const fn pair(what: &'static str, row: &'static str, how: How) -> Aim {
    let bound = Bound::AtLeast(2.5);
    Aim { group: Group::Tcp, what, row, metric: "mb_per_s", how, bound, read: "" }
}

const INSTALLED: &str = "nginx as Debian installs it";
const ALSO_TUNED: &str = "for comparison: nginx tuned";

const AIMS: [Aim; 23] = [
    bulk("sealed download / own plain", "down-64m-4", How::Ratio(OWN_PLAIN), 0.90),
    bulk("sealed upload / own plain", "up-64m-4", How::Ratio(OWN_PLAIN), 0.86),
    bulk(
        "sealed download / best of nginx and HAProxy, tuned, plain",
        "down-64m-4",
        How::RatioToBest(TUNED),
        0.90,
    ),
    bulk(
        "sealed upload / best of nginx and HAProxy, tuned, plain",
        "up-64m-4",
        How::RatioToBest(TUNED),
        0.85,
    ),
    bulk("sealed upload / nginx with Lua, which encrypts", "up-64m-4", How::Ratio("nginx-lua"), 4.0),
    bulk("sealed download / nginx with Lua, which encrypts", "down-64m-4", How::Ratio("nginx-lua"), 4.0),
    bulk("sealed upload / rclone crypt, which encrypts", "up-64m-4", How::Ratio("rclone-crypt"), 4.0),
    bulk("sealed download / rclone crypt, which encrypts", "down-64m-4", How::Ratio("rclone-crypt"), 4.0),
    pair("upload through our pair / stunnel pair", "tcp-up", How::Ratio("stunnel")),
    pair("download through our pair / stunnel pair", "tcp-down", How::Ratio("stunnel")),
    pair("upload through our pair / spiped pair", "tcp-up", How::Ratio("spiped")),
    pair("download through our pair / spiped pair", "tcp-down", How::Ratio("spiped")),
    small("sealed 1 KiB GET, 16 connections / nginx plain", "get-1k-16", "nginx", INSTALLED),
    small("sealed 1 KiB GET, 64 connections / nginx plain", "get-1k-64", "nginx", INSTALLED),
    small("sealed 16 KiB GET, 16 connections / nginx plain", "get-16k-16", "nginx", INSTALLED),
    small("sealed 16 KiB GET, 64 connections / nginx plain", "get-16k-64", "nginx", INSTALLED),
    small("sealed 1 KiB GET, 16 connections / nginx tuned plain", "get-1k-16", "nginx-tuned", ALSO_TUNED),
    small("sealed 1 KiB GET, 64 connections / nginx tuned plain", "get-1k-64", "nginx-tuned", ALSO_TUNED),
    small("sealed 16 KiB GET, 16 connections / nginx tuned plain", "get-16k-16", "nginx-tuned", ALSO_TUNED),
    small("sealed 16 KiB GET, 64 connections / nginx tuned plain", "get-16k-64", "nginx-tuned", ALSO_TUNED),
    added("p50 added to own plain at 1 connection, µs", "p50_us", 3.0),
    added("p99 added to own plain at 1 connection, µs", "p99_us", 10.0),
    Aim {
        group: Group::Mixed,
        what: "p99 of small requests beside bulk uploads, sealed / nginx tuned plain",
        row: "mixed",
        metric: "small.p99_us",
        how: How::Ratio("nginx-tuned"),
        bound: Bound::AtMost(1.0),
        read: "",
    },
];

/// Below this share of its core, a system was not what bounded the throughput.
const BUSY_MIN_PERCENT: f64 = 90.0;

/// Adds what came out to the sections; `only_measured` leaves out targets of rows that did not run.
pub(super) fn add(sections: &mut [Section], rounds: &BTreeMap<String, Turns>, only_measured: bool) {
    for aim in AIMS {
        let Some(section) = sections.iter_mut().find(|section| section.title == aim.group.title()) else {
            continue;
        };
        let target = match rounds.get(aim.row) {
            Some(turns) => judge(&aim, turns),
            None => Target::judge(aim.what, aim.bound, None, format!("the row {} was not run", aim.row)),
        };
        if target.figure.is_some() || !only_measured {
            section.targets.push(target);
        }
    }
}

fn judge(aim: &Aim, turns: &Turns) -> Target {
    let own = aim.group.own();
    let figure = match aim.how {
        How::Ratio(other) => turns.ratio(own, other, aim.metric),
        How::RatioToBest(others) => turns.ratio_to_best(own, others, aim.metric),
        How::Difference(other) => turns.difference(own, other, aim.metric),
    };
    if figure.is_none() {
        return Target::judge(aim.what, aim.bound, None, missing(aim, turns));
    }
    let mut notes: Vec<String> = (!aim.read.is_empty()).then(|| aim.read.to_owned()).into_iter().collect();
    notes.extend(price(aim, turns));
    turns.judge(aim.what, aim.bound, figure, &notes.join("; "))
}

fn others(aim: &Aim) -> Vec<&'static str> {
    match aim.how {
        How::Ratio(other) | How::Difference(other) => vec![other],
        How::RatioToBest(others) => others.to_vec(),
    }
}

/// Who is to blame for a figure that there isn't.
fn missing(aim: &Aim, turns: &Turns) -> String {
    let whos = std::iter::once(aim.group.own()).chain(others(aim));
    let why = whos.filter_map(|who| {
        let why = turns.failed.get(who)?;
        Some(format!("{who}: {}", figures::brief(why)))
    });
    let why: Vec<String> = why.collect();
    if why.is_empty() { "was not asked for in this run".to_owned() } else { why.join("; ") }
}

/// CPU is what throughput costs, and steadier than it; and where the system had time to spare, throughput says little.
fn price(aim: &Aim, turns: &Turns) -> Option<String> {
    let cpu = match aim.metric {
        "mb_per_s" => "cpu_ms_per_gb",
        "requests_per_s" => "cpu_us_per_request",
        _ => return None,
    };
    let &[other] = others(aim).as_slice() else { return None };
    let own = aim.group.own();
    let ratio = turns.ratio(other, own, cpu)?;
    let mut note = format!("by CPU time {:.2} ({:.2}–{:.2})", ratio.median, ratio.low, ratio.high);
    let idle = [own, other].into_iter().filter_map(|who| {
        let busy = turns.figure(who, "busy_percent")?.median;
        (busy < BUSY_MIN_PERCENT).then(|| format!("{who} used {busy:.0} % of its core only"))
    });
    for one in idle {
        note.push_str("; ");
        note.push_str(&one);
    }
    Some(note)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::{Reading, Rules, interleave};
    use crate::section::Verdict;
    use crate::table::rows;

    #[test]
    fn every_target_is_about_a_row_and_systems_that_are_there() {
        let rows = rows();
        for aim in AIMS {
            let row = rows.iter().find(|row| row.name == aim.row).unwrap_or_else(|| panic!("{}", aim.row));
            assert_eq!(row.group, aim.group, "{}", aim.what);
            for system in std::iter::once(aim.group.own()).chain(others(&aim)) {
                assert!(row.systems.contains(&system), "{}: {system}", aim.what);
            }
        }
    }

    #[test]
    fn figures_become_verdicts_and_what_is_missing_is_said() {
        let rate = |system: usize| [900.0, 1000.0, 800.0][system];
        let mut turns = interleave(
            &["keyway", "keyway-pass", "nginx-lua"],
            Rules::rounds(3),
            || 1e6,
            |system| {
                Ok(Reading::from([
                    ("mb_per_s".to_owned(), rate(system)),
                    ("cpu_ms_per_gb".to_owned(), 1e6 / rate(system)),
                    ("busy_percent".to_owned(), if system == 2 { 50.0 } else { 99.0 }),
                ]))
            },
        );
        turns.failed.insert("rclone-crypt".to_owned(), "not installed: rclone".to_owned());
        let mut sections = vec![Section { title: "Bulk".to_owned(), ..Section::default() }];
        add(&mut sections, &BTreeMap::from([("up-64m-4".to_owned(), turns)]), false);
        let find = |what: &str| sections[0].targets.iter().find(|target| target.what.contains(what)).unwrap();
        assert_eq!(find("sealed upload / own plain").verdict, Verdict::Met);
        assert_eq!(find("sealed upload / nginx with Lua").verdict, Verdict::NotMet);
        assert!(find("sealed upload / nginx with Lua").why.contains("nginx-lua used 50 % of its core only"));
        assert_eq!(find("sealed upload / rclone").why, "rclone-crypt: not installed: rclone");
        assert_eq!(find("sealed download / own plain").why, "the row down-64m-4 was not run");
    }
}
