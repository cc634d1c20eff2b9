//! Traffic that goes on while a test does something else, and notices every failure.

use crate::client::{Client, request, whole};
use crate::random;
use http::Method;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::task::JoinHandle;

/// What went on so far.
#[derive(Debug, Default)]
struct Tally {
    requests: AtomicU64,
    stop: AtomicBool,
    failures: Mutex<Vec<String>>,
}

/// Connections that store objects and read them back, over and over.
#[derive(Debug)]
pub struct Load {
    tally: Arc<Tally>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `connections` of them against `address`, each on one connection that is never made anew.
    #[must_use]
    pub fn start(address: SocketAddr, connections: usize) -> Self {
        let tally = Arc::new(Tally::default());
        let tasks = (0..connections).map(|n| tokio::spawn(run(n, address, Arc::clone(&tally)))).collect();
        Self { tally, tasks }
    }

    /// Requests that succeeded so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.tally.requests.load(Ordering::SeqCst)
    }

    /// Waits until so many more have succeeded.
    pub async fn more(&self, requests: u64) {
        let target = self.requests() + requests;
        crate::eventually("traffic", async || {
            self.assert_no_failure();
            (self.requests() >= target).then_some(())
        })
        .await;
    }

    /// # Panics
    /// If a request failed or a connection was dropped.
    pub fn assert_no_failure(&self) {
        let failures = self.tally.failures.lock().expect("no test panics while it holds this");
        assert!(
            failures.is_empty(),
            "{} failures: {:#?}",
            failures.len(),
            &failures[..failures.len().min(5)]
        );
    }

    /// Ends the traffic; gives the number of requests.
    ///
    /// # Panics
    /// If a request failed or a connection was dropped.
    pub async fn finish(self) -> u64 {
        self.tally.stop.store(true, Ordering::SeqCst);
        for task in &mut { self.tasks } {
            task.await.expect("the traffic does not panic");
        }
        let failures = self.tally.failures.lock().expect("no test panics while it holds this");
        assert!(
            failures.is_empty(),
            "{} failures: {:#?}",
            failures.len(),
            &failures[..failures.len().min(5)]
        );
        self.tally.requests.load(Ordering::SeqCst)
    }
}

async fn run(n: usize, address: SocketAddr, tally: Arc<Tally>) {
    if let Err(failure) = exchange(n, address, &tally).await {
        tally.failures.lock().expect("no test panics while it holds this").push(failure);
    }
}

/// The first failure ends it: a connection is not made anew, so a dropped one is seen.
async fn exchange(n: usize, address: SocketAddr, tally: &Tally) -> Result<(), String> {
    let mut client = Client::http1(address).await.map_err(|error| format!("connect: {error}"))?;
    for round in 0u64.. {
        if tally.stop.load(Ordering::SeqCst) {
            break;
        }
        let len = [0, 100, 5_000, 16_384, 70_000][usize::try_from(round % 5).unwrap_or(0)];
        let body = random(len);
        // One path is written in each round, and read by later ones too.
        let path = format!("/objects/load-{}-{n}-{}", address.port(), round % 7);
        let put = request(Method::PUT, &path, &[], whole(body.clone()));
        let answer = client.send(put).await.map_err(|error| format!("PUT {path}: {error}"))?;
        if !answer.status.is_success() || answer.broken.is_some() {
            return Err(format!("PUT {path}: {} {:?} {}", answer.status, answer.broken, answer.code()));
        }
        let get = request(Method::GET, &path, &[], whole(""));
        let answer = client.send(get).await.map_err(|error| format!("GET {path}: {error}"))?;
        if answer.status != 200 || answer.broken.is_some() || answer.body != body {
            let same = answer.body == body;
            return Err(format!(
                "GET {path}: {} {:?} same={same} {}",
                answer.status,
                answer.broken,
                answer.code()
            ));
        }
        tally.requests.fetch_add(2, Ordering::SeqCst);
    }
    Ok(())
}
