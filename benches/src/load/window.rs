//! Closed-loop load: a window of time, and all that happens within.

use super::client::Client;
use super::tally::{Meter, Tally};
use super::thread::on_own_thread;
use super::{Plan, Sample};
use anyhow::ensure;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Before a failing worker tries again: a system that is down should not be flooded.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// What was silent for the whole window, and is for this long behind it, hangs.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);
pub(super) const SILENCE_LOOK: Duration = Duration::from_millis(10);

/// Loads what `plan` says, on a thread of its own.
///
/// # Errors
/// The plan can't be, or not all connections could be opened before the clock started. Whatever fails later is counted.
pub fn run(plan: &Plan) -> anyhow::Result<Sample> {
    let mut samples = run_together(std::slice::from_ref(plan))?;
    samples.pop().ok_or_else(|| anyhow::anyhow!("a plan without a sample"))
}

/// Loads what all of `plans` say at the same time and on the same thread: small requests beside bulk transfers, say.
/// They must agree about core, warm-up and duration. One sample for each.
///
/// # Errors
/// As of [`run`].
pub fn run_together(plans: &[Plan]) -> anyhow::Result<Vec<Sample>> {
    let Some(first) = plans.first() else { return Ok(Vec::new()) };
    let agrees =
        |plan: &Plan| (plan.core, plan.warm_up, plan.measure) == (first.core, first.warm_up, first.measure);
    ensure!(plans.iter().all(agrees), "plans that run together need the same core, warm-up and duration");
    on_own_thread(first.core, async || measure(plans, first.warm_up, first.measure).await)
}

async fn measure(plans: &[Plan], warm_up: Duration, measure: Duration) -> anyhow::Result<Vec<Sample>> {
    super::thread::raise_open_files(plans.iter().map(|plan| plan.connections).sum())?;
    let (mut tallies, mut idle) = (Vec::new(), Vec::new());
    for plan in plans {
        let clients = Client::open_all(plan).await?;
        let tally = Tally::new(clients.len())?;
        let workers = clients.into_iter().enumerate();
        idle.extend(workers.map(|(number, client)| (client, Meter::new(&tally, number))));
        tallies.push(tally);
    }
    let mut workers = JoinSet::new();
    for (client, meter) in idle {
        workers.spawn_local(drive(client, meter));
    }
    sleep(warm_up).await;
    tallies.iter().for_each(|tally| tally.begin());
    let begun = Instant::now();
    sleep(measure).await;
    // The timer may be late on a busy thread: what counts is the time that passed.
    let elapsed = begun.elapsed();
    tallies.iter().for_each(|tally| tally.end());
    wait_for_silent(&tallies).await;
    // Dropped tasks drop their connections: a request under way is abandoned.
    workers.shutdown().await;
    Ok(tallies.iter().map(|tally| tally.sample(elapsed)).collect())
}

async fn drive(mut client: Client, mut meter: Meter) {
    loop {
        let ended = match client.ready().await {
            Ok(()) => {
                let begun = Instant::now();
                client.exchange(&mut meter).await.map(|()| begun.elapsed())
            }
            Err(error) => Err(error),
        };
        match ended {
            Ok(latency) => meter.finished(latency),
            Err(error) => {
                meter.failed(&error);
                sleep(AFTER_FAILURE).await;
            }
        }
    }
}

/// A request that never ends is in no figure, so it has to be a failure.
async fn wait_for_silent(tallies: &[Rc<Tally>]) {
    let since = Instant::now();
    while tallies.iter().any(|tally| tally.silent() > 0) && since.elapsed() < SILENCE_MAX {
        sleep(SILENCE_LOOK).await;
    }
    for tally in tallies {
        tally.add_failures(tally.silent(), &format!("no answer, and no byte moved, for {SILENCE_MAX:?}"));
    }
}
