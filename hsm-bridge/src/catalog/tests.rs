use super::*;
use keyway_envelope::{DekId, KekRef, KekVersion, KeyBlock, KeyringId, WrapMechanism, ZoneId};
use tempfile::TempDir;

struct Bed {
    dir: TempDir,
    catalog: Catalog,
    kek: KekRef,
}

fn block(kek: KekRef, id: u8, fill: u8) -> KeyBlock {
    KeyBlock::inline(kek, DekId([id; 16]), WrapMechanism::AesGcm, &[fill; 60]).unwrap()
}

fn dek(kek: KekRef, id: u8, purpose: Purpose) -> NewDek {
    NewDek {
        id: DekId([id; 16]),
        keyring: kek.keyring,
        version: kek.version,
        service: "spiffe://example.org/orders".into(),
        tenant: "acme".into(),
        purpose,
        wraps: vec![NewWrap { backend: "soft".into(), block: block(kek, id, id) }],
    }
}

fn proved(kek: KekRef, id: u8) -> NewVersion {
    let place = Place {
        backend: "soft".into(),
        kind: "software".into(),
        mechanism: WrapMechanism::AesGcm,
        extractable: true,
    };
    NewVersion {
        kek,
        places: vec![place],
        dek: dek(kek, id, Purpose::KnownAnswer),
        known_answer: vec![id; 200],
        answer: [id; 32],
    }
}

impl Bed {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let catalog = Catalog::open(&dir.path().join("c.db"), Clock::start()).await.unwrap();
        let spec =
            ZoneSpec { name: "payments".into(), keyrings: vec!["default".into()], config_digest: [1; 32] };
        let row = catalog.adopt_zone(&spec).await.unwrap();
        let kek = KekRef { zone: row.id, keyring: row.keyrings[0], version: KekVersion(1) };
        let first = catalog.begin_first_version(kek.zone, kek.keyring, KekVersion(0)).await.unwrap();
        assert_eq!(first, kek);
        catalog.record_first_version(&proved(kek, 1), "me").await.unwrap();
        Self { dir, catalog, kek }
    }

    async fn begin(&self) -> RotationRow {
        let new = NewRotation {
            id: "R1",
            zone: self.kek.zone,
            keyring: self.kek.keyring,
            above: KekVersion(0),
            actor: "me",
            reason: "test",
        };
        let row = self.catalog.begin_rotation(&new).await.unwrap();
        self.catalog.record_proof(&proved(row.new_kek(), 2)).await.unwrap();
        row
    }

    async fn steps(&self, row: &RotationRow, steps: &[Step]) {
        for step in steps {
            self.catalog.step(row, *step).await.unwrap();
        }
    }

    async fn states(&self) -> Vec<KekState> {
        let rows = self.catalog.versions(self.kek.zone).await.unwrap();
        rows.into_iter().map(|row| row.state).collect()
    }
}

#[tokio::test]
async fn numbers_are_given_once() {
    let bed = Bed::new().await;
    let spec = |name: &str, keyrings: &[&str], digest| ZoneSpec {
        name: name.into(),
        keyrings: keyrings.iter().map(ToString::to_string).collect(),
        config_digest: [digest; 32],
    };
    let generation = bed.catalog.snapshot(ZoneId(1)).await.unwrap().generation;
    let other = bed.catalog.adopt_zone(&spec("other", &["default"], 1)).await.unwrap();
    assert_eq!((other.id, other.keyrings), (ZoneId(2), vec![KeyringId(2)]));
    let again = bed.catalog.adopt_zone(&spec("payments", &["new", "default"], 1)).await.unwrap();
    assert_eq!((again.id, again.keyrings), (ZoneId(1), vec![KeyringId(3), KeyringId(1)]));
    assert_eq!(bed.catalog.snapshot(ZoneId(1)).await.unwrap().generation, generation);
    bed.catalog.adopt_zone(&spec("payments", &["default"], 2)).await.unwrap();
    assert_eq!(bed.catalog.snapshot(ZoneId(1)).await.unwrap().generation, generation + 1);
}

/// A member that was never there before says hello.
fn hello(instance: &str, lease_end_ms: u64) -> MemberRow {
    MemberRow {
        key: MemberKey { service: "spiffe://example.org/orders".into(), instance: instance.into() },
        version: "1".into(),
        key_exchange: "X25519MLKEM768".into(),
        applied_generation: 0,
        applied_digest: Vec::new(),
        applied_ms: 0,
        seen_ms: 5,
        lease_end_ms,
        lease_ms: 0,
        nack: None,
    }
}

