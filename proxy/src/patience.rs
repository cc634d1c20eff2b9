//! How long somebody waits: for waits that are many and short, and hardly ever too long.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// A limit on one wait after another, with one timer for all of them.
///
/// Setting a timer costs a place in the timer wheel, and taking it back another. So the timer is not moved when a wait
/// begins or ends: when it fires, what is left of the wait that is under way then is still waited for.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// When the present wait began.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// Whether the present wait, which begins now if none was under way, has lasted for `max`. If not, the task is woken
    /// when it has.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>, max: Duration) -> bool {
        let end = *self.since.get_or_insert_with(Instant::now) + max;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        // Only a wait that is to be shorter than those before it moves the timer.
        if timer.deadline() > end {
            timer.as_mut().reset(end);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= end {
                return true;
            }
            timer.as_mut().reset(end);
        }
        false
    }

    /// The present wait is over.
    pub(crate) fn stop(&mut self) {
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;

    async fn expires(patience: &mut Patience, max: Duration) -> Duration {
        let began = Instant::now();
        std::future::poll_fn(
            |cx| if patience.poll_expired(cx, max) { Poll::Ready(()) } else { Poll::Pending },
        )
        .await;
        began.elapsed()
    }

    fn waits(patience: &mut Patience, max: Duration) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        !patience.poll_expired(&mut cx, max)
    }

    const MAX: Duration = Duration::from_millis(30);

    #[tokio::test]
    async fn each_wait_has_its_whole_time() {
        let mut patience = Patience::default();
        assert!(waits(&mut patience, MAX));
        // The timer stands where the first wait would have ended, and has fired by then.
        tokio::time::sleep(MAX * 2).await;
        patience.stop();
        assert!(expires(&mut patience, MAX).await >= MAX);
    }

    #[tokio::test]
    async fn a_shorter_wait_ends_earlier_than_the_timer_stood() {
        const LONG: Duration = Duration::from_secs(3600);
        let mut patience = Patience::default();
        assert!(waits(&mut patience, LONG));
        patience.stop();
        assert!(expires(&mut patience, MAX).await < LONG);
    }
}
