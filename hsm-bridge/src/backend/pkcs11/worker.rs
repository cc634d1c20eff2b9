//! One thread per session, a bounded queue in front, the deadline in the caller.
//!
//! A module may hang in any call (a network HSM for minutes): then its threads hang, callers get
//! [`BackendError::Timeout`], and soon [`BackendError::Busy`] from the full queue. Nothing else waits.

use super::failure::{Class, Failure};
use super::module::Module;
use super::token::{Link, Token};
use crate::backend::BackendError;
use core::time::Duration;
use keyway_envelope::KekRef;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Jobs that may wait, per session.
const QUEUE_PER_SESSION: usize = 64;

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// The threads of one backend. They end when it is dropped.
#[derive(Debug)]
pub(super) struct Crew {
    queue: SyncSender<Job>,
    timeout: Duration,
}

impl Crew {
    /// Starts the threads; each opens its session with its first job.
    pub(super) fn start(
        name: &str,
        token: &Token,
        sessions: usize,
        timeout: Duration,
    ) -> Result<Self, BackendError> {
        let (queue, jobs) = sync_channel(sessions * QUEUE_PER_SESSION);
        let jobs = Arc::new(Mutex::new(jobs));
        for n in 0..sessions {
            let (jobs, worker) = (
                Arc::clone(&jobs),
                Worker {
                    token: token.clone(),
                    module: None,
                    link: None,
                    was_connected: false,
                    generation: 0,
                },
            );
            std::thread::Builder::new()
                .name(format!("hsm-{name}-{n}"))
                .spawn(move || worker.serve(&jobs))
                .map_err(|error| BackendError::Unavailable(format!("can't start a thread: {error}")))?;
        }
        Ok(Self { queue, timeout })
    }

    /// Runs `op` on some session, with one retry where that may help, within the timeout.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        op: impl FnMut(&mut Link) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, BackendError> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(move |worker| {
            // Nobody waits any more: the HSM has better things to do.
            if !reply.is_closed() {
                let _ = reply.send(worker.run(op));
            }
        })?;
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(BackendError::Unavailable("a session's thread ended".to_owned())),
            Err(_) => Err(BackendError::Timeout),
        }
    }

    /// As [`Crew::run`], for a thread that may wait, with a timeout of its own.
    pub(super) fn run_blocking<T: Send + 'static>(
        &self,
        timeout: Duration,
        op: impl FnMut(&mut Link) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, BackendError> {
        let (reply, answer) = sync_channel(1);
        self.enqueue(move |worker| {
            let _ = reply.send(worker.run(op));
        })?;
        answer.recv_timeout(timeout).unwrap_or(Err(BackendError::Timeout))
    }

    fn enqueue(&self, job: impl FnOnce(&mut Worker) + Send + 'static) -> Result<(), BackendError> {
        self.queue.try_send(Box::new(job)).map_err(|error| match error {
            TrySendError::Full(_) => BackendError::Busy,
            TrySendError::Disconnected(_) => BackendError::Unavailable("its threads ended".to_owned()),
        })
    }
}

/// A thread's own: the one session that it uses.
struct Worker {
    token: Token,
    module: Option<Arc<Module>>,
    link: Option<Link>,
    /// A token that was never there is a matter of configuration; one that was may come back.
    was_connected: bool,
    /// The module's, as of the last attempt: what failed then is not blamed on a later one.
    generation: u64,
}

impl Worker {
    fn serve(mut self, jobs: &Mutex<Receiver<Job>>) {
        loop {
            // Idle threads queue up at the lock; the one that holds it waits for the next job.
            let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { break };
            job(&mut self);
        }
        self.disconnect();
    }

    /// Tries; does what the failure's class asks for, once for each class; tries again.
    fn run<T>(&mut self, mut op: impl FnMut(&mut Link) -> Result<T, Failure>) -> Result<T, BackendError> {
        // More than one class in a row is common: the handle is stale since the session was logged out.
        let mut remedied = Vec::new();
        loop {
            let failure = match self.attempt(&mut op) {
                Ok(outcome) => {
                    if !remedied.is_empty() {
                        self.recovered();
                    }
                    return Ok(outcome);
                }
                Err(failure) => failure,
            };
            let class = failure.class();
            tracing::debug!(token = self.token.label, ?failure, ?class, "a PKCS#11 operation failed");
            if remedied.contains(&class) {
                return Err(self.verdict(failure));
            }
            self.remedy(class, failure)?;
            remedied.push(class);
        }
    }

    fn attempt<T>(&mut self, op: &mut impl FnMut(&mut Link) -> Result<T, Failure>) -> Result<T, Failure> {
        let module = match &self.module {
            Some(module) => Arc::clone(module),
            None => Arc::clone(self.module.insert(Module::load(&self.token.module)?)),
        };
        let context = module.enter();
        self.generation = context.generation;
        let link = match self.link.take().filter(|link| link.is_current(&context)) {
            Some(link) => self.link.insert(link),
            None => self.link.insert(self.token.connect(&module, &context)?),
        };
        self.was_connected = true;
        op(link)
    }

    /// `Ok` if another attempt is worth it.
    fn remedy(&mut self, class: Class, failure: Failure) -> Result<(), BackendError> {
        match class {
            Class::Caller | Class::Pin => Err(failure.settle()),
            Class::Session => {
                self.disconnect();
                Ok(())
            }
            Class::Handle => {
                if let Some(link) = &mut self.link {
                    link.forget_handles();
                }
                Ok(())
            }
            Class::Module => self.reinitialise(false).map_err(Failure::settle),
            Class::Absent => {
                let may_be_there = matches!(failure, Failure::Absent { unreadable: true, .. });
                if !(self.was_connected || may_be_there) {
                    return Err(failure.settle());
                }
                self.reinitialise(true).map_err(|_| failure.settle())
            }
            Class::Ambiguous => self.after_canary(failure),
        }
    }

    /// The HSM works: the operation itself was at fault. Else everything is set up anew, and the canary decides again.
    fn after_canary(&mut self, failure: Failure) -> Result<(), BackendError> {
        let kek = failure.suspect();
        if self.canary(kek).is_ok() {
            return Err(failure.at_fault());
        }
        self.disconnect();
        if self.canary(kek).is_ok() {
            return Ok(());
        }
        self.reinitialise(true).and_then(|()| self.canary(kek)).map_err(|_| failure.settle())
    }

    /// What a failure means that came again.
    fn verdict(&mut self, failure: Failure) -> BackendError {
        match failure.suspect() {
            Some(kek) if self.canary(Some(kek)).is_ok() => failure.at_fault(),
            _ => failure.settle(),
        }
    }

    fn recovered(&self) {
        if let Some(module) = &self.module {
            module.recovered();
        }
    }

    fn canary(&mut self, kek: Option<KekRef>) -> Result<(), Failure> {
        self.attempt(&mut |link: &mut Link| link.canary(kek))
    }

    fn reinitialise(&mut self, finalise: bool) -> Result<(), Failure> {
        let Some(module) = self.module.clone() else { return Ok(()) };
        if finalise {
            self.disconnect();
        } else {
            // Its sessions went with the initialisation: there is nothing to close.
            self.link = None;
        }
        module.reinitialise(self.generation, finalise)
    }

    fn disconnect(&mut self) {
        if let Some(link) = self.link.take() {
            let module = Arc::clone(&link.module);
            link.close(&module.enter());
        }
    }
}