#[tokio::test]
async fn what_was_left_of_a_lease_is_left_after_a_restart_whatever_the_clock_says() {
    const HOUR: u64 = 3_600_000;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.db");
    let mut wall = 20_000_000 * HOUR;
    let catalog = Catalog::open(&path, Clock::started_at(wall)).await.unwrap();
    let spec = ZoneSpec { name: "payments".into(), keyrings: Vec::new(), config_digest: [1; 32] };
    let zone = catalog.adopt_zone(&spec).await.unwrap().id;
    catalog.member_attached(zone, &hello("ended", wall - 1)).await.unwrap();
    catalog.member_attached(zone, &hello("sealing", wall + HOUR)).await.unwrap();
    catalog.close().await;
    // Years ahead (the clock was wrong before), and years back (it is wrong now).
    for next in [wall + 100_000 * HOUR, wall - 100_000 * HOUR, HOUR] {
        wall = next;
        let catalog = Catalog::open(&path, Clock::started_at(wall)).await.unwrap();
        let ends: Vec<_> = catalog.members(zone).await.unwrap().iter().map(|row| row.lease_end_ms).collect();
        let now = catalog.leader.clock.now_ms();
        assert!(ends[0] < now, "a lease that had ended begins anew at {now}: {ends:?}");
        // What the test itself takes may be gone from it.
        assert!((now + HOUR / 2..=now + HOUR).contains(&ends[1]), "{now}: {ends:?}");
        catalog.close().await;
    }
}

#[tokio::test]
async fn a_lease_that_a_step_has_outlived_stays_ended_after_a_restart() {
    let bed = Bed::new().await;
    let zone = bed.kek.zone;
    let now = bed.catalog.leader.clock.now_ms();
    bed.catalog.member_attached(zone, &hello("a", now)).await.unwrap();
    while bed.catalog.leader.clock.now_ms() == now {
        tokio::task::yield_now().await;
    }
    // Nobody waits for it any more.
    bed.begin().await;
    let restarted = Catalog::open(&bed.dir.path().join("c.db"), Clock::started_at(1_000_000)).await.unwrap();
    assert!(restarted.members(zone).await.unwrap()[0].lease_end_ms < restarted.leader.clock.now_ms());
}

#[tokio::test]
async fn a_deposed_leader_writes_nothing() {
    let bed = Bed::new().await;
    let newer = Catalog::open(&bed.dir.path().join("c.db"), Clock::start()).await.unwrap();
    assert_eq!(newer.epoch(), bed.catalog.epoch() + 1);
    let refused = bed.catalog.record_dek(&dek(bed.kek, 9, Purpose::Data), None).await;
    assert!(matches!(refused, Err(CatalogError::Deposed { .. })));
    assert!(newer.dek(DekId([9; 16])).await.unwrap().is_none());
    newer.record_dek(&dek(bed.kek, 9, Purpose::Data), None).await.unwrap();
}

#[tokio::test]
async fn one_open_rotation_per_keyring() {
    let bed = Bed::new().await;
    bed.begin().await;
    let new = NewRotation {
        id: "R2",
        zone: bed.kek.zone,
        keyring: bed.kek.keyring,
        above: KekVersion(0),
        actor: "me",
        reason: "again",
    };
    let refused = bed.catalog.begin_rotation(&new).await;
    assert!(matches!(refused, Err(CatalogError::RotationOpen { id }) if id == "R1"));
}

#[tokio::test]
async fn steps_are_taken_once_and_in_order() {
    let bed = Bed::new().await;
    let row = bed.begin().await;
    let order =
        [Step::Accept, Step::Promote, Step::BeginDrain, Step::CloseBarrier, Step::Retire, Step::Finish];
    for (index, step) in order.iter().enumerate() {
        for wrong in order.iter().skip(index + 1) {
            let before = bed.states().await;
            assert!(bed.catalog.step(&row, *wrong).await.is_err(), "{wrong:?} before {step:?}");
            assert_eq!(bed.states().await, before, "a refused step changes nothing");
        }
        let generation = bed.catalog.snapshot(bed.kek.zone).await.unwrap().generation;
        bed.catalog.step(&row, *step).await.unwrap();
        assert!(bed.catalog.snapshot(bed.kek.zone).await.unwrap().generation >= generation);
        assert!(bed.catalog.step(&row, *step).await.is_err(), "{step:?} twice");
    }
    assert_eq!(bed.states().await, [KekState::Retired, KekState::Primary]);
}

