//! The rotation's decision: what is observed comes in, one next thing to do comes out.
//!
//! This file contains no I/O, reads no clock and keeps no state. A crash at any point is resumed because the question is
//! asked again. The phase is derived from the same observation; nothing depends on a stored phase.
//!
//! ```text
//! generate → accept → promote → rewrap → drain → retire → done
//! ```
//! Invariants are numbered as in the rotation protocol's documentation.

/// Where a rotation stands, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The new version is made in the HSMs and proved.
    Generate,
    /// Every member learns to open what the new version seals.
    Accept,
    /// Every member begins to seal under the new version.
    Promote,
    /// Every DEK gets a wrap by the new version.
    Rewrap,
    /// Whoever might still seal under the old version is waited for.
    Drain,
    /// The old version leaves every member.
    Retire,
    /// Nobody holds the old version.
    Done,
}

impl Phase {
    /// All of them, in their order.
    pub const ALL: [Self; 7] =
        [Self::Generate, Self::Accept, Self::Promote, Self::Rewrap, Self::Drain, Self::Retire, Self::Done];

    /// The name in the operator API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Accept => "accept",
            Self::Promote => "promote",
            Self::Rewrap => "rewrap",
            Self::Drain => "drain",
            Self::Retire => "retire",
            Self::Done => "done",
        }
    }
}

/// Everything that the decision depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Observed {
    /// What has been done so far, as recorded.
    pub done: Done,
    /// Backends that the policy asks for.
    pub wraps_required: usize,
    /// Backends of the zone that answer now.
    pub backends_up: usize,
    /// Backends that hold the new version, proved.
    pub places: usize,
    /// Those of them that answer now.
    pub places_up: usize,
    /// Whether the new version has been primary for as long as the plan asks.
    pub soaked: bool,
    /// DEKs whose live wrap is by the old version.
    pub live_wraps: u64,
    /// Every member that the zone ever had.
    pub members: Vec<Member>,
    /// What the last attempt at the next thing to do failed with.
    pub failure: Option<String>,
}

/// The durable facts of a rotation; each is recorded in the transaction that makes it true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Done {
    /// The new version is in the policy's backends, its known answer equal in each.
    pub proved: bool,
    /// The generation in which the new version is accepted.
    pub accept: Option<u64>,
    /// The generation in which it is primary.
    pub promote: Option<u64>,
    /// The old wraps have been replaced once.
    pub draining: bool,
    /// No DEK is issued under the old version any more.
    pub barrier: bool,
    /// The generation in which the old version is gone.
    pub retire: Option<u64>,
    /// It is over.
    pub ended: bool,
}

/// A member, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// For people.
    pub name: String,
    /// Whether it can be talked to.
    pub reach: Reach,
    /// The last generation that it has applied, known-answer proved and durable.
    pub applied: u64,
    /// The generation that it refused last, and why.
    pub nack: Option<(u64, String)>,
}

/// Whether a member can be talked to, and whether it may still seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// It holds a stream.
    Connected,
    /// It does not, but its lease has not ended.
    Unreachable,
    /// Its lease has ended: it seals nothing until it has applied the current keyring set.
    Gone,
}

/// The next thing to do. Each may be repeated after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Make the new version in the backends and prove it.
    Generate,
    /// Take the new version into the accept set.
    Accept,
    /// Make it primary.
    Promote,
    /// Replace the next batch of old wraps.
    Rewrap,
    /// Record that the old wraps are replaced.
    BeginDrain,
    /// Stop issuing under the old version.
    CloseBarrier,
    /// Take the old version out of the accept set.
    Retire,
    /// Record the end.
    Finish,
}

/// What comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Do this, then ask again.
    Do(Action),
    /// Members are on their way; ask again when one of them moves or its lease ends.
    Wait {
        /// The generation that is waited for.
        generation: u64,
        /// Those who have not applied it.
        members: Vec<String>,
    },
    /// The new version proves itself in traffic; ask again later.
    Soak,
    /// Something has to change outside; it goes on by itself when that is so.
    Pause(String),
    /// Nothing is left to do.
    Nothing,
}

