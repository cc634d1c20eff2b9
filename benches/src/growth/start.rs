//! From the start of the process until it is ready.

use super::Ground;
use super::figures::{cell, columns, float, text};
use crate::section::{Bound, Section, Spread, Table, Target};
use std::time::Duration;

const READY_MS_MAX: f64 = 100.0;
/// The state is on disk by then: it is written before a keyring is acknowledged, DEKs a moment later.
const SETTLE: Duration = Duration::from_secs(1);
const METHOD: &str = "Wall time from spawning the process until GET /readyz says 200, asked every millisecond once the ports \
    are known (the file with them is looked for every 2 ms). The sidecar ran before and was ended with SIGTERM, so its \
    keyring is on disk, sealed. With the bridge away it starts from that; with the bridge there, too, and \
    connects beside it. Starting on an empty state directory is the first contact with the bridge: TLS, the keyring, \
    and the DEK to seal with.";

/// With the bridge and without it.
pub(super) fn measure(ground: &Ground<'_>) -> anyhow::Result<Section> {
    let starts = ground.rounds.max(1) * ground.pick(10, 3);
    let (mut away, mut there, mut first) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ground.rounds {
        let mut bed = ground.bed()?;
        first.push(milliseconds(bed.first_start()));
        std::thread::sleep(SETTLE);
        for _ in 0..starts.div_ceil(ground.rounds) {
            there.push(milliseconds(bed.start_proxy()?));
        }
        bed.stop_bridge();
        for _ in 0..starts.div_ceil(ground.rounds) {
            away.push(milliseconds(bed.start_proxy()?));
        }
    }
    let row = |what: &str, times: &[f64]| {
        vec![text(what), text(times.len().to_string()), cell(Spread::of(times), 1)]
    };
    let figure = Spread::of(&away);
    Ok(Section {
        title: "Start".to_owned(),
        method: METHOD.to_owned(),
        tables: vec![Table {
            title: "From start to ready".to_owned(),
            columns: columns(&["keyring", "starts", "ms"]),
            rows: vec![
                row("on disk, bridge away", &away),
                row("on disk, bridge there", &there),
                row("nothing on disk, bridge there", &first),
            ],
        }],
        targets: vec![Target::judge(
            "start to ready with the keyring on disk, ms",
            Bound::AtMost(READY_MS_MAX),
            figure,
            format!("{} starts, bridge away", away.len()),
        )],
        plots: Vec::new(),
    })
}

fn milliseconds(taken: Duration) -> f64 {
    float(u64::try_from(taken.as_micros()).unwrap_or(u64::MAX)) / 1e3
}
