//! Push to a fleet, and whole rotations of it.

use super::audit;
use super::bed::{Bed, KEYRING, Keystore, ZONE};
use super::members::Fleet;
use super::{Lab, count, figure, text};
use crate::section::{Axis, Cell, Plot, Section, Series, Spread, Table};
use anyhow::{Context, ensure};
use keyway_protocol::v1::{Rotation, RotationRef, StartRotationRequest};
use std::time::Instant;
use tonic::Streaming;

/// The phases as their audit records delimit them: name, first record, first record of what follows.
const PHASES: [(&str, &str, &str); 6] = [
    ("generate", "rotation.generate", "rotation.accept"),
    ("accept", "rotation.accept", "rotation.promote"),
    ("promote", "rotation.promote", "rotation.rewrap"),
    ("rewrap", "rotation.rewrap", "rotation.drain"),
    ("drain", "rotation.drain", "rotation.retire"),
    ("retire", "rotation.retire", "rotation.done"),
];

/// One rotation of a fleet.
struct Round {
    /// First set at the first member to the last APPLIED, for the set that accepts the new version.
    push_ms: f64,
    /// Bytes of sets and signatures per member, of that push.
    set_bytes: f64,
    /// The same from the bridge's side: until it has recorded the last ACK and goes on.
    phases_ms: [f64; PHASES.len()],
    whole_ms: f64,
    bridge_cpu_ms: f64,
}

/// A fleet of one size.
struct Size {
    members: usize,
    join_s: f64,
    idle_mib: f64,
    peak_mib: f64,
    rounds: Vec<Round>,
}

pub(super) fn measure(lab: &Lab) -> anyhow::Result<Section> {
    let sizes: &[usize] = if lab.short { &[10, 100, 1000] } else { &[10, 100, 1000, 10_000] };
    let mut measured = Vec::with_capacity(sizes.len());
    for &members in sizes {
        let bed = Bed::start(&lab.dir, Keystore::Software, lab.bridge_core)?;
        let size = lab.run(size(lab, &bed, members)).with_context(|| bed.bridge.log());
        measured.push(size.with_context(|| format!("with {members} members"))?);
    }
    Ok(Section {
        title: "Bridge: push and rotation".to_owned(),
        method: format!(
            "The real bridge on {}; members are gRPC streams over mutual TLS 1.3, each on a connection of its own, from one \
             thread of the harness on {}. Each applies a set as a sidecar does: signature, known answers of all versions by \
             OpenDek, a DEK for a new primary by IssueDek, APPLIED; the disk of a sidecar is left out. *Push* is \
             from the first set at the first member to the last APPLIED; the phases come from the bridge's audit record, \
             and end when the bridge has the last acknowledgement on its disk. No soak; each member holds one DEK. \
             A thousand members on one core of the harness are slower than on a thousand machines: the figures are upper bounds.",
            lab.where_bridge(),
            lab.where_harness(),
        ),
        tables: vec![push_table(&measured)?, phase_table(&measured)?],
        plots: plots(&measured)?,
        ..Section::default()
    })
}

async fn size(lab: &Lab, bed: &Bed, members: usize) -> anyhow::Result<Size> {
    let began = Instant::now();
    let mut fleet = Fleet::join(bed, members).await?;
    let join_s = began.elapsed().as_secs_f64();
    let idle_mib = mib(bed.meter().memory().resident_bytes);
    let mut rounds = Vec::with_capacity(lab.rounds);
    for _ in 0..lab.rounds {
        rounds.push(rotate(bed, &mut fleet, members).await?);
    }
    Ok(Size { members, join_s, idle_mib, peak_mib: mib(bed.meter().memory().peak_bytes), rounds })
}

#[expect(clippy::cast_precision_loss, reason = "memory of one process fits 53 bits")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

async fn rotate(bed: &Bed, fleet: &mut Fleet, members: usize) -> anyhow::Result<Round> {
    let before = fleet.generations();
    let cpu = bed.meter().read();
    let (id, mut changes) = start(bed).await?;
    let done = async {
        while let Some(change) = changes.message().await? {
            if change.phase == "done" {
                return Ok(());
            }
        }
        anyhow::bail!("the rotation's stream ended early")
    };
    tokio::select! {
        done = done => done?,
        failed = fleet.until(|_| false) => failed?,
    }
    let cpu = bed.cpu_s_since(&cpu);
    let new: Vec<_> = fleet.generations().into_iter().filter(|known| !before.contains(known)).collect();
    let accept = *new.first().context("no set was pushed")?;
    let push = fleet.generation(accept).context("no set was pushed")?;
    ensure!(push.applied == members, "{} of {members} members have applied", push.applied);
    let times = audit::times(&bed.audit_file(), &id)?;
    let between = |from: &str, to: &str| -> f64 {
        match (times.get(from), times.get(to)) {
            (Some(from), Some(to)) => count(to.saturating_sub(*from)),
            _ => 0.0,
        }
    };
    Ok(Round {
        push_ms: (push.last_applied - push.first_received).as_secs_f64() * 1000.0,
        set_bytes: count(push.bytes) / count(members as u64),
        phases_ms: PHASES.map(|(_, from, to)| between(from, to)),
        whole_ms: between("rotation.start", "rotation.done"),
        bridge_cpu_ms: cpu * 1000.0,
    })
}

