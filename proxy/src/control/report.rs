//! What the member did since its last report.

use keyway_envelope::KekVersion;
use keyway_keycache::{KeyringSlot, UseTotals};
use keyway_protocol::v1::{KeyringUse, Report};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Totals of the data path since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests answered.
    pub requests: u64,
    /// Of these, with an error of our own making (5xx, resets).
    pub errors: u64,
}

/// Turns totals into what was added since the last time. Lives as long as the process, across connections.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    uses: BTreeMap<(KeyringSlot, KekVersion), UseTotals>,
    traffic: Traffic,
}

impl Reporter {
    /// The next report of a zone, which has the keyrings `slots`.
    pub(super) fn next(
        &mut self,
        slots: &[(KeyringSlot, Arc<str>)],
        totals: &[(KeyringSlot, KekVersion, UseTotals)],
        traffic: Traffic,
    ) -> Report {
        let mut current = BTreeMap::new();
        let mut uses = Vec::new();
        for (slot, version, total) in totals {
            let Some((_, name)) = slots.iter().find(|(ours, _)| ours == slot) else { continue };
            let before = self.uses.get(&(*slot, *version)).copied().unwrap_or_default();
            let added = added(before, *total);
            current.insert((*slot, *version), *total);
            if added != UseTotals::default() {
                uses.push(message(name, *version, added));
            }
        }
        uses.sort_by(|one, two| (&one.keyring, one.kek_version).cmp(&(&two.keyring, two.kek_version)));
        let report = Report {
            uses,
            requests: traffic.requests.saturating_sub(self.traffic.requests),
            errors: traffic.errors.saturating_sub(self.traffic.errors),
        };
        self.uses = current;
        self.traffic = traffic;
        report
    }
}

fn message(keyring: &str, version: KekVersion, added: UseTotals) -> KeyringUse {
    KeyringUse {
        keyring: keyring.to_owned(),
        kek_version: version.0.into(),
        sealed_messages: added.sealed_messages,
        sealed_bytes: added.sealed_bytes,
        opened_messages: added.opened_messages,
        opened_bytes: added.opened_bytes,
        open_failures: added.open_failures,
    }
}

fn added(before: UseTotals, now: UseTotals) -> UseTotals {
    // Counters begin anew when a version left the accept set and came back (a rollback): what is lower is all new.
    let began_anew =
        now.sealed_messages < before.sealed_messages || now.opened_messages < before.opened_messages;
    let before = if began_anew { UseTotals::default() } else { before };
    UseTotals {
        sealed_messages: now.sealed_messages - before.sealed_messages,
        sealed_bytes: now.sealed_bytes.saturating_sub(before.sealed_bytes),
        opened_messages: now.opened_messages - before.opened_messages,
        opened_bytes: now.opened_bytes.saturating_sub(before.opened_bytes),
        open_failures: now.open_failures.saturating_sub(before.open_failures),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(messages: u64, failures: u64) -> UseTotals {
        UseTotals {
            sealed_messages: messages,
            sealed_bytes: messages * 10,
            opened_messages: messages * 2,
            opened_bytes: messages * 20,
            open_failures: failures,
        }
    }

    #[test]
    fn each_report_has_what_was_added_since_the_last() {
        let (ours, foreign) = (KeyringSlot(1), KeyringSlot(2));
        let slots = [(ours, Arc::from("default"))];
        let mut reporter = Reporter::default();
        let v1 = KekVersion(1);

        let first = reporter.next(
            &slots,
            &[(ours, v1, totals(3, 1)), (foreign, v1, totals(9, 9))],
            Traffic { requests: 5, errors: 1 },
        );
        assert_eq!(
            (first.requests, first.errors, first.uses.len()),
            (5, 1, 1),
            "another zone's use is not ours"
        );
        assert_eq!(first.uses[0], message("default", v1, totals(3, 1)));

        let second = reporter.next(&slots, &[(ours, v1, totals(7, 1))], Traffic { requests: 9, errors: 1 });
        assert_eq!((second.requests, second.errors), (4, 0));
        assert_eq!(second.uses, [message("default", v1, totals(4, 0))]);

        let idle = reporter.next(&slots, &[(ours, v1, totals(7, 1))], Traffic { requests: 9, errors: 1 });
        assert_eq!(idle, Report::default());
    }

    #[test]
    fn counters_that_began_anew_count_whole() {
        let slots = [(KeyringSlot(0), Arc::from("default"))];
        let mut reporter = Reporter::default();
        let key = (KeyringSlot(0), KekVersion(1));
        reporter.next(&slots, &[(key.0, key.1, totals(100, 0))], Traffic::default());
        // Gone for one report, and back; and back at once.
        reporter.next(&slots, &[], Traffic::default());
        let back = reporter.next(&slots, &[(key.0, key.1, totals(2, 0))], Traffic::default());
        assert_eq!(back.uses, [message("default", key.1, totals(2, 0))]);
        let again = reporter.next(&slots, &[(key.0, key.1, totals(1, 0))], Traffic::default());
        assert_eq!(again.uses, [message("default", key.1, totals(1, 0))]);
    }
}
