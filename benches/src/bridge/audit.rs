//! When each step of a rotation began: the bridge's own audit record says so, durable before the step.

use anyhow::Context;
use keyway_bridge::audit::Record;
use std::collections::BTreeMap;
use std::path::Path;

/// The first record of each action of a rotation, in milliseconds since the Unix epoch.
pub(super) fn times(file: &Path, rotation: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let text = std::fs::read_to_string(file).context("reading the audit record")?;
    let mut times = BTreeMap::new();
    for line in text.lines() {
        let record: Record = serde_json::from_str(line).context("an audit record")?;
        if record.details["rotation"] == rotation {
            times.entry(record.action).or_insert(record.time_ms);
        }
    }
    Ok(times)
}
