//! Metrics of one bridge. Not the process' global recorder: `keyway dev` and tests run several parts in one process.

use keyway_protocol::v1::KeyringUse;
use metrics::{counter, gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Seconds. From a fast software keystore to an HSM that is about to time out.
const BUCKETS: [f64; 12] = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Counts and times; cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let builder =
            PrometheusBuilder::new().set_buckets(&BUCKETS).expect("the list of buckets is not empty");
        let recorder = builder.build_recorder();
        Self { handle: recorder.handle(), recorder: Arc::new(recorder) }
    }

    pub(crate) fn hsm_operation(&self, backend: &str, op: &'static str, took: Duration) {
        let backend = backend.to_owned();
        with_local_recorder(&*self.recorder, || {
            histogram!("keyway_hsm_operation_seconds", "backend" => backend, "op" => op).record(took);
        });
    }

    /// A DEK was recorded: from the asking until it was durable.
    pub(crate) fn catalog_commit(&self, took: Duration) {
        with_local_recorder(&*self.recorder, || histogram!("keyway_catalog_commit_seconds").record(took));
    }

    pub(crate) fn hsm_up(&self, zone: &str, backend: &str, up: bool) {
        let (zone, backend) = (zone.to_owned(), backend.to_owned());
        with_local_recorder(&*self.recorder, || {
            gauge!("keyway_hsm_up", "zone" => zone, "backend" => backend).set(f64::from(u8::from(up)));
        });
    }

    pub(crate) fn audit_record(&self) {
        self.count("keyway_audit_records_total");
    }

    pub(crate) fn rewrapped(&self, deks: u64) {
        with_local_recorder(&*self.recorder, || counter!("keyway_rewrapped_total").increment(deks));
    }

    pub(crate) fn push_acked(&self, took: Duration) {
        with_local_recorder(&*self.recorder, || histogram!("keyway_push_ack_seconds").record(took));
    }

    pub(crate) fn rotation_ended(&self, took: Duration) {
        with_local_recorder(&*self.recorder, || histogram!("keyway_rotation_seconds").record(took));
    }

    /// What a member has done since its last report.
    pub(crate) fn fleet_use(&self, [zone, keyring]: [&str; 2], used: &KeyringUse) {
        let labels = [("zone", zone.to_owned()), ("keyring", keyring.to_owned())];
        with_local_recorder(&*self.recorder, || {
            counter!("keyway_fleet_sealed_messages_total", &labels).increment(used.sealed_messages);
            counter!("keyway_fleet_sealed_bytes_total", &labels).increment(used.sealed_bytes);
            counter!("keyway_fleet_opened_messages_total", &labels).increment(used.opened_messages);
            counter!("keyway_fleet_opened_bytes_total", &labels).increment(used.opened_bytes);
            counter!("keyway_fleet_open_failures_total", &labels).increment(used.open_failures);
        });
    }

    pub(crate) fn count(&self, name: &'static str) {
        with_local_recorder(&*self.recorder, || counter!(name).increment(1));
    }

    /// A gauge whose labels come from the configuration and the catalog, never from a client.
    pub(crate) fn gauge(&self, name: &'static str, labels: &[(&'static str, String)], value: u64) {
        with_local_recorder(&*self.recorder, || {
            #[allow(
                clippy::cast_precision_loss,
                reason = "a gauge is a float; 2^53 members or DEKs are far away"
            )]
            gauge!(name, labels).set(value as f64);
        });
    }

    /// The exposition text.
    pub(crate) fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }
}
