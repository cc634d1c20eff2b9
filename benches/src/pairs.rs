//! Taking turns: A B C, B C A, C A B, … and what can be concluded from it.
//!
//! A machine gets slower and faster while it is measured. Systems that take short turns in one run see the same machine,
//! so the ratio *within one round* is steady where the figures themselves drift. Each round starts with another system:
//! none always follows the same predecessor's warm caches. Between turns a fixed piece of work is timed; a round in
//! which that work was slow is set aside and run again. What counts as slow does not depend on the systems' figures, so
//! this does not favour any of them.

use crate::section::{Bound, Spread, Target, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The figures of one turn, by name and unit: `p99_us`, `bulk.mb_per_s`.
pub type Reading = BTreeMap<String, f64>;

/// How many rounds, and when one is set aside.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Quiet rounds wanted.
    pub rounds: usize,
    /// Rounds that may be run beyond these, in place of ones that were set aside.
    pub spare: usize,
    /// By how much calibrations may be slower than their median: 0.1 is 10 %.
    pub unrest_max: f64,
}

/// One round: a turn of each system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// By system; `None` if its turn failed.
    pub readings: Vec<Option<Reading>>,
    /// Time that a fixed piece of work took before each turn and after the last, in nanoseconds.
    pub calibrations_ns: Vec<f64>,
}

/// All rounds of one row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Turns {
    /// Names, in the order of the readings.
    pub systems: Vec<String>,
    /// The rounds, in order of time.
    pub rounds: Vec<Round>,
    /// What went wrong, by system; such a system takes no further turns.
    pub failed: BTreeMap<String, String>,
    /// See [`Rules::unrest_max`].
    pub unrest_max: f64,
}

/// The fewest quiet rounds from which anything is concluded.
const QUIET_MIN: usize = 3;

impl Rules {
    /// `rounds`, and half as many to spare.
    #[must_use]
    pub fn rounds(rounds: usize) -> Self {
        Self { rounds, spare: rounds.div_ceil(2), unrest_max: 0.10 }
    }
}

/// Which system's turn it is, one after the other, in `round`.
pub fn order(systems: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..systems).map(move |turn| (round + turn) % systems)
}

/// Runs the rounds. `calibrate` times a fixed piece of work, in nanoseconds; `turn` measures one system.
///
/// A system whose turn fails is left out from there on, and the others go on.
pub fn interleave(
    systems: &[&str],
    rules: Rules,
    mut calibrate: impl FnMut() -> f64,
    mut turn: impl FnMut(usize) -> anyhow::Result<Reading>,
) -> Turns {
    let mut turns = Turns {
        systems: systems.iter().map(|&name| name.to_owned()).collect(),
        unrest_max: rules.unrest_max,
        ..Turns::default()
    };
    for index in 0..rules.rounds + rules.spare {
        if turns.quiet().count() >= rules.rounds {
            break;
        }
        let mut round = Round { readings: vec![None; systems.len()], ..Round::default() };
        for system in order(systems.len(), index) {
            if turns.failed.contains_key(systems[system]) {
                continue;
            }
            round.calibrations_ns.push(calibrate());
            match turn(system) {
                Ok(reading) => round.readings[system] = Some(reading),
                Err(error) => {
                    turns.failed.insert(systems[system].to_owned(), format!("{error:#}"));
                }
            }
        }
        round.calibrations_ns.push(calibrate());
        turns.rounds.push(round);
    }
    turns
}

impl Turns {
    /// The rounds that nothing disturbed.
    pub fn quiet(&self) -> impl Iterator<Item = &Round> {
        let limit = self.usual_ns() * (1.0 + self.unrest_max);
        self.rounds.iter().filter(move |round| round.calibrations_ns.iter().all(|&taken| taken <= limit))
    }

    /// The rounds that figures are taken from: the quiet ones, or all if there are too few of them.
    fn used(&self) -> Vec<&Round> {
        let quiet: Vec<_> = self.quiet().collect();
        if quiet.len() >= QUIET_MIN.min(self.rounds.len()) { quiet } else { self.rounds.iter().collect() }
    }

    /// What a calibration takes: the median of all.
    fn usual_ns(&self) -> f64 {
        let all: Vec<f64> = self.rounds.iter().flat_map(|round| &round.calibrations_ns).copied().collect();
        Spread::of(&all).map_or(0.0, |spread| spread.median)
    }

    /// Calibrations in relation to their median.
    #[must_use]
    pub fn unrest(&self) -> Option<Spread> {
        let usual = self.usual_ns();
        let all: Vec<f64> =
            self.rounds.iter().flat_map(|round| &round.calibrations_ns).map(|taken| taken / usual).collect();
        Spread::of(&all)
    }