/// Where the rotation stands.
#[must_use]
pub fn phase(seen: &Observed) -> Phase {
    let done = &seen.done;
    if done.ended {
        Phase::Done
    } else if done.retire.is_some() || (done.barrier && seen.live_wraps == 0) {
        Phase::Retire
    } else if done.draining {
        Phase::Drain
    } else if let Some(generation) = done.promote {
        let promoted = waited_for(seen, generation, Who::Connected).is_empty() && seen.soaked;
        if promoted { Phase::Rewrap } else { Phase::Promote }
    } else if done.accept.is_some() {
        Phase::Accept
    } else {
        Phase::Generate
    }
}

/// The decision.
#[must_use]
pub fn decide(seen: &Observed) -> Next {
    let next = match phase(seen) {
        Phase::Generate => generate(seen),
        Phase::Accept => applied_by(seen, seen.done.accept, Who::Everybody, Action::Promote),
        Phase::Promote => {
            let waiting = applied_by(seen, seen.done.promote, Who::Connected, Action::Rewrap);
            if matches!(waiting, Next::Do(_)) { Next::Soak } else { waiting }
        }
        Phase::Rewrap if seen.live_wraps == 0 => Next::Do(Action::BeginDrain),
        Phase::Rewrap => rewrap(seen),
        // 10: references are counted after the write barrier, so what came in before it is rewrapped behind it.
        Phase::Drain if seen.done.barrier => rewrap(seen),
        Phase::Drain => applied_by(seen, seen.done.promote, Who::Everybody, Action::CloseBarrier),
        // 11: both conditions are in the phase.
        Phase::Retire if seen.done.retire.is_none() => Next::Do(Action::Retire),
        Phase::Retire => applied_by(seen, seen.done.retire, Who::Everybody, Action::Finish),
        Phase::Done => Next::Nothing,
    };
    match (next, &seen.failure) {
        // What failed is tried again by whoever asks; until it works, people see why it stands.
        (Next::Do(_), Some(failure)) => Next::Pause(failure.clone()),
        (next, _) => next,
    }
}

/// Who has to have applied a generation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Everybody whose lease has not ended. What the safety of others rests on.
    Everybody,
    /// Whoever can be talked to now.
    Connected,
}

fn generate(seen: &Observed) -> Next {
    if seen.done.proved {
        // 17: on as many HSMs as the policy asks for, with equal known-answer results.
        return Next::Do(Action::Accept);
    }
    if seen.backends_up < seen.wraps_required {
        return Next::Pause(down(seen.backends_up, seen.wraps_required));
    }
    Next::Do(Action::Generate)
}

fn rewrap(seen: &Observed) -> Next {
    if seen.places_up < seen.wraps_required {
        return Next::Pause(down(seen.places_up, seen.wraps_required));
    }
    Next::Do(Action::Rewrap)
}

fn down(up: usize, required: usize) -> String {
    format!("{up} of the {required} key backends that the policy asks for answer")
}

fn waited_for(seen: &Observed, generation: u64, who: Who) -> Vec<&Member> {
    let counts = |member: &&Member| match member.reach {
        Reach::Connected => true,
        // 4: an unreachable member may seal until its lease ends; only then does it count as gone.
        Reach::Unreachable => who == Who::Everybody,
        Reach::Gone => false,
    };
    // RECEIVED promises nothing: only what was applied counts.
    seen.members.iter().filter(counts).filter(|member| member.applied < generation).collect()
}

fn applied_by(seen: &Observed, generation: Option<u64>, who: Who, then: Action) -> Next {
    let Some(generation) = generation else { return Next::Nothing };
    let waiting = waited_for(seen, generation, who);
    if waiting.is_empty() {
        return Next::Do(then);
    }
    let refused = waiting.iter().find_map(|member| {
        let (refused, why) = member.nack.as_ref()?;
        (*refused >= generation).then(|| format!("{} refuses generation {refused}: {why}", member.name))
    });
    match refused {
        Some(reason) => Next::Pause(reason),
        None => {
            let members = waiting.iter().map(|member| member.name.clone()).collect();
            Next::Wait { generation, members }
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
