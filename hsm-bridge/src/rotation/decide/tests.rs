//! State × event tables.

use super::*;

fn member(name: &str, reach: Reach, applied: u64) -> Member {
    Member { name: name.into(), reach, applied, nack: None }
}

/// A rotation with accept at generation 5, promote at 6, retire at 7, done so far up to `phase`.
fn at(phase: Phase) -> Observed {
    let mut done = Done { proved: phase >= Phase::Accept, ..Done::default() };
    done.accept = (phase >= Phase::Accept).then_some(5);
    done.promote = (phase >= Phase::Promote).then_some(6);
    done.draining = phase >= Phase::Drain;
    done.barrier = phase >= Phase::Retire;
    done.ended = phase == Phase::Done;
    let applied = if phase >= Phase::Rewrap { 6 } else { 4 };
    Observed {
        done,
        wraps_required: 1,
        backends_up: 1,
        places: usize::from(done.proved),
        places_up: usize::from(done.proved),
        soaked: phase >= Phase::Rewrap,
        live_wraps: if phase >= Phase::Retire { 0 } else { 10 },
        members: vec![
            member("a", Reach::Connected, applied),
            member("b", Reach::Connected, applied),
            member("c", Reach::Connected, applied),
        ],
        failure: None,
    }
}

fn wait(generation: u64, members: &[&str]) -> Next {
    Next::Wait { generation, members: members.iter().map(ToString::to_string).collect() }
}

#[test]
fn every_state_has_its_phase() {
    for wanted in Phase::ALL {
        assert_eq!(phase(&at(wanted)), wanted);
    }
}

#[test]
fn each_phase_does_its_one_thing() {
    let table = [
        (Phase::Generate, Next::Do(Action::Generate)),
        (Phase::Accept, wait(5, &["a", "b", "c"])),
        (Phase::Promote, wait(6, &["a", "b", "c"])),
        (Phase::Rewrap, Next::Do(Action::Rewrap)),
        (Phase::Drain, Next::Do(Action::CloseBarrier)),
        (Phase::Retire, Next::Do(Action::Retire)),
        (Phase::Done, Next::Nothing),
    ];
    for (phase, next) in table {
        assert_eq!(decide(&at(phase)), next, "{phase:?}");
    }
}

/// One event applied to the state of each phase, and what comes out.
fn after(phase: Phase, event: impl Fn(&mut Observed)) -> Next {
    let mut seen = at(phase);
    event(&mut seen);
    decide(&seen)
}

#[test]
fn everybody_has_applied() {
    let event = |seen: &mut Observed| {
        for member in &mut seen.members {
            member.applied = 7;
        }
        seen.soaked = true;
    };
    assert_eq!(after(Phase::Accept, event), Next::Do(Action::Promote));
    assert_eq!(after(Phase::Promote, event), Next::Do(Action::Rewrap));
    assert_eq!(after(Phase::Drain, event), Next::Do(Action::CloseBarrier));
    let retired = |seen: &mut Observed| {
        event(seen);
        seen.done.retire = Some(7);
    };
    assert_eq!(after(Phase::Retire, retired), Next::Do(Action::Finish));
}

#[test]
fn a_member_that_is_unreachable_is_waited_for_until_its_lease_ends() {
    let lost = |seen: &mut Observed| {
        for member in &mut seen.members {
            member.applied = 6;
        }
        seen.members[1].applied = 4;
        seen.members[1].reach = Reach::Unreachable;
        seen.soaked = true;
    };
    assert_eq!(after(Phase::Accept, lost), wait(5, &["b"]));
    // It neither hinders those who are there from going on …
    assert_eq!(after(Phase::Promote, lost), Next::Do(Action::Rewrap));
    // … nor is the old version taken from under it.
    assert_eq!(after(Phase::Drain, lost), wait(6, &["b"]));
    let gone = |seen: &mut Observed| {
        lost(seen);
        seen.members[1].reach = Reach::Gone;
    };
    assert_eq!(after(Phase::Accept, gone), Next::Do(Action::Promote));
    assert_eq!(after(Phase::Drain, gone), Next::Do(Action::CloseBarrier));
}

#[test]
fn a_joiner_counts_from_its_first_moment() {
    let joins = |seen: &mut Observed| {
        for member in &mut seen.members {
            member.applied = 6;
        }
        seen.members.push(member("d", Reach::Connected, 0));
        seen.soaked = true;
    };
    assert_eq!(after(Phase::Accept, joins), wait(5, &["d"]));
    assert_eq!(after(Phase::Promote, joins), wait(6, &["d"]));
    assert_eq!(after(Phase::Drain, joins), wait(6, &["d"]));
}

#[test]
fn a_refusal_pauses_with_its_reason() {
    let refuses = |seen: &mut Observed| {
        seen.members[2].nack = Some((6, "KNOWN_ANSWER".into()));
        seen.members[2].applied = 4;
    };
    for phase in [Phase::Accept, Phase::Promote, Phase::Drain] {
        let Next::Pause(reason) = after(phase, refuses) else { panic!("{phase:?} goes on") };
        assert!(reason.contains('c') && reason.contains("KNOWN_ANSWER"), "{reason}");
    }
    // A refusal of an older generation says nothing about this one.
    let old = |seen: &mut Observed| seen.members[2].nack = Some((4, "PARSE".into()));
    assert_eq!(after(Phase::Accept, old), wait(5, &["a", "b", "c"]));
}

#[test]
fn no_hsm_no_new_version_and_no_rewrap() {
    let down = |seen: &mut Observed| {
        seen.backends_up = 0;
        seen.places_up = 0;
    };
    for phase in [Phase::Generate, Phase::Rewrap] {
        assert!(matches!(after(phase, down), Next::Pause(_)), "{phase:?}");
    }
    // What needs no HSM goes on.
    assert_eq!(after(Phase::Drain, down), Next::Do(Action::CloseBarrier));
    assert_eq!(after(Phase::Retire, down), Next::Do(Action::Retire));
    let two = |seen: &mut Observed| seen.wraps_required = 2;
    assert!(matches!(after(Phase::Generate, two), Next::Pause(_)));
    assert!(matches!(after(Phase::Rewrap, two), Next::Pause(_)));
}

#[test]
fn references_that_came_in_before_the_barrier_are_rewrapped_behind_it() {
    let straggler = |seen: &mut Observed| {
        seen.done.barrier = true;
        seen.live_wraps = 1;
    };
    assert_eq!(after(Phase::Drain, straggler), Next::Do(Action::Rewrap));
    let clean = |seen: &mut Observed| seen.live_wraps = 0;
    // Zero references without the barrier retire nothing.
    assert_eq!(after(Phase::Drain, clean), Next::Do(Action::CloseBarrier));
    assert_eq!(after(Phase::Rewrap, clean), Next::Do(Action::BeginDrain));
}

#[test]
fn what_failed_is_shown_and_what_waits_is_not_hidden() {
    let failed = |seen: &mut Observed| seen.failure = Some("hsm-a: timeout".into());
    assert_eq!(after(Phase::Rewrap, failed), Next::Pause("hsm-a: timeout".into()));
    assert_eq!(after(Phase::Accept, failed), wait(5, &["a", "b", "c"]));
}

#[test]
fn the_soak_is_kept() {
    let applied = |seen: &mut Observed| {
        for member in &mut seen.members {
            member.applied = 6;
        }
    };
    assert_eq!(after(Phase::Promote, applied), Next::Soak);
}