/// Starts a rotation and watches it.
pub(super) async fn start(bed: &Bed) -> anyhow::Result<(String, Streaming<Rotation>)> {
    let mut operator = bed.operator().await?;
    let request =
        StartRotationRequest { zone: ZONE.into(), keyring: KEYRING.into(), reason: "measured".into() };
    let id = operator.start_rotation(request).await?.into_inner().id;
    let changes = operator.watch_rotation(RotationRef { id: id.clone() }).await?.into_inner();
    Ok((id, changes))
}

impl Size {
    fn spread(&self, of: impl Fn(&Round) -> f64) -> anyhow::Result<Spread> {
        Spread::of(&self.rounds.iter().map(of).collect::<Vec<_>>()).context("no round was run")
    }

    fn per_member_kib(&self, first: &Self) -> f64 {
        let more = count((self.members - first.members) as u64);
        if more == 0.0 { 0.0 } else { (self.idle_mib - first.idle_mib) * 1024.0 / more }
    }
}

fn once(value: f64, digits: usize) -> Cell {
    figure(Spread { median: value, low: value, high: value }, digits)
}

fn push_table(sizes: &[Size]) -> anyhow::Result<Table> {
    let columns = [
        "members",
        "all join, s",
        "push, ms",
        "set, bytes/member",
        "bridge CPU of a rotation, ms",
        "of it per member, ms",
        "bridge RSS, MiB",
        "peak, MiB",
        "RSS per member, KiB",
    ];
    let first = sizes.first().context("no size was measured")?;
    let row = |size: &Size| -> anyhow::Result<Vec<Cell>> {
        let members = count(size.members as u64);
        Ok(vec![
            text(size.members.to_string()),
            once(size.join_s, 1),
            figure(size.spread(|round| round.push_ms)?, 0),
            figure(size.spread(|round| round.set_bytes)?, 0),
            figure(size.spread(|round| round.bridge_cpu_ms)?, 0),
            figure(size.spread(|round| round.bridge_cpu_ms / members)?, 2),
            once(size.idle_mib, 0),
            once(size.peak_mib, 0),
            if size.members == first.members { text("–") } else { once(size.per_member_kib(first), 0) },
        ])
    };
    Ok(Table {
        title: "Push".to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: sizes.iter().map(row).collect::<anyhow::Result<_>>()?,
    })
}

fn phase_table(sizes: &[Size]) -> anyhow::Result<Table> {
    let mut columns = vec!["members".to_owned()];
    columns.extend(PHASES.iter().map(|(name, ..)| format!("{name}, ms")));
    columns.push("whole, ms".to_owned());
    let row = |size: &Size| -> anyhow::Result<Vec<Cell>> {
        let mut cells = vec![text(size.members.to_string())];
        for phase in 0..PHASES.len() {
            cells.push(figure(size.spread(|round| round.phases_ms[phase])?, 0));
        }
        cells.push(figure(size.spread(|round| round.whole_ms)?, 0));
        Ok(cells)
    };
    Ok(Table {
        title: "A whole rotation, by phase".to_owned(),
        columns,
        rows: sizes.iter().map(row).collect::<anyhow::Result<_>>()?,
    })
}

fn plots(sizes: &[Size]) -> anyhow::Result<Vec<Plot>> {
    let x = Axis { label: "members".to_owned(), is_log: true };
    let curve = |name: &str, of: &dyn Fn(&Size) -> anyhow::Result<Spread>| -> anyhow::Result<Series> {
        let points = sizes.iter().map(|size| Ok((count(size.members as u64), of(size)?)));
        Ok(Series { name: name.to_owned(), points: points.collect::<anyhow::Result<_>>()? })
    };
    Ok(vec![
        Plot {
            name: "bridge-push".to_owned(),
            title: "Push of a keyring set and a whole rotation".to_owned(),
            x: x.clone(),
            y: Axis { label: "ms".to_owned(), is_log: true },
            series: vec![
                curve("push to the last APPLIED", &|size| size.spread(|round| round.push_ms))?,
                curve("whole rotation", &|size| size.spread(|round| round.whole_ms))?,
            ],
        },
        Plot {
            name: "bridge-memory".to_owned(),
            title: "Memory of the bridge".to_owned(),
            x,
            y: Axis { label: "RSS, MiB".to_owned(), is_log: true },
            series: vec![curve("all members connected", &|size| {
                Ok(Spread { median: size.idle_mib, low: size.idle_mib, high: size.idle_mib })
            })?],
        },
    ])
}
