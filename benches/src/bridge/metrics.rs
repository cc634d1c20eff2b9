//! What the bridge says about itself: its Prometheus text, read over a plain socket.

use anyhow::Context;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Sums and counts, by the whole name with labels.
#[derive(Debug, Default)]
pub(super) struct Metrics(Vec<(String, f64)>);

impl Metrics {
    pub(super) fn read(admin: SocketAddr) -> anyhow::Result<Self> {
        let mut socket = TcpStream::connect(admin).context("the bridge's admin port")?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(socket, "GET /metrics HTTP/1.1\r\nHost: bridge\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let numbers = answer.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Ok(Self(numbers.collect()))
    }

    /// The mean of what a histogram has taken in between `before` and now, in microseconds, and how often.
    /// `label` narrows it: `op="wrap"`; empty takes all.
    pub(super) fn mean_us(&self, before: &Self, histogram: &str, label: &str) -> Option<(f64, f64)> {
        let sum = |metrics: &Self, kind: &str| -> f64 {
            let start = format!("{histogram}_{kind}");
            let ours = metrics.0.iter().filter(|(name, _)| {
                name.strip_prefix(&start).is_some_and(|labels| labels.is_empty() || labels.starts_with('{'))
                    && name.contains(label)
            });
            ours.map(|(_, value)| value).sum()
        };
        let count = sum(self, "count") - sum(before, "count");
        (count > 0.0).then(|| ((sum(self, "sum") - sum(before, "sum")) * 1e6 / count, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(numbers: &[(&str, f64)]) -> Metrics {
        Metrics(numbers.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect())
    }

    #[test]
    fn a_mean_is_of_what_came_in_between_under_this_label() {
        let before =
            metrics(&[("op_seconds_sum{op=\"wrap\"}", 1.0), ("op_seconds_count{op=\"wrap\"}", 10.0)]);
        let after = metrics(&[
            ("op_seconds_sum{op=\"wrap\"}", 3.0),
            ("op_seconds_count{op=\"wrap\"}", 14.0),
            ("op_seconds_sum{op=\"unwrap\"}", 100.0),
            ("op_seconds_count{op=\"unwrap\"}", 1.0),
            ("op_seconds_summary", 7.0),
        ]);
        assert_eq!(after.mean_us(&before, "op_seconds", "op=\"wrap\""), Some((500_000.0, 4.0)));
        assert_eq!(after.mean_us(&after, "op_seconds", "op=\"wrap\""), None, "nothing came");
    }
}
