//! What others have published about themselves. Quoted, not measured here, and on other machines.

use crate::section::{Cell, Section, Table};

const SOURCE: &str = "Kroxylicious project, performance.markdown of kroxylicious.github.io, 2026";

/// What was published, as it was published.
const QUOTES: [[&str; 4]; 4] = [
    [
        "Kroxylicious 0.20.0, passthrough",
        "publish latency p99, 10 topics, 1 KB messages",
        "14.09 ms without, 15.17 ms with the proxy (+8 %)",
        SOURCE,
    ],
    [
        "Kroxylicious 0.20.0, AES-256-GCM",
        "publish latency p99 at 34,000 msg/s, 1 topic, 1 KB messages",
        "48.65 ms without, 64.01 ms with encryption (+32 %)",
        SOURCE,
    ],
    [
        "Kroxylicious 0.20.0, AES-256-GCM",
        "throughput ceiling, 1 topic, 1 KB messages, 1 partition",
        "~50,000–52,000 msg/s without, ~37,200 msg/s with encryption",
        SOURCE,
    ],
    [
        "Kroxylicious 0.20.0, AES-256-GCM",
        "CPU",
        "20 millicores for each MB/s produced, as a planning formula",
        SOURCE,
    ],
];

/// The section of quotes.
pub(super) fn section() -> Section {
    let text = |text: &str| Cell::Text(text.to_owned());
    Section {
        title: "Published by others".to_owned(),
        method: "Quoted. Not measured here: other protocol (Kafka), other machine (AMD EPYC-Rome, 2 GHz, one proxy \
                 with one CPU), other load (OpenMessaging Benchmark). Not comparable with the figures above. The same \
                 authors have published revised figures since; see the source."
            .to_owned(),
        tables: vec![Table {
            title: "As published".to_owned(),
            columns: ["what", "measure", "figure", "source"].map(str::to_owned).to_vec(),
            rows: QUOTES.iter().map(|row| row.iter().map(|cell| text(cell)).collect()).collect(),
        }],
        ..Section::default()
    }
}
