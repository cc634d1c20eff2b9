//! One turn: load, and what it took of the system's core.

use super::{Part, Unit};
use crate::load::{self, Plan, Sample};
use crate::machine::{self, Meter};
use crate::pairs::Reading;
use anyhow::ensure;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often CPU time is read in a measurement.
const LOOKS: u32 = 16;

/// Loads what `plans` say, one for each of `parts`, and watches the processes `pids` meanwhile.
///
/// # Errors
/// A request failed: figures that come with failures are none.
pub(crate) fn take(parts: &[Part], plans: &[Plan], pids: Vec<u32>) -> anyhow::Result<Reading> {
    let Some(first) = plans.first() else { return Ok(Reading::new()) };
    let watches = !pids.is_empty();
    let meter = Meter::new(pids);
    let ended = AtomicBool::new(false);
    let (samples, end, watched) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| watch(&meter, first.measure / LOOKS, &ended));
        let samples = load::run_together(plans);
        let end = Instant::now();
        ended.store(true, Ordering::Relaxed);
        (samples, end, watch.join().unwrap_or_default())
    });
    let busy = busy(&watched, end, first.measure);
    let samples = samples?;
    let mut reading = Reading::new();
    for (part, sample) in parts.iter().zip(&samples) {
        check(sample)?;
        read(part, sample, &mut reading);
    }
    if let Some(busy) = busy.filter(|_| watches) {
        reading.insert("busy_percent".to_owned(), busy * 100.0);
        if let ([part], [sample]) = (parts, samples.as_slice()) {
            let (name, figure) = cpu_price(part, sample, busy);
            reading.insert(name.to_owned(), figure);
        }
    }
    Ok(reading)
}

/// Reads the meter until the load has ended.
fn watch(meter: &Meter, pause: Duration, ended: &AtomicBool) -> Vec<(Instant, machine::Reading)> {
    let mut watched = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        watched.push((Instant::now(), meter.read()));
        std::thread::sleep(pause);
    }
    watched
}

/// How many cores were busy in the middle of the measurement. Counted back from its end: how long it takes to open
/// connections before it starts is not known, and some systems take longer for that than for what is measured.
fn busy(watched: &[(Instant, machine::Reading)], end: Instant, measure: Duration) -> Option<f64> {
    let ago = |at: Instant| end.saturating_duration_since(at);
    let within = |at: Instant| ago(at) <= measure * 7 / 8 && ago(at) >= measure / 16;
    let mut readings = watched.iter().filter(|(at, _)| within(*at)).map(|(_, reading)| reading);
    let (first, last) = (readings.next()?, readings.next_back()?);
    let usage = last.since(first);
    Some(usage.cpu.as_secs_f64() / usage.elapsed.as_secs_f64()).filter(|busy| busy.is_finite())
}

/// Refuses figures that come with failures.
pub(super) fn check(sample: &Sample) -> anyhow::Result<()> {
    ensure!(
        sample.failures == 0,
        "{} of {} requests failed: {}",
        sample.failures,
        sample.failures + sample.requests,
        sample.first_failure.as_deref().unwrap_or("no reason given")
    );
    ensure!(sample.bytes > 0, "nothing was transferred");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts of one turn are far below 2^53")]
fn per_second(count: u64, sample: &Sample) -> f64 {
    count as f64 / sample.elapsed.as_secs_f64()
}

fn read(part: &Part, sample: &Sample, reading: &mut Reading) {
    match part.unit {
        Unit::Requests => reading.insert(part.key("requests_per_s"), per_second(sample.requests, sample)),
        Unit::Megabytes => reading.insert(part.key("mb_per_s"), per_second(sample.bytes, sample) / 1e6),
    };
    if !sample.latency.is_empty() {
        for (name, percent) in [("p50_us", 50.0), ("p99_us", 99.0)] {
            #[expect(clippy::cast_precision_loss, reason = "nanoseconds of one turn are far below 2^53")]
            let nanos = sample.latency.value_at_percentile(percent) as f64;
            reading.insert(part.key(name), nanos / 1e3);
        }
    }
}

/// What one request, or a gigabyte, costs; `busy` is how many cores the system kept busy.
fn cpu_price(part: &Part, sample: &Sample, busy: f64) -> (&'static str, f64) {
    match part.unit {
        Unit::Requests => ("cpu_us_per_request", busy * 1e6 / per_second(sample.requests, sample)),
        Unit::Megabytes => ("cpu_ms_per_gb", busy * 1e12 / per_second(sample.bytes, sample)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Connecting, Http};
    use hdrhistogram::Histogram;

    fn sample(requests: u64, failures: u64) -> Sample {
        let mut latency = Histogram::new(3).unwrap();
        latency.record_n(50_000, requests).unwrap();
        Sample {
            requests,
            failures,
            bytes: requests * 1000,
            elapsed: Duration::from_secs(2),
            latency,
            first_failure: (failures > 0).then(|| "status 500".to_owned()),
        }
    }

    fn part(unit: Unit, label: &'static str) -> Part {
        Part {
            label,
            http: Http::One,
            connections: 1,
            streams: 1,
            connecting: Connecting::Once,
            is_upload: false,
            body: 1000,
            unit,
        }
    }

    #[test]
    fn figures_have_their_units() {
        let mut reading = Reading::new();
        read(&part(Unit::Requests, ""), &sample(20_000, 0), &mut reading);
        read(&part(Unit::Megabytes, "bulk"), &sample(20_000, 0), &mut reading);
        assert!((reading["requests_per_s"] - 10_000.0).abs() < 1e-9);
        assert!((reading["bulk.mb_per_s"] - 10.0).abs() < 1e-9);
        assert!((reading["p99_us"] - 50.0).abs() < 0.1);
        // Half a core at 10,000 requests a second: 50 µs each; at 10 MB a second: 50 s for a GB.
        assert_eq!(
            cpu_price(&part(Unit::Requests, ""), &sample(20_000, 0), 0.5),
            ("cpu_us_per_request", 50.0)
        );
        assert_eq!(
            cpu_price(&part(Unit::Megabytes, ""), &sample(20_000, 0), 0.5),
            ("cpu_ms_per_gb", 50_000.0)
        );
    }

    #[test]
    fn failures_are_no_figures() {
        let error = check(&sample(10, 2)).unwrap_err().to_string();
        assert_eq!(error, "2 of 12 requests failed: status 500");
        assert!(check(&sample(0, 0)).is_err());
    }
}
