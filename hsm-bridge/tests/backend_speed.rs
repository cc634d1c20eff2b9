//! How fast DEKs are wrapped and opened. Prints numbers, so it is asked for by name:
//! `cargo test -p keyway-bridge --test backend_speed -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement: its numbers go to stdout")]

#[path = "backend_fixture/contract.rs"]
mod contract;
#[path = "backend_fixture/softhsm.rs"]
mod softhsm;

use contract::{dek, kek};
use keyway_bridge::backend::{self, BackendConfig, BackendKind, KeyBackend, SoftwareConfig};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Callers at once: enough that no session waits for work.
const CALLERS: u32 = 16;
const TIME: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn wraps_and_unwraps_per_second() {
    let hsm = softhsm::softhsm(&["speed"], |_| {});
    let empty = hsm.open("speed").await;
    let start = Instant::now();
    empty.health().await.unwrap();
    println!("SoftHSM, health of an empty token: {:?}", start.elapsed());
    drop(empty);
    let folder = tempfile::tempdir().unwrap();
    let software = BackendConfig {
        name: "software".to_owned(),
        kind: BackendKind::Software(SoftwareConfig::new(folder.path().join("store"))),
    };
    measure("software", &backend::open(&software).await.unwrap()).await;
    for sessions in [1, 2, 4] {
        let mut config = hsm.pkcs11("speed");
        config.sessions = sessions;
        let config = BackendConfig { name: "speed".to_owned(), kind: BackendKind::Pkcs11(config) };
        measure(&format!("SoftHSM, {sessions} sessions"), &backend::open(&config).await.unwrap()).await;
    }
}

async fn measure(what: &str, backend: &Arc<dyn KeyBackend>) {
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    let block = backend.wrap(kek(1), &dek(1), "payments", "").await.unwrap();
    let wraps = rate(backend, |backend| async move {
        backend.wrap(kek(1), &dek(1), "payments", "").await.unwrap();
    });
    let wraps = wraps.await;
    let checks = rate(backend, |backend| async move {
        backend.health().await.unwrap();
    });
    let checks = checks.await;
    let unwraps = rate(backend, move |backend| async move {
        backend.unwrap(&block, "payments", "").await.unwrap();
    });
    println!(
        "{what}: {wraps} wraps/s (each opened again), {} unwraps/s, {checks} health checks/s",
        unwraps.await
    );
}

async fn rate<F: Future<Output = ()> + Send>(
    backend: &Arc<dyn KeyBackend>,
    operation: impl Fn(Arc<dyn KeyBackend>) -> F + Copy + Send + 'static,
) -> u64 {
    let start = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let backend = Arc::clone(backend);
            tokio::spawn(async move {
                let mut done = 0u64;
                while start.elapsed() < TIME {
                    operation(Arc::clone(&backend)).await;
                    done += 1;
                }
                done
            })
        })
        .collect();
    let mut done = 0;
    for caller in callers {
        done += caller.await.unwrap();
    }
    done * 1000 / u64::try_from(start.elapsed().as_millis()).unwrap()
}
