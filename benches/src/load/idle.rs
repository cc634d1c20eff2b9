//! Connections that do nothing, to see what they cost.

use super::Plan;
use super::client::Client;
use super::tally::{Meter, Tally};
use super::thread::{pin, runtime};
use anyhow::Context as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Exchanges under way while connections are being made.
const EXCHANGES_AT_ONCE: usize = 64;

/// Connections that have served one exchange each and are held until this is dropped.
#[derive(Debug)]
pub struct IdleConnections {
    opened: usize,
    lost: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl IdleConnections {
    /// Opens the connections of `plan`; its times and streams do not matter. Returns when each has served an exchange.
    ///
    /// # Errors
    /// A connection could not be opened, or an exchange on one failed.
    pub fn open(plan: &Plan) -> anyhow::Result<Self> {
        let plan = Plan { streams: 1, warm_up: Duration::ZERO, measure: Duration::ZERO, ..plan.clone() };
        let opened = plan.connections;
        let lost = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel();
        let (told, ready) = std::sync::mpsc::sync_channel(1);
        let counter = Arc::clone(&lost);
        let thread = std::thread::Builder::new().name("idle-connections".into()).spawn(move || {
            let held = plan.core.map_or(Ok(()), pin).and_then(|()| runtime());
            match held {
                Ok(runtime) => runtime.block_on(async move {
                    match exchange_all(&plan).await {
                        Ok(clients) => {
                            let _held = watch(clients, &counter);
                            // The other end is gone only with the value that this thread belongs to.
                            let _ = told.send(Ok(()));
                            let _ = stopped.await;
                        }
                        Err(error) => drop(told.send(Err(error))),
                    }
                }),
                Err(error) => drop(told.send(Err(error))),
            }
        })?;
        ready.recv().context("the thread of the idle connections ended")??;
        Ok(Self { opened, lost, stop: Some(stop), thread: Some(thread) })
    }

    /// How many were opened.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.opened
    }

    /// How many the other side has closed since. What is measured per connection is wrong unless this is zero.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for IdleConnections {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ = thread.join();
        }
    }
}

async fn exchange_all(plan: &Plan) -> anyhow::Result<Vec<Client>> {
    let mut clients = Client::open_all(plan).await?;
    let tally = Tally::new(clients.len())?;
    for (part, clients) in clients.chunks_mut(EXCHANGES_AT_ONCE).enumerate() {
        let exchanges = clients.iter_mut().enumerate().map(|(number, client)| {
            let mut meter = Meter::new(&tally, part * EXCHANGES_AT_ONCE + number);
            async move { client.exchange(&mut meter).await }
        });
        futures_util::future::try_join_all(exchanges).await.context("the exchange before they idle")?;
    }
    for client in &mut clients {
        // Closed with the response, by a server that keeps none alive.
        client.ready().await?;
    }
    Ok(clients)
}

fn watch(clients: Vec<Client>, lost: &Arc<AtomicUsize>) -> JoinSet<()> {
    let mut watchers = JoinSet::new();
    for mut client in clients {
        let lost = Arc::clone(lost);
        watchers.spawn_local(async move {
            client.closed().await;
            lost.fetch_add(1, Ordering::Relaxed);
        });
    }
    watchers
}