    /// Why this run can't conclude from small differences; `None` if it can.
    #[must_use]
    pub fn too_noisy(&self) -> Option<String> {
        let (quiet, all) = (self.quiet().count(), self.rounds.len());
        let too_few = quiet < QUIET_MIN || quiet * 2 < all;
        too_few.then(|| format!("only {quiet} of {all} rounds were quiet"))
    }

    fn index(&self, system: &str) -> Option<usize> {
        let index = self.systems.iter().position(|name| name == system)?;
        (!self.failed.contains_key(system)).then_some(index)
    }

    /// What `system` reached in `metric`.
    #[must_use]
    pub fn figure(&self, system: &str, metric: &str) -> Option<Spread> {
        let index = self.index(system)?;
        let figures: Vec<f64> = self
            .used()
            .iter()
            .filter_map(|round| round.readings[index].as_ref()?.get(metric).copied())
            .collect();
        Spread::of(&figures)
    }

    /// `a` and `b` of the same round, put together by `of`, over the rounds.
    fn together(&self, a: &str, b: &str, metric: &str, of: impl Fn(f64, f64) -> f64) -> Option<Spread> {
        let (a, b) = (self.index(a)?, self.index(b)?);
        let one = |round: &Round, index: usize| round.readings[index].as_ref()?.get(metric).copied();
        let figures: Vec<f64> = self
            .used()
            .into_iter()
            .filter_map(|round| Some(of(one(round, a)?, one(round, b)?)))
            .filter(|figure| figure.is_finite())
            .collect();
        Spread::of(&figures)
    }

    /// `a` in relation to `b`, round by round: drift between rounds cancels.
    #[must_use]
    pub fn ratio(&self, a: &str, b: &str, metric: &str) -> Option<Spread> {
        self.together(a, b, metric, |a, b| a / b)
    }

    /// What `a` has more than `b`, round by round.
    #[must_use]
    pub fn difference(&self, a: &str, b: &str, metric: &str) -> Option<Spread> {
        self.together(a, b, metric, |a, b| a - b)
    }

    /// `a` in relation to the best of `others`, where more is better: the lowest of the ratios.
    #[must_use]
    pub fn ratio_to_best(&self, a: &str, others: &[&str], metric: &str) -> Option<Spread> {
        others
            .iter()
            .filter_map(|other| self.ratio(a, other, metric))
            .min_by(|one, other| one.median.total_cmp(&other.median))
    }

    /// Judges a figure of these rounds.
    ///
    /// On a noisy machine a verdict stands only if every round agrees with it.
    #[must_use]
    pub fn judge(&self, what: impl Into<String>, bound: Bound, figure: Option<Spread>, read: &str) -> Target {
        let mut target = Target::judge(what, bound, figure, read);
        let Some(figure) = figure else { return target };
        let rounds_differ = bound.takes(figure.low) != bound.takes(figure.high);
        let mut notes: Vec<String> = (!read.is_empty()).then(|| read.to_owned()).into_iter().collect();
        match self.too_noisy() {
            Some(noise) if rounds_differ => {
                target.verdict = Verdict::TooNoisy;
                notes.push(noise);
            }
            Some(noise) => notes.push(format!("{noise}, but all rounds agree")),
            None if target.verdict == Verdict::Met && rounds_differ => {
                notes.push("by the median; some rounds are beyond".to_owned());
            }
            None if target.verdict == Verdict::TooNoisy => {
                notes.push("the median is beyond, some rounds are within".to_owned());
            }
            None => {}
        }
        target.why = notes.join("; ");
        target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: &str = "requests_per_s";

    fn reading(rate: f64) -> Reading {
        Reading::from([(RATE.to_owned(), rate)])
    }

    /// Numbers between -1 and 1 that look random; the same in each run.
    fn jitter(seed: &mut u64) -> f64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        f64::from((*seed >> 40) as u32) / f64::from(1 << 23) - 1.0
    }

    /// Two systems, the first with `ratio` times the second's rate, on a machine that slows down by `drift` a turn.
    fn run(ratio: f64, drift: f64, noise: f64, rounds: usize) -> Turns {
        let mut speed = 1.0;
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        interleave(
            &["a", "b"],
            Rules::rounds(rounds),
            || 1e6,
            |system| {
                speed *= 1.0 - drift;
                let base = if system == 0 { ratio } else { 1.0 };
                Ok(reading(1e5 * base * speed * (1.0 + noise * jitter(&mut seed))))
            },
        )
    }

