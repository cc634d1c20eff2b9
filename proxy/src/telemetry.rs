//! Metrics. Handles are made when routes are built: counting on the data path is one atomic addition.

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::fmt;
use std::sync::{Arc, OnceLock};

static METADATA: Metadata<'static> =
    Metadata::new("keyway_proxy", metrics::Level::INFO, Some("keyway_proxy"));

/// Buckets of durations, in seconds: 100 µs to 60 s.
const SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// This proxy's registry. Not the process's global one: `keyway dev` runs a bridge beside it.
#[derive(Clone)]
pub(crate) struct Telemetry {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Telemetry {
    pub(crate) fn new() -> Self {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
            .expect("the list of buckets is not empty");
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        for (name, unit, text) in DESCRIPTIONS {
            let key = KeyName::from_const_str(name);
            match name {
                name if name.ends_with("_total") => recorder.describe_counter(key, unit, text.into()),
                name if name.ends_with("request_seconds") => {
                    recorder.describe_histogram(key, unit, text.into());
                }
                _ => recorder.describe_gauge(key, unit, text.into()),
            }
        }
        let recorder = Arc::new(recorder);
        // The bridge client counts through the global recorder, which is this one unless a bridge in the same process
        // was first.
        let _ = metrics::set_global_recorder(Arc::clone(&recorder));
        Self { recorder, handle }
    }

    /// The text that Prometheus scrapes.
    pub(crate) fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds recorded durations into their buckets; has to be called now and then, or they pile up.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    pub(crate) fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.recorder.register_counter(&key(name, labels), &METADATA)
    }

    pub(crate) fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    fn histogram(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        self.recorder.register_histogram(&key(name, labels), &METADATA)
    }

    pub(crate) fn route(&self, listener: &str, route: &str) -> RouteMetrics {
        RouteMetrics {
            seconds: self.histogram("keyway_request_seconds", &[("listener", listener), ("route", route)]),
            requests: std::array::from_fn(|_| OnceLock::new()),
            plaintext: ["refused", "migrated", "passed"].map(|action| {
                self.counter("keyway_plaintext_total", &[("route", route), ("action", action)])
            }),
            telemetry: self.clone(),
            listener: listener.to_owned(),
            route: route.to_owned(),
        }
    }

    pub(crate) fn open_failure(&self, reason: &str) {
        self.counter("keyway_open_failures_total", &[("reason", reason)]).increment(1);
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> =
        labels.iter().map(|(key, value)| Label::new(*key, (*value).to_owned())).collect();
    Key::from_parts(name, labels)
}

/// What happened to plaintext on a protected route.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PlaintextAction {
    Refused,
    Migrated,
    /// A message of the upstream's own (an error, a receipt): no stored data.
    Passed,
}

/// Counters of one route. Labels are bounded: routes come from the configuration, codes from HTTP.
pub(crate) struct RouteMetrics {
    seconds: Histogram,
    /// By status code, made when first used.
    requests: [OnceLock<Counter>; 500],
    plaintext: [Counter; 3],
    telemetry: Telemetry,
    listener: String,
    route: String,
}

impl RouteMetrics {
    pub(crate) fn count(&self, code: u16, seconds: f64) {
        if let Some(counter) = self.requests.get(usize::from(code.saturating_sub(100))) {
            counter.get_or_init(|| self.request_counter(code)).increment(1);
        }
        self.seconds.record(seconds);
    }

    fn request_counter(&self, code: u16) -> Counter {
        let labels =
            [("listener", self.listener.as_str()), ("route", &self.route), ("code", &code.to_string())];
        self.telemetry.counter("keyway_requests_total", &labels)
    }

    pub(crate) fn plaintext(&self, action: PlaintextAction) {
        self.plaintext[action as usize].increment(1);
    }

    pub(crate) fn open_failure(&self, reason: &str) {
        self.telemetry.open_failure(reason);
    }
}

impl fmt::Debug for RouteMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteMetrics").field("listener", &self.listener).field("route", &self.route).finish()
    }
}

const DESCRIPTIONS: [(&str, Option<Unit>, &str); 11] = [
    ("keyway_requests_total", None, "Requests, by listener, route and status code"),
    ("keyway_request_seconds", Some(Unit::Seconds), "From a request's head to its response's head"),
    ("keyway_plaintext_total", None, "Bodies without an envelope on protected routes"),
    ("keyway_open_failures_total", None, "Envelopes that did not open, by reason"),
    ("keyway_connections_active", None, "Client connections"),
    ("keyway_keyring_generation", None, "Generation of the applied keyring set"),
    ("keyway_seal_lease_seconds", Some(Unit::Seconds), "Until sealing stops if the bridge is not heard"),
    ("keyway_dek_cache_entries", None, "DEKs cached for opening"),
    ("keyway_sealed_bytes_total", Some(Unit::Bytes), "Plaintext bytes sealed, by keyring and KEK version"),
    ("keyway_streams_rekeyed_total", None, "TCP streams that changed their keys"),
    ("keyway_opened_bytes_total", Some(Unit::Bytes), "Plaintext bytes opened, by keyring and KEK version"),
];
