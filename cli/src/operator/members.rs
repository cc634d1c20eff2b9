//! `keyway members`.

use super::{Session, block_on, now_ms, refused};
use crate::args::ListArgs;
use crate::error::Failure;
use crate::output::{self, Align, Table, relative};
use keyway_protocol::v1::{ListRequest, Member};
use serde::Serialize;

/// One member, as `--json` prints it.
#[derive(Serialize)]
struct MemberView {
    zone: String,
    service: String,
    instance: String,
    state: String,
    generation: u64,
    applied: Option<String>,
    seen: Option<String>,
    lease_ends: Option<String>,
    last_nack: Option<String>,
    version: String,
    key_exchange: String,
}

/// Lists members.
///
/// # Errors
/// The bridge can't be reached, or refuses.
pub fn run(args: &ListArgs) -> Result<(), Failure> {
    let members = block_on(async {
        let mut session = Session::open(&args.bridge).await?;
        let request = ListRequest { zone: args.zone.clone() };
        Ok(session
            .client
            .list_members(request)
            .await
            .map_err(refused("listing the members"))?
            .into_inner()
            .members)
    })?;
    if args.json {
        return output::json(&members.into_iter().map(MemberView::from).collect::<Vec<_>>());
    }
    output::line(&table(&members, now_ms()))
}

fn table(members: &[Member], now_ms: u64) -> String {
    let mut table = Table::new(&[
        ("ZONE", Align::Left),
        ("SERVICE", Align::Left),
        ("INSTANCE", Align::Left),
        ("STATE", Align::Left),
        ("GENERATION", Align::Right),
        ("APPLIED", Align::Left),
        ("SEEN", Align::Left),
        ("LEASE ENDS", Align::Left),
        ("KEY EXCHANGE", Align::Left),
        ("LAST NACK", Align::Left),
    ]);
    for member in members {
        table.row(vec![
            member.zone.clone(),
            member.service.clone(),
            member.instance.clone(),
            member.state.clone(),
            member.generation.to_string(),
            relative(member.applied_ms, now_ms),
            relative(member.seen_ms, now_ms),
            relative(member.lease_ends_ms, now_ms),
            member.key_exchange.clone(),
            member.last_nack.clone(),
        ]);
    }
    table.render()
}

impl From<Member> for MemberView {
    fn from(member: Member) -> Self {
        Self {
            zone: member.zone,
            service: member.service,
            instance: member.instance,
            state: member.state,
            generation: member.generation,
            applied: output::time(member.applied_ms),
            seen: output::time(member.seen_ms),
            lease_ends: output::time(member.lease_ends_ms),
            last_nack: Some(member.last_nack).filter(|nack| !nack.is_empty()),
            version: member.version,
            key_exchange: member.key_exchange,
        }
    }
}
