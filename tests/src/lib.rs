//! What end-to-end tests share: a fleet of real processes, a client that counts what goes wrong, and waiting that is bound
//! to a condition and never to a time.
//!
//! The programs are those beside the test binary (`target/<profile>/`); `./test.sh` builds them first.
#![allow(clippy::missing_panics_doc, reason = "a test harness panics where a test fails")]

pub mod client;
pub mod fleet;
pub mod load;
pub mod process;
pub mod services;
pub mod upstream;

pub use client::{Answer, Client};
pub use fleet::{Fleet, Hsm};
pub use load::Load;

use std::time::{Duration, Instant};

/// Longest that anything may take before a test gives up; nothing is asserted about how long it does take.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Looks again and again until `look` gives something.
///
/// # Panics
/// After [`PATIENCE`], with `what` was waited for.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Bytes that no compression and no pattern makes look right by accident.
#[must_use]
pub fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).expect("the kernel has randomness");
    bytes
}
