//! What has been counted so far.

use super::Sample;
use hdrhistogram::Histogram;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// Ten minutes: what takes longer is counted as that.
const LATENCY_NS_MAX: u64 = 600_000_000_000;
const LATENCY_DIGITS: u8 = 3;

/// Of all workers of a plan.
pub(super) struct Tally {
    is_measuring: Cell<bool>,
    requests: Cell<u64>,
    failures: Cell<u64>,
    bytes: Cell<u64>,
    latency: RefCell<Histogram<u64>>,
    first_failure: RefCell<Option<String>>,
    /// Of each worker: nothing has happened since the measuring began.
    is_silent: Vec<Cell<bool>>,
}

/// A worker's own hand on the tally.
pub(super) struct Meter {
    tally: Rc<Tally>,
    worker: usize,
    counts: Counts,
    /// What the request under way has been credited, to be taken back if it fails.
    credited: u64,
}

/// Which requests count.
#[derive(Clone, Copy)]
enum Counts {
    /// What happens while it is measured.
    Window,
    /// This one does, or does not, whenever it ends.
    Request(bool),
}

impl Tally {
    pub(super) fn new(workers: usize) -> anyhow::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            is_measuring: Cell::new(false),
            requests: Cell::new(0),
            failures: Cell::new(0),
            bytes: Cell::new(0),
            latency: RefCell::new(Histogram::new_with_bounds(1, LATENCY_NS_MAX, LATENCY_DIGITS)?),
            first_failure: RefCell::new(None),
            is_silent: vec![Cell::new(false); workers],
        }))
    }

    pub(super) fn begin(&self) {
        self.is_silent.iter().for_each(|silent| silent.set(true));
        self.is_measuring.set(true);
    }

    pub(super) fn end(&self) {
        self.is_measuring.set(false);
    }

    /// Workers that nothing came of since [`Self::begin`].
    pub(super) fn silent(&self) -> usize {
        self.is_silent.iter().filter(|silent| silent.get()).count()
    }

    /// Counts failures that no worker has reported.
    pub(super) fn add_failures(&self, count: usize, why: &str) {
        if count > 0 {
            self.failures.set(self.failures.get() + count as u64);
            self.first_failure.borrow_mut().get_or_insert_with(|| why.to_owned());
        }
    }

    pub(super) fn sample(&self, elapsed: Duration) -> Sample {
        Sample {
            requests: self.requests.get(),
            failures: self.failures.get(),
            bytes: self.bytes.get(),
            elapsed,
            latency: self.latency.borrow().clone(),
            first_failure: self.first_failure.borrow().clone(),
        }
    }
}

impl Meter {
    pub(super) fn new(tally: &Rc<Tally>, worker: usize) -> Self {
        Self { tally: Rc::clone(tally), worker, counts: Counts::Window, credited: 0 }
    }

    /// From here on the next request counts, or does not, whenever it ends.
    pub(super) fn set_counts(&mut self, counts: bool) {
        self.counts = Counts::Request(counts);
    }

    fn counts(&self) -> bool {
        match self.counts {
            Counts::Window => self.tally.is_measuring.get(),
            Counts::Request(counts) => counts,
        }
    }

    fn is_heard(&self) {
        if let Some(silent) = self.tally.is_silent.get(self.worker) {
            silent.set(false);
        }
    }

    /// So many bytes of the request's body, or of its response's, have moved.
    pub(super) fn moved(&mut self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.is_heard();
        if self.counts() {
            self.credited += bytes;
            self.tally.bytes.set(self.tally.bytes.get() + bytes);
        }
    }

    /// The request was answered, and rightly.
    pub(super) fn finished(&mut self, latency: Duration) {
        self.is_heard();
        self.credited = 0;
        if self.counts() {
            self.tally.requests.set(self.tally.requests.get() + 1);
            let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            self.tally.latency.borrow_mut().saturating_record(nanoseconds);
        }
    }

    /// It begins anew; what has moved was for nothing.
    pub(super) fn taken_back(&mut self) {
        self.tally.bytes.set(self.tally.bytes.get() - std::mem::take(&mut self.credited));
    }

    /// It was not answered rightly.
    pub(super) fn failed(&mut self, why: &anyhow::Error) {
        self.is_heard();
        self.taken_back();
        if self.counts() {
            self.tally.failures.set(self.tally.failures.get() + 1);
            self.tally.first_failure.borrow_mut().get_or_insert_with(|| format!("{why:#}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Meter, Tally};
    use anyhow::anyhow;
    use std::time::Duration;

    const LATENCY: Duration = Duration::from_micros(10);

    #[test]
    fn what_happens_within_the_window_counts() {
        let tally = Tally::new(1).unwrap();
        let mut meter = Meter::new(&tally, 0);
        meter.moved(1);
        meter.finished(LATENCY);
        meter.failed(&anyhow!("too early"));
        meter.moved(2);
        tally.begin();
        meter.moved(4);
        meter.finished(LATENCY);
        // Still under way when it ends.
        meter.moved(8);
        tally.end();
        meter.moved(16);
        meter.finished(LATENCY);
        let sample = tally.sample(Duration::from_secs(1));
        assert_eq!((sample.requests, sample.failures, sample.bytes), (1, 0, 12));
        assert_eq!((sample.latency.len(), sample.first_failure), (1, None));
    }

    #[test]
    fn bytes_of_failed_requests_are_taken_back() {
        let tally = Tally::new(1).unwrap();
        let mut meter = Meter::new(&tally, 0);
        tally.begin();
        meter.moved(1);
        meter.finished(LATENCY);
        meter.moved(2);
        meter.failed(&anyhow!("the first").context("failed"));
        meter.moved(4);
        meter.failed(&anyhow!("the second"));
        meter.moved(8);
        // Ends behind the window, but what it moved within is wrong all the same.
        tally.end();
        meter.failed(&anyhow!("the third"));
        let sample = tally.sample(Duration::from_secs(1));
        assert_eq!((sample.requests, sample.failures, sample.bytes), (1, 2, 1));
        assert_eq!(sample.first_failure.as_deref(), Some("failed: the first"));
    }

    #[test]
    fn silent_workers_are_noticed() {
        let tally = Tally::new(3).unwrap();
        tally.begin();
        Meter::new(&tally, 0).moved(1);
        Meter::new(&tally, 2).failed(&anyhow!("refused"));
        assert_eq!(tally.silent(), 1);
        tally.end();
        Meter::new(&tally, 1).finished(LATENCY);
        assert_eq!(tally.silent(), 0);
    }

    #[test]
    fn a_request_counts_by_itself_when_paced() {
        let tally = Tally::new(1).unwrap();
        let mut meter = Meter::new(&tally, 0);
        for (counts, bytes) in [(false, 1), (true, 2)] {
            meter.set_counts(counts);
            meter.moved(bytes);
            meter.finished(LATENCY);
        }
        let sample = tally.sample(Duration::from_secs(1));
        assert_eq!((sample.requests, sample.bytes), (1, 2));
    }
}
