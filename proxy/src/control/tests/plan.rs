use super::*;
use keyway_envelope::{Dek, DekId, WrapMechanism};
use zeroize::Zeroizing;

const ZONE: ZoneId = ZoneId(3);

fn known_answer(keyring: u32, version: u16) -> v1::KekVersion {
    let kek = KekRef { zone: ZONE, keyring: KeyringId(keyring), version: KekVersion(version) };
    let block = KeyBlock::inline(kek, DekId([9; 16]), WrapMechanism::AesGcm, &[1; 60]).unwrap();
    let dek = Dek::new(DekId([9; 16]), Zeroizing::new([2; 32]));
    let known_answer = kat::seal_known_answer(&dek, &block, [3; 24], "payments", &[4; 32]);
    v1::KekVersion { version: version.into(), known_answer }
}

fn set() -> v1::KeyringSet {
    let keyring = v1::Keyring {
        name: "default".into(),
        keyring_id: 7,
        primary: 2,
        versions: vec![known_answer(7, 1), known_answer(7, 2)],
        seal_lease_ms: 1000,
        open_lease_ms: 2000,
        may_seal: true,
        may_open: true,
        dek_soft_messages: 10,
        dek_hard_messages: 20,
        ..v1::Keyring::default()
    };
    v1::KeyringSet {
        zone: "payments".into(),
        zone_id: ZONE.0.into(),
        generation: 5,
        epoch: 2,
        keyrings: vec![keyring],
        ..v1::KeyringSet::default()
    }
}

#[test]
fn a_good_set_is_read_whole() {
    let plan = Plan::read("payments", &set()).unwrap();
    assert_eq!((plan.zone_id, plan.generation, plan.epoch), (ZONE, 5, 2));
    let keyring = plan.keyring("default").unwrap();
    assert_eq!(keyring.accepted(), [KekVersion(1), KekVersion(2)]);
    assert_eq!((keyring.primary, keyring.keyring_id), (KekVersion(2), KeyringId(7)));
    assert_eq!((keyring.limits.soft_messages, keyring.limits.hard_messages), (10, 20));
    // Unset limits are the format's, not zero: zero would refuse everything.
    assert_eq!(keyring.limits.hard_bytes, DekLimits::default().hard_bytes);
    assert!(plan.keyring("other").is_none());
}

#[test]
fn limits_never_exceed_the_format_and_soft_never_exceeds_hard() {
    let mut set = set();
    let keyring = &mut set.keyrings[0];
    (keyring.dek_soft_messages, keyring.dek_hard_messages) = (u64::MAX, 100);
    (keyring.dek_soft_bytes, keyring.dek_hard_bytes) = (0, u64::MAX);
    let limits = Plan::read("payments", &set).unwrap().keyrings[0].limits;
    assert_eq!((limits.soft_messages, limits.hard_messages), (100, 100));
    assert_eq!(limits.hard_bytes, DekLimits::default().hard_bytes);
}

#[test]
fn a_set_with_a_fault_is_refused_whole() {
    type Fault = fn(&mut v1::KeyringSet);
    let faults: [(&str, Code, Fault); 11] = [
        ("of zone", Code::Parse, |set| set.zone = "payroll".into()),
        ("too large", Code::Parse, |set| set.zone_id = 70_000),
        ("no name", Code::Parse, |set| set.keyrings[0].name.clear()),
        ("no name", Code::Parse, |set| set.keyrings[0].name = "a/b".into()),
        ("keyring default is there twice", Code::Parse, |set| set.keyrings.push(set.keyrings[0].clone())),
        ("not among the accepted", Code::Parse, |set| set.keyrings[0].primary = 3),
        ("the primary is out of range", Code::Parse, |set| set.keyrings[0].primary = 0),
        ("a version number is out of range", Code::Parse, |set| set.keyrings[0].versions[0].version = 65_536),
        ("a version is there twice", Code::Parse, |set| set.keyrings[0].versions[0] = known_answer(7, 2)),
        ("is of zone 3 keyring 7 v2", Code::KnownAnswer, |set| {
            set.keyrings[0].versions[0].known_answer = known_answer(7, 2).known_answer;
        }),
        ("not an envelope", Code::KnownAnswer, |set| set.keyrings[0].versions[0].known_answer.clear()),
    ];
    for (what, code, fault) in faults {
        let mut set = set();
        fault(&mut set);
        let refusal = Plan::read("payments", &set).unwrap_err();
        assert_eq!(refusal.code, code, "{refusal:?}");
        assert!(refusal.reason.contains(what), "{refusal:?} does not say {what:?}");
    }
}

#[test]
fn the_floor_refuses_lower_and_takes_equal_and_higher() {
    let floor = Floor { epoch: 2, generation: 5 };
    let at = |epoch, generation| v1::KeyringSet { epoch, generation, ..set() };
    assert_eq!(floor.check(&at(2, 5)), Ok(()));
    assert_eq!(floor.check(&at(3, 6)), Ok(()));
    assert_eq!(floor.check(&at(1, 9)).unwrap_err().code, Code::Epoch);
    assert_eq!(floor.check(&at(3, 4)).unwrap_err().code, Code::Generation);
}