#[tokio::test]
async fn the_write_barrier_closes_the_old_version() {
    let bed = Bed::new().await;
    let row = bed.begin().await;
    let new = row.new_kek();
    let try_both = async |id: u8| {
        let mut outcome = Vec::new();
        for (kek, id) in [(bed.kek, id), (new, id + 1)] {
            outcome.push(bed.catalog.record_dek(&dek(kek, id, Purpose::Data), None).await.is_ok());
        }
        outcome
    };
    assert_eq!(try_both(10).await, [true, false], "generate");
    bed.steps(&row, &[Step::Accept]).await;
    assert_eq!(try_both(20).await, [true, false], "accept");
    bed.steps(&row, &[Step::Promote]).await;
    assert_eq!(try_both(30).await, [true, true], "promote: members go over one by one");
    bed.steps(&row, &[Step::BeginDrain]).await;
    assert_eq!(try_both(40).await, [true, true], "drain");
    bed.steps(&row, &[Step::CloseBarrier]).await;
    assert_eq!(try_both(50).await, [false, true], "behind the barrier");
}

#[tokio::test]
async fn nothing_is_retired_while_a_dek_needs_it() {
    let bed = Bed::new().await;
    bed.catalog.record_dek(&dek(bed.kek, 9, Purpose::Data), None).await.unwrap();
    let row = bed.begin().await;
    bed.steps(&row, &[Step::Accept, Step::Promote, Step::BeginDrain, Step::CloseBarrier]).await;
    assert_eq!(bed.catalog.count_live(row.keyring, row.from).await.unwrap(), 1);
    assert!(bed.catalog.step(&row, Step::Retire).await.is_err());
    assert_eq!(bed.states().await[0], KekState::Accepted);

    let new = NewWrap { backend: "soft".into(), block: block(row.new_kek(), 9, 77) };
    let batch = [Rewrapped { id: DekId([9; 16]), wraps: vec![new.clone()] }];
    let done = bed.catalog.rewrap(&row.id, (row.from, row.to), &batch).await.unwrap();
    assert_eq!(done, 1);
    // Compare and swap: a second time there is nothing to swap.
    assert_eq!(bed.catalog.rewrap(&row.id, (row.from, row.to), &batch).await.unwrap(), 0);
    let dek = bed.catalog.dek(DekId([9; 16])).await.unwrap().unwrap();
    assert_eq!((dek.live_version, dek.wraps.len()), (row.to, 1));
    assert_eq!(dek.wraps[0].block, new.block);
    bed.catalog.step(&row, Step::Retire).await.unwrap();

    // The bytes are gone, the digest stays: an old envelope's block is still known, another one is not.
    assert!(bed.catalog.knows_block(&block(bed.kek, 9, 9)).await.unwrap());
    assert!(!bed.catalog.knows_block(&block(bed.kek, 9, 10)).await.unwrap());
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM wraps WHERE version = 1 AND block IS NOT NULL")
        .fetch_one(&bed.catalog.read)
        .await
        .unwrap();
    assert_eq!(left, 0);
    let proof = bed.catalog.dek(DekId([1; 16])).await.unwrap().unwrap();
    assert!(!proof.live, "the known answer goes with its version");
}

#[tokio::test]
async fn a_member_counts_with_the_less_that_it_holds() {
    let bed = Bed::new().await;
    let zone = bed.kek.zone;
    let key = MemberKey { service: "spiffe://example.org/orders".into(), instance: "a".into() };
    let hello = |generation, lease_end_ms| MemberRow {
        key: key.clone(),
        version: "1".into(),
        key_exchange: "X25519MLKEM768".into(),
        applied_generation: generation,
        applied_digest: Vec::new(),
        applied_ms: 0,
        seen_ms: 5,
        lease_end_ms,
        lease_ms: 0,
        nack: None,
    };
    let row = bed.catalog.member_attached(zone, &hello(4, 100)).await.unwrap();
    assert_eq!(row.applied_generation, 0, "what a newcomer claims to hold is not known");
    bed.catalog.member_applied(zone, &key, 3, &[1], 0).await.unwrap();
    bed.catalog.member_refused(zone, &key, 4, "KNOWN_ANSWER: no").await.unwrap();
    let row = bed.catalog.members(zone).await.unwrap().remove(0);
    assert_eq!((row.applied_generation, row.nack), (3, Some((4, "KNOWN_ANSWER: no".into()))));
    let row = bed.catalog.member_attached(zone, &hello(9, 50)).await.unwrap();
    assert_eq!((row.applied_generation, row.lease_end_ms, row.nack), (3, 100, None));
    // Its disk was wiped.
    let row = bed.catalog.member_attached(zone, &hello(0, 200)).await.unwrap();
    assert_eq!((row.applied_generation, row.lease_end_ms), (0, 200));
    bed.catalog.member_applied(zone, &key, 5, &[2], 0).await.unwrap();
    bed.catalog.member_applied(zone, &key, 4, &[3], 0).await.unwrap();
    assert_eq!(bed.catalog.members(zone).await.unwrap()[0].applied_generation, 5, "never down");
}