    #[test]
    fn each_round_starts_with_the_next() {
        let orders: Vec<Vec<usize>> = (0..4).map(|round| order(3, round).collect()).collect();
        assert_eq!(orders, [vec![0, 1, 2], vec![1, 2, 0], vec![2, 0, 1], vec![0, 1, 2]]);
    }

    #[test]
    fn drift_cancels_in_ratios() {
        let turns = run(0.9, 0.03, 0.0, 6);
        let figures = turns.figure("a", RATE).unwrap();
        assert!(figures.high / figures.low > 1.3, "the machine drifts: {figures:?}");
        let ratio = turns.ratio("a", "b", RATE).unwrap();
        assert!((ratio.median - 0.9).abs() < 0.005, "{ratio:?}");
    }

    #[test]
    fn noise_is_seen_in_the_spread() {
        let ratio = run(1.0, 0.0, 0.1, 9).ratio("a", "b", RATE).unwrap();
        assert!(ratio.low < 0.97 && ratio.high > 1.03, "{ratio:?}");
        assert!((ratio.median - 1.0).abs() < 0.1, "{ratio:?}");
    }

    #[test]
    fn disturbed_rounds_are_run_again() {
        let mut calibrations = 0;
        let turns = interleave(
            &["a", "b"],
            Rules::rounds(4),
            || {
                calibrations += 1;
                // In the second round, something else runs.
                if calibrations == 5 { 3e6 } else { 1e6 }
            },
            |system| Ok(reading(if system == 0 { 2.0 } else { 1.0 })),
        );
        assert_eq!(turns.rounds.len(), 5);
        assert_eq!(turns.quiet().count(), 4);
        assert_eq!(turns.too_noisy(), None);
        assert_eq!(turns.unrest().unwrap().high, 3.0);
    }

    #[test]
    fn a_restless_machine_concludes_only_what_all_rounds_say() {
        let mut calibrations = 0_u32;
        let mut turns_taken = 0_u32;
        let turns = interleave(
            &["a", "b"],
            Rules::rounds(4),
            || {
                calibrations += 1;
                if calibrations.is_multiple_of(3) { 2e6 } else { 1e6 }
            },
            |system| {
                turns_taken += 1;
                Ok(reading(if system == 0 { 90.0 + f64::from(turns_taken) } else { 100.0 }))
            },
        );
        assert!(turns.too_noisy().is_some());
        let ratio = turns.ratio("a", "b", RATE);
        let close = turns.judge("a / b", Bound::AtLeast(0.95), ratio, "");
        assert_eq!(close.verdict, Verdict::TooNoisy);
        let clear = turns.judge("a / b", Bound::AtLeast(0.5), ratio, "");
        assert_eq!(clear.verdict, Verdict::Met);
        assert!(clear.why.contains("all rounds agree"), "{}", clear.why);
        let clear = turns.judge("a / b", Bound::AtLeast(2.0), ratio, "");
        assert_eq!(clear.verdict, Verdict::NotMet);
    }

    #[test]
    fn who_fails_is_left_out() {
        let mut taken = [0; 2];
        let turns = interleave(
            &["a", "b"],
            Rules::rounds(3),
            || 1e6,
            |system| {
                taken[system] += 1;
                anyhow::ensure!(system == 0 || taken[1] < 2, "it hung up");
                Ok(reading(1.0))
            },
        );
        assert_eq!(taken, [3, 2]);
        assert_eq!(turns.failed["b"], "it hung up");
        assert_eq!(turns.figure("b", RATE), None);
        assert_eq!(turns.ratio("a", "b", RATE), None);
        assert!(turns.figure("a", RATE).is_some());
        let target = turns.judge("a / b", Bound::AtLeast(1.0), None, "not there");
        assert_eq!(target.verdict, Verdict::NotMeasured);
    }

    #[test]
    fn the_best_of_others_is_the_lowest_ratio() {
        let turns = interleave(
            &["a", "b", "c"],
            Rules::rounds(3),
            || 1e6,
            |system| Ok(reading([100.0, 80.0, 125.0][system])),
        );
        let ratio = turns.ratio_to_best("a", &["b", "c", "absent"], RATE).unwrap();
        assert!((ratio.median - 0.8).abs() < 1e-9);
        assert!((turns.difference("a", "b", RATE).unwrap().median - 20.0).abs() < 1e-9);
        assert_eq!(turns.ratio_to_best("a", &["absent"], RATE), None);
    }
}
