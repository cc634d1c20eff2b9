//! Whether the machine was quiet enough to conclude anything.
//!
//! A fixed piece of work is timed on every core between the rounds. It depends on nothing that is measured: when its
//! time varies, then the machine does.

use super::pin_thread;
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How much the calibration may vary on a core before nothing is concluded.
const SPREAD_MAX: f64 = 0.10;
/// The share of time that the hypervisor may have given to others.
const STEAL_MAX: f64 = 0.02;
/// Steps of the fixed work: some 10 ms.
const STEPS: u64 = 8_000_000;
/// The best of so many counts: an interrupt is not noise, a slow core is.
const TRIES: usize = 3;

/// One timing of the fixed work.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Where.
    pub core: usize,
    /// How long it took, in nanoseconds.
    pub nanos: f64,
}

/// Time that the hypervisor gave to others, and all time, in ticks over some cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steal {
    /// Stolen.
    pub stolen: u64,
    /// All.
    pub all: u64,
}

/// What can be said of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The worst core's spread of the calibration, from the 10th to the 90th percentile, over its median.
    pub spread: f64,
    /// The share of time that was stolen.
    pub steal: f64,
    /// Why nothing can be concluded; `None` on a quiet machine.
    pub too_noisy: Option<String>,
}

/// Watches over a run.
#[derive(Clone, Debug)]
pub struct Noise {
    cores: Vec<usize>,
    calibrations: Vec<Calibration>,
    before: Steal,
}

impl Noise {
    /// Begins to watch `cores`.
    #[must_use]
    pub fn watch(cores: &[usize]) -> Self {
        Self { cores: cores.to_vec(), calibrations: Vec::new(), before: Steal::read(cores) }
    }

    /// Times the fixed work on each core in turn; to be called between rounds, when nothing else runs. Gives what was
    /// found now.
    pub fn calibrate(&mut self) -> &[Calibration] {
        let known = self.calibrations.len();
        for &core in &self.cores {
            // A thread of its own: the caller stays where it was.
            let timed = std::thread::spawn(move || pin_thread(&[core]).ok().map(|()| time_work())).join();
            if let Ok(Some(elapsed)) = timed {
                let nanos = elapsed.as_secs_f64() * 1e9;
                self.calibrations.push(Calibration { core, nanos });
            }
        }
        &self.calibrations[known..]
    }

    /// What can be said so far.
    #[must_use]
    pub fn judge(&self) -> Judgement {
        judge(&self.calibrations, Steal::read(&self.cores).since(self.before))
    }
}

impl Steal {
    /// Since the machine started.
    #[must_use]
    pub fn read(cores: &[usize]) -> Self {
        Self::parse(&std::fs::read_to_string("/proc/stat").unwrap_or_default(), cores)
    }

    /// What came after `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { stolen: self.stolen.saturating_sub(earlier.stolen), all: self.all.saturating_sub(earlier.all) }
    }

    fn parse(stat: &str, cores: &[usize]) -> Self {
        let mut sum = Self::default();
        for line in stat.lines() {
            let mut fields = line.split_ascii_whitespace();
            let core = fields.next().and_then(|name| name.strip_prefix("cpu")?.parse::<usize>().ok());
            if core.is_some_and(|core| cores.contains(&core)) {
                // user nice system idle iowait irq softirq steal; guest times are part of user already.
                let times: Vec<u64> = fields.take(8).filter_map(|field| field.parse().ok()).collect();
                sum.all += times.iter().sum::<u64>();
                sum.stolen += times.get(7).copied().unwrap_or(0);
            }
        }
        sum
    }
}

