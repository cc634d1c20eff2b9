//! A small model of a zone under rotation, explored whole: every order of what the bridge decides and does, members that
//! apply, answers that get lost, partitions, lease ends, a joiner, DEKs issued, and crashes of the bridge.
//!
//! The decision is the real one. The model is itself tested: each seeded fault has to be caught.

use super::*;
use std::collections::{HashSet, VecDeque};

const MEMBERS: usize = 3;
/// The generation before the rotation.
const BASE: u64 = 1;

/// A fault that is built in, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A set that was sent counts as applied.
    PromoteOnReceived,
    /// An unreachable member counts as gone before its lease has ended.
    ForgetUnreachable,
    /// References are counted without the write barrier.
    CountBeforeBarrier,
    /// A member that has applied nothing yet is not waited for.
    IgnoreJoiner,
    /// A member whose lease has ended gets it back with whatever it holds.
    ReviveOldGeneration,
    /// DEKs are issued under the old version behind the barrier.
    IssueBehindBarrier,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    /// None: not there yet.
    reach: Option<Reach>,
    /// What it serves from, durably. 0: nothing.
    held: u64,
    /// Its lease has not ended.
    leased: bool,
    /// Sent and not applied.
    inbox: Option<u64>,
    /// Applied and not acknowledged.
    outbox: Option<u64>,
    /// What the bridge has recorded.
    acked: u64,
    partitions_left: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    done: Done,
    generation: u64,
    live_old: u8,
    /// Requests for a DEK under the old version that the bridge has not answered. They outlive what asked for them.
    asked: u8,
    issues_left: u8,
    crashes_left: u8,
    members: Vec<Place>,
    /// Decided, announced, and not performed yet.
    pending: Option<Action>,
}

impl World {
    fn new() -> Self {
        let settled = Place {
            reach: Some(Reach::Connected),
            held: BASE,
            leased: true,
            inbox: None,
            outbox: None,
            acked: BASE,
            partitions_left: 1,
        };
        let mut members = vec![settled.clone(); MEMBERS - 1];
        members.push(Place { reach: None, held: 0, leased: false, acked: 0, partitions_left: 0, ..settled });
        members[0].partitions_left = 0;
        Self {
            done: Done::default(),
            generation: BASE,
            live_old: 1,
            asked: 0,
            issues_left: 1,
            crashes_left: 1,
            members,
            pending: None,
        }
    }

    fn observe(&self, fault: Fault) -> Observed {
        let mut done = self.done;
        if fault == Fault::CountBeforeBarrier {
            done.barrier |= done.promote.is_some();
        }
        let member = |place: &Place| {
            let mut reach = place.reach?;
            if fault == Fault::ForgetUnreachable && reach == Reach::Unreachable {
                reach = Reach::Gone;
            }
            if fault == Fault::IgnoreJoiner && place.acked == 0 {
                return None;
            }
            let received = if fault == Fault::PromoteOnReceived { place.inbox.unwrap_or(0) } else { 0 };
            Some(Member { name: String::new(), reach, applied: place.acked.max(received), nack: None })
        };
        Observed {
            done,
            wraps_required: 1,
            backends_up: 1,
            places: usize::from(done.proved),
            places_up: usize::from(done.proved),
            soaked: true,
            live_wraps: self.live_old.into(),
            members: self.members.iter().filter_map(member).collect(),
            failure: None,
        }
    }

    /// Who seals: it holds something, and its lease has not ended.
    fn serving(&self) -> impl Iterator<Item = &Place> {
        self.members.iter().filter(|place| place.held > 0 && place.leased)
    }

    /// The primary of a generation.
    fn primary(&self, generation: u64) -> u8 {
        if self.done.promote.is_some_and(|at| generation >= at) { 2 } else { 1 }
    }

    fn accepts(&self, generation: u64, version: u8) -> bool {
        match version {
            1 => self.done.retire.is_none_or(|at| generation < at),
            _ => self.done.accept.is_some_and(|at| generation >= at),
        }
    }

