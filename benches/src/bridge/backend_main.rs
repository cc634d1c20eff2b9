//! `keyway-bench-backend CONFIG SECONDS`: wraps and unwraps of one key backend, as fast as it answers.
//!
//! A process of its own, because SoftHSM reads its configuration's place from the environment.

use anyhow::{Context, ensure};
use keyway_benches::bridge::{BACKEND_CALLERS, Rates};
use keyway_bridge::backend::{BackendConfig, BackendError, KeyBackend, open};
use keyway_envelope::{Dek, DekId, KekRef, KekVersion, KeyBlock, KeyringId, ZoneId};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const ZONE: &str = "bench";
const KEK: KekRef = KekRef { zone: ZoneId(1), keyring: KeyringId(1), version: KekVersion(1) };

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let config = arguments.next().context("usage: keyway-bench-backend CONFIG SECONDS")?;
    let config: BackendConfig = serde_json::from_str(&config).context("CONFIG")?;
    let seconds: u64 = arguments.next().context("SECONDS is missing")?.parse().context("SECONDS")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let rates = runtime.block_on(measure(&config, Duration::from_secs(seconds)))?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&rates)?)?;
    Ok(())
}

async fn measure(config: &BackendConfig, time: Duration) -> anyhow::Result<Rates> {
    let backend = open(config).await?;
    backend.generate_kek(KEK, "keyway:bench/default:v1").await?;
    let dek = Arc::new(fresh()?);
    let block = backend.wrap(KEK, &dek, ZONE, "").await?;
    let opened = backend.unwrap(&block, ZONE, "").await?;
    ensure!(opened.expose()[..] == dek.expose()[..], "a wrap opens to another key");
    Ok(Rates {
        wraps_per_s: rate(&backend, time, Operation::Wrap(dek)).await?,
        unwraps_per_s: rate(&backend, time, Operation::Unwrap(block)).await?,
    })
}

#[derive(Clone)]
enum Operation {
    Wrap(Arc<Dek>),
    Unwrap(KeyBlock),
}

impl Operation {
    async fn run(&self, backend: &dyn KeyBackend) -> Result<(), BackendError> {
        match self {
            Self::Wrap(dek) => backend.wrap(KEK, dek, ZONE, "").await.map(drop),
            Self::Unwrap(block) => backend.unwrap(block, ZONE, "").await.map(drop),
        }
    }
}

async fn rate(backend: &Arc<dyn KeyBackend>, time: Duration, operation: Operation) -> anyhow::Result<f64> {
    let done = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..BACKEND_CALLERS {
        let (backend, operation, done) = (backend.clone(), operation.clone(), done.clone());
        callers.spawn(async move {
            while began.elapsed() < time {
                operation.run(&*backend).await?;
                done.fetch_add(1, Ordering::Relaxed);
                // The software keystore never waits, and would keep this thread from its other callers.
                tokio::task::consume_budget().await;
            }
            Ok::<(), BackendError>(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    #[expect(clippy::cast_precision_loss, reason = "operations of some seconds fit 53 bits")]
    let done = done.load(Ordering::Relaxed) as f64;
    Ok(done / began.elapsed().as_secs_f64())
}

fn fresh() -> anyhow::Result<Dek> {
    let mut key = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(&mut key[..]).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(Dek::new(DekId([7; 16]), key))
}