/// Decides whether figures that were taken meanwhile mean anything.
#[must_use]
pub fn judge(calibrations: &[Calibration], steal: Steal) -> Judgement {
    #[expect(clippy::cast_precision_loss, reason = "ticks of a run are far below 2^52")]
    let steal = if steal.all == 0 { 0.0 } else { steal.stolen as f64 / steal.all as f64 };
    let mut cores: Vec<usize> = calibrations.iter().map(|calibration| calibration.core).collect();
    cores.sort_unstable();
    cores.dedup();
    let spread = cores
        .iter()
        .map(|core| {
            let of_core = calibrations.iter().filter(|calibration| calibration.core == *core);
            spread(of_core.map(|calibration| calibration.nanos).collect())
        })
        .fold(0.0, f64::max);
    let mut reasons = Vec::new();
    if spread > SPREAD_MAX {
        reasons.push(format!("the same work took times that differ by {:.0} %", spread * 100.0));
    }
    if steal > STEAL_MAX {
        reasons.push(format!("{:.1} % of the time went to other machines on the host", steal * 100.0));
    }
    let too_noisy = (!reasons.is_empty()).then(|| reasons.join(", and "));
    Judgement { spread, steal, too_noisy }
}

/// From the 10th to the 90th percentile, over the median; of few figures, from the lowest to the highest.
fn spread(mut nanos: Vec<f64>) -> f64 {
    nanos.sort_by(f64::total_cmp);
    let Some(last) = nanos.len().checked_sub(1) else { return 0.0 };
    let median = nanos[last / 2];
    if median > 0.0 { (nanos[last - last / 10] - nanos[last / 10]) / median } else { 0.0 }
}

fn time_work() -> Duration {
    let timed = (0..TRIES).map(|_| {
        let begun = Instant::now();
        let mut state = black_box(0x9e37_79b9_7f4a_7c15_u64);
        for _ in 0..STEPS {
            // Each step waits for the one before: no compiler and no width of the CPU shortens this.
            state = (state ^ (state >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
        black_box(state);
        begun.elapsed()
    });
    timed.min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Steal = Steal { stolen: 0, all: 1000 };

    fn on(core: usize, nanos: &[f64]) -> Vec<Calibration> {
        nanos.iter().map(|&nanos| Calibration { core, nanos }).collect()
    }

    #[test]
    fn a_quiet_machine_may_conclude() {
        let judged = judge(&on(0, &[100.0, 104.0, 109.0]), NONE);
        assert_eq!(judged.too_noisy, None);
        assert!((judged.spread - 9.0 / 104.0).abs() < 1e-9);
        assert_eq!(judge(&[], Steal::default()).too_noisy, None, "nothing known is nothing against it");
    }

    #[test]
    fn cores_are_judged_apart() {
        let mut two = on(0, &[100.0, 101.0]);
        two.extend(on(1, &[150.0, 151.0]));
        assert_eq!(judge(&two, NONE).too_noisy, None, "cores may differ from each other");
        two.extend(on(1, &[170.0]));
        assert!(judge(&two, NONE).too_noisy.unwrap().contains("13 %"));
    }

    #[test]
    fn one_slow_moment_among_many_is_no_noise() {
        let mut many = vec![100.0; 19];
        many.push(180.0);
        assert_eq!(judge(&on(0, &many), NONE).too_noisy, None);
        many.extend([180.0; 3]);
        assert!(judge(&on(0, &many), NONE).too_noisy.is_some());
    }

    #[test]
    fn stolen_time_is_noise() {
        assert_eq!(judge(&[], Steal { stolen: 20, all: 1000 }).too_noisy, None);
        let judged = judge(&[], Steal { stolen: 21, all: 1000 });
        assert!(judged.too_noisy.unwrap().contains("2.1 %"));
    }

    #[test]
    fn only_the_cores_asked_for_count() {
        let stat = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 4 5 6 7 8 90 90\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 5\n";
        assert_eq!(Steal::parse(stat, &[0]), Steal { stolen: 8, all: 36 });
        assert_eq!(Steal::parse(stat, &[0, 1]), Steal { stolen: 9, all: 44 });
    }

    #[test]
    fn the_fixed_work_takes_time_on_every_core() {
        let cores = super::super::available_cores();
        let mut noise = Noise::watch(&cores);
        let found = noise.calibrate();
        assert_eq!(found.len(), cores.len());
        assert!(found.iter().all(|calibration| calibration.nanos > 1e6), "{found:?}");
    }
}
