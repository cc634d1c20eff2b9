//! Pauses between attempts: exponential, with full jitter, so that a fleet does not come back in step.

use std::time::Duration;

/// Counts attempts and gives the pause before the next one.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, attempts: 0 }
    }

    /// The next pause is short again.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// A random pause below a bound that doubles with every call, up to the maximum.
    pub(super) fn pause(&mut self) -> Duration {
        self.pause_with(random_fraction())
    }

    fn pause_with(&mut self, fraction: f64) -> Duration {
        let bound = self.min.saturating_mul(1 << self.attempts.min(20)).min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        bound.mul_f64(fraction)
    }
}

/// In [0, 1). Half of the bound if the system has no randomness: then TLS fails anyway.
fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_to_its_maximum_and_starts_again_when_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        let bounds: Vec<u128> = (0..9).map(|_| backoff.pause_with(1.0).as_millis()).collect();
        assert_eq!(bounds, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        for _ in 0..100 {
            assert_eq!(backoff.pause_with(1.0), Duration::from_secs(10));
        }
        backoff.reset();
        assert_eq!(backoff.pause_with(0.5), Duration::from_millis(50));
    }

    #[test]
    fn jitter_is_below_the_bound() {
        let fractions: Vec<f64> = (0..1000).map(|_| random_fraction()).collect();
        assert!(fractions.iter().all(|fraction| (0.0..1.0).contains(fraction)));
        assert!(fractions.iter().any(|fraction| *fraction < 0.5) && fractions.iter().any(|f| *f >= 0.5));
    }
}
