use super::super::state::LeaseEnds;
use super::*;
use keyway_envelope::KeyringId;
use keyway_keycache::DekLimits;

fn planned() -> PlannedKeyring {
    PlannedKeyring {
        name: "default".into(),
        keyring_id: KeyringId(7),
        primary: KekVersion(1),
        versions: Vec::new(),
        seal_lease_ms: 1_000,
        open_lease_ms: 10_000,
        may_seal: true,
        may_open: true,
        limits: DekLimits::default(),
    }
}

fn ends(seal_until_ms: u64, open_until_ms: u64) -> State {
    let leases = vec![LeaseEnds { keyring: "default".into(), seal_until_ms, open_until_ms }];
    State { leases, saved_ms: 49_500, ..State::default() }
}

#[test]
fn what_is_left_by_the_wall_clock_is_left_on_the_new_monotonic_one() {
    let lease = lease(&planned(), &ends(50_400, 57_000), Millis(20), 50_000);
    assert_eq!((lease.seal_until(), lease.open_until()), (Millis(420), Millis(7_020)));
}

#[test]
fn an_end_in_the_past_leaves_nothing() {
    let lease = lease(&planned(), &ends(49_999, 50_001), Millis(20), 50_000);
    assert_eq!((lease.seal_until(), lease.open_until()), (Millis(20), Millis(21)));
}

#[test]
fn a_clock_that_was_set_back_gives_no_time_to_seal_and_one_whole_lease_at_most_to_open() {
    for wall_ms in [0, 49_499] {
        let lease = lease(&planned(), &ends(50_400, 60_000), Millis(20), wall_ms);
        assert_eq!((lease.seal_until(), lease.open_until()), (Millis(20), Millis(10_020)));
    }
}

#[test]
fn a_keyring_without_a_stored_end_has_no_lease() {
    let lease = lease(&planned(), &State::default(), Millis(20), 50_000);
    assert_eq!((lease.seal_until(), lease.open_until()), (Millis(20), Millis(20)));
}