#[tokio::test]
async fn whoever_is_told_that_a_dek_is_recorded_finds_it_on_the_disk() {
    let bed = Bed::new().await;
    // Another reader than the one that wrote.
    let path = format!("sqlite://{}", bed.dir.path().join("c.db").display());
    let others = SqlitePool::connect(&path).await.unwrap();
    let recorded = (10..210).map(async |id: u8| {
        bed.catalog.record_dek(&dek(bed.kek, id, Purpose::Data), None).await.unwrap();
        let found: i64 =
            sqlx::query_scalar("SELECT count(*) FROM deks d JOIN wraps w ON w.dek_id = d.id WHERE d.id = ?")
                .bind(&[id; 16][..])
                .fetch_one(&others)
                .await
                .unwrap();
        assert_eq!(found, 1);
    });
    futures_util::future::join_all(recorded).await;
}

#[tokio::test]
async fn one_that_is_refused_does_not_take_its_group_along() {
    let bed = Bed::new().await;
    bed.catalog.record_dek(&dek(bed.kek, 9, Purpose::Data), None).await.unwrap();
    let retired = KekRef { version: KekVersion(7), ..bed.kek };
    let (good, again, other) =
        (dek(bed.kek, 20, Purpose::Data), dek(bed.kek, 9, Purpose::Data), dek(retired, 21, Purpose::Data));
    // All are handed in before the task gets to run: one group.
    let outcomes = tokio::join!(
        bed.catalog.record_dek(&again, None),
        bed.catalog.record_dek(&good, None),
        bed.catalog.record_dek(&other, None),
    );
    assert!(matches!(outcomes.0, Err(CatalogError::Sql(_))), "{outcomes:?}");
    assert!(outcomes.1.is_ok(), "{outcomes:?}");
    assert!(matches!(outcomes.2, Err(CatalogError::NotIssuable { version: 7 })), "{outcomes:?}");
    assert!(bed.catalog.dek(good.id).await.unwrap().is_some());
    assert!(bed.catalog.dek(other.id).await.unwrap().is_none());
}

#[tokio::test]
async fn a_commit_that_fails_fails_all_of_its_group_and_none_after_it() {
    let bed = Bed::new().await;
    let one = dek(bed.kek, 20, Purpose::Data);
    let other = dek(bed.kek, 21, Purpose::Data);
    // A reference that leads nowhere is found at the commit, when each change has long succeeded.
    let poison = bed.catalog.group.commit(|tx, _| {
        Box::pin(async move {
            sqlx::query("PRAGMA defer_foreign_keys = ON").execute(&mut *tx).await?;
            sqlx::query("INSERT INTO kek_attempts VALUES (99, 1, 'nowhere')").execute(&mut *tx).await?;
            Ok(())
        })
    });
    let outcomes =
        tokio::join!(bed.catalog.record_dek(&one, None), poison, bed.catalog.record_dek(&other, None),);
    for outcome in [outcomes.0, outcomes.1, outcomes.2] {
        assert!(
            matches!(&outcome, Err(CatalogError::Group(why)) if why.contains("FOREIGN KEY")),
            "{outcome:?}"
        );
    }
    for id in [one.id, other.id] {
        assert!(
            bed.catalog.dek(id).await.unwrap().is_none(),
            "in the catalog, and its caller was told it is not"
        );
    }
    bed.catalog.record_dek(&one, None).await.unwrap();
    assert!(bed.catalog.dek(one.id).await.unwrap().is_some());
}