    /// What is wrong with this state, by invariant.
    fn violated(&self) -> Option<&'static str> {
        for writer in self.serving() {
            let primary = self.primary(writer.held);
            if self.serving().any(|reader| !self.accepts(reader.held, primary)) {
                return Some("1, 2, 3: somebody seals what somebody else does not accept");
            }
            if self.done.retire.is_some() && primary == 1 {
                return Some("4, 8: a retired version is sealed under");
            }
        }
        if self.done.retire.is_some() && self.live_old > 0 {
            return Some("10, 11: a DEK needs a retired version");
        }
        if self.done.ended && self.serving().any(|place| self.accepts(place.held, 1)) {
            return Some("11: the end was recorded while somebody holds the old version");
        }
        None
    }

    fn bump(&mut self) -> u64 {
        self.generation += 1;
        for place in self.members.iter_mut().filter(|place| place.reach == Some(Reach::Connected)) {
            place.inbox = Some(self.generation);
        }
        self.generation
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Generate => self.done.proved = true,
            Action::Accept => self.done.accept = Some(self.bump()),
            Action::Promote => self.done.promote = Some(self.bump()),
            Action::Rewrap => self.live_old = 0,
            Action::BeginDrain => self.done.draining = true,
            Action::CloseBarrier => self.done.barrier = true,
            Action::Retire => self.done.retire = Some(self.bump()),
            Action::Finish => self.done.ended = true,
        }
    }

    /// Everything that can happen next.
    fn successors(&self, fault: Fault) -> Vec<Self> {
        let mut out = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut next = self.clone();
            change(&mut next);
            out.push(next);
        };
        match self.pending {
            None => {
                if let Next::Do(action) = decide(&self.observe(fault)) {
                    add(&|next| next.pending = Some(action));
                }
            }
            Some(action) => add(&|next| {
                next.pending = None;
                next.perform(action);
            }),
        }
        if self.asked > 0 {
            // The bridge says no behind the barrier, in the transaction that would record the DEK.
            let open = !self.done.barrier || fault == Fault::IssueBehindBarrier;
            add(&|next| {
                next.asked -= 1;
                next.live_old += u8::from(open);
            });
        }
        if self.crashes_left > 0 {
            add(&|next| next.crash());
        }
        for index in 0..self.members.len() {
            self.member_events(index, fault, &mut add);
        }
        out
    }

    /// The bridge dies between record and effect; streams break, and it decides anew.
    fn crash(&mut self) {
        self.crashes_left -= 1;
        self.pending = None;
        self.asked = 0;
        for place in self.members.iter_mut().filter(|place| place.reach == Some(Reach::Connected)) {
            place.cut();
        }
    }

    fn member_events(&self, index: usize, fault: Fault, add: &mut Add<'_>) {
        let place = &self.members[index];
        match place.reach {
            None => add(&|next| next.attach(index, fault)),
            Some(Reach::Connected) => {
                if place.inbox.is_some() {
                    add(&|next| next.members[index].apply());
                }
                if place.outbox.is_some() {
                    add(&|next| {
                        let place = &mut next.members[index];
                        place.acked = place.outbox.take().unwrap_or(place.acked);
                    });
                }
                if place.partitions_left > 0 {
                    add(&|next| {
                        next.members[index].partitions_left -= 1;
                        next.members[index].cut();
                    });
                }
                // Its primary is the version that it asks a DEK under.
                let old = place.held > 0 && place.leased && self.primary(place.held) == 1;
                if old && self.issues_left > 0 {
                    add(&|next| {
                        next.issues_left -= 1;
                        next.asked += 1;
                    });
                }
            }
            Some(Reach::Unreachable) => {
                add(&|next| next.attach(index, fault));
                add(&|next| {
                    next.members[index].reach = Some(Reach::Gone);
                    next.members[index].leased = false;
                });
            }
            Some(Reach::Gone) => add(&|next| next.attach(index, fault)),
        }
    }

    /// A member says hello and is sent the current set, unless it is known to hold it.
    fn attach(&mut self, index: usize, fault: Fault) {
        let generation = self.generation;
        let place = &mut self.members[index];
        place.reach = Some(Reach::Connected);
        if place.held == generation && place.acked == generation {
            place.leased = true;
        } else {
            place.inbox = Some(generation);
            place.leased |= fault == Fault::ReviveOldGeneration && place.held > 0;
        }
    }
}

impl Place {
    fn apply(&mut self) {
        if let Some(generation) = self.inbox.take() {
            self.held = generation;
            self.leased = true;
            self.outbox = Some(generation);
        }
    }

    fn cut(&mut self) {
        self.reach = Some(Reach::Unreachable);
        self.inbox = None;
        self.outbox = None;
    }
}

/// Takes a change of the world as one thing that can happen.
type Add<'a> = dyn FnMut(&dyn Fn(&mut World)) + 'a;

/// Explores everything; gives the number of states, or what is violated.
fn explore(fault: Fault) -> Result<usize, &'static str> {
    let start = World::new();
    let mut seen = HashSet::from([start.clone()]);
    let mut queue = VecDeque::from([start]);
    while let Some(world) = queue.pop_front() {
        if let Some(violation) = world.violated() {
            return Err(violation);
        }
        let successors = world.successors(fault);
        if successors.is_empty() && !world.done.ended {
            return Err("liveness 1: nothing can happen, and the rotation has not ended");
        }
        for next in successors {
            assert!(next.generation >= world.generation, "6: a generation went down");
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn no_order_of_events_breaks_an_invariant() {
    let states = explore(Fault::None).unwrap();
    assert!(states > 10_000, "only {states} states: the model does not move");
}

#[test]
fn every_seeded_fault_is_caught() {
    for fault in [
        Fault::PromoteOnReceived,
        Fault::ForgetUnreachable,
        Fault::CountBeforeBarrier,
        Fault::IgnoreJoiner,
        Fault::ReviveOldGeneration,
        Fault::IssueBehindBarrier,
    ] {
        assert!(explore(fault).is_err(), "{fault:?} is not caught");
    }
}
