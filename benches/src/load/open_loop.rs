//! Open-loop load: requests by the clock, however long the answers take.

use super::client::Client;
use super::tally::{Meter, Tally};
use super::thread::on_own_thread;
use super::timer::Timer;
use super::window::{SILENCE_LOOK, SILENCE_MAX};
use super::{Plan, Sample};
use anyhow::ensure;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, yield_now};

/// So many requests are given out before their answers are looked at, when the clock is ahead.
const CATCH_UP: u64 = 32;

/// The requests whose time has come and that no connection was free for.
struct Due {
    queue: RefCell<VecDeque<(Instant, bool)>>,
    waiting: Semaphore,
    /// Those that count and have not ended.
    open: Cell<usize>,
}

/// Sends `requests_per_second` at even distances over the connections of `plan`, whether or not earlier ones were
/// answered. A request's latency begins when it should have been sent, not when a connection was free for it:
/// otherwise a system that stalls would be asked less while it does (coordinated omission).
///
/// The sample has the requests whose time came while it was measured. What is not answered ten seconds later is a
/// failure. A system that can't keep up shows in the latency.
///
/// # Errors
/// As of [`super::run`]; also for a rate that is none.
pub fn pace(plan: &Plan, requests_per_second: f64) -> anyhow::Result<Sample> {
    let is_rate = requests_per_second.is_finite() && requests_per_second > 0.0;
    ensure!(is_rate, "{requests_per_second} requests a second can't be sent");
    let interval = Duration::try_from_secs_f64(requests_per_second.recip())?;
    ensure!(!interval.is_zero(), "{requests_per_second} requests a second are too many");
    on_own_thread(plan.core, async || paced(plan, interval).await)
}

async fn paced(plan: &Plan, interval: Duration) -> anyhow::Result<Sample> {
    let clients = Client::open_all(plan).await?;
    let tally = Tally::new(clients.len())?;
    let due =
        Rc::new(Due { queue: RefCell::new(VecDeque::new()), waiting: Semaphore::new(0), open: Cell::new(0) });
    let mut workers = JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        workers.spawn_local(work(client, Meter::new(&tally, number), Rc::clone(&due)));
    }
    give_out(&due, interval, plan.warm_up, plan.measure).await?;
    let since = Instant::now();
    while due.open.get() > 0 && since.elapsed() < SILENCE_MAX {
        tokio::time::sleep(SILENCE_LOOK).await;
    }
    workers.shutdown().await;
    tally.add_failures(due.open.get(), &format!("not answered within {SILENCE_MAX:?}"));
    Ok(tally.sample(plan.measure))
}

async fn give_out(due: &Due, interval: Duration, warm_up: Duration, measure: Duration) -> anyhow::Result<()> {
    let timer = Timer::new()?;
    let begun = Instant::now();
    let mut offset = Duration::ZERO;
    for number in 0_u64.. {
        if offset >= warm_up + measure {
            break;
        }
        let at = begun + offset;
        timer.wait_until(at).await?;
        let counts = offset >= warm_up;
        due.open.set(due.open.get() + usize::from(counts));
        due.queue.borrow_mut().push_back((at, counts));
        due.waiting.add_permits(1);
        if number % CATCH_UP == 0 {
            yield_now().await;
        }
        offset += interval;
    }
    Ok(())
}

async fn work(mut client: Client, mut meter: Meter, due: Rc<Due>) {
    // The semaphore is never closed.
    while let Ok(permit) = due.waiting.acquire().await {
        permit.forget();
        let Some((at, counts)) = due.queue.borrow_mut().pop_front() else { continue };
        meter.set_counts(counts);
        let ended = match client.ready().await {
            Ok(()) => client.exchange(&mut meter).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => meter.finished(at.elapsed()),
            Err(error) => meter.failed(&error),
        }
        due.open.set(due.open.get() - usize::from(counts));
    }
}
