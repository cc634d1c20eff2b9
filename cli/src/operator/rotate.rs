//! `keyway rotate start|status`.

use super::progress::Progress;
use super::{Session, block_on, now_ms, refused};
use crate::args::RotateCommand;
use crate::error::Failure;
use crate::output::{self, Align, Table, relative};
use anyhow::anyhow;
use keyway_protocol::v1::{ListRequest, Rotation, RotationRef, StartRotationRequest};
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

/// A bridge that restarts is back within this time, or the watch ends.
const RECONNECT_FOR: Duration = Duration::from_secs(60);
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// A rotation, as `--json` prints it.
#[derive(Serialize)]
struct RotationView<'a> {
    id: &'a str,
    zone: &'a str,
    keyring: &'a str,
    from_version: u32,
    to_version: u32,
    phase: &'a str,
    detail: &'a str,
    members_total: u32,
    members_applied: u32,
    deks_total: u64,
    deks_rewrapped: u64,
    generation: u64,
    actor: &'a str,
    reason: &'a str,
    started: Option<String>,
    updated: Option<String>,
    ended: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// The bridge can't be reached or refuses; with `--watch`, the rotation ended otherwise than done.
pub fn run(command: &RotateCommand) -> Result<(), Failure> {
    match command {
        RotateCommand::Start { keyring, reason, watch, json, bridge } => block_on(async {
            let mut session = Session::open(bridge).await?;
            let (zone, keyring) = which(&mut session, keyring.as_deref()).await?;
            let request = StartRotationRequest { zone, keyring, reason: reason.clone() };
            let started =
                session.client.start_rotation(request).await.map_err(refused("starting a rotation"))?;
            let started = started.into_inner();
            if *watch {
                return self::watch(&mut session, &started.id, *json).await;
            }
            if *json {
                return output::json(&RotationView::from(&started));
            }
            output::line(&format!(
                "rotation {} of {}/{} started: v{} to v{}\nfollow it: keyway rotate status {} --watch",
                started.id,
                started.zone,
                started.keyring,
                started.from_version,
                started.to_version,
                started.id
            ))
        }),
        RotateCommand::Status { id, watch, json, bridge } => block_on(async {
            let mut session = Session::open(bridge).await?;
            match id {
                Some(id) if *watch => self::watch(&mut session, id, *json).await,
                id => status(&mut session, id.as_deref(), *json).await,
            }
        }),
    }
}

/// Which keyring is meant: the one that was named, that of the profile, or the only one there is.
async fn which(session: &mut Session, named: Option<&str>) -> Result<(String, String), Failure> {
    if let Some(named) = named.or(session.profile.keyring.as_deref()) {
        let parts = named.split_once('/').filter(|(zone, name)| !zone.is_empty() && !name.is_empty());
        let (zone, name) = parts.ok_or_else(|| Failure::Usage(format!("{named:?} is not ZONE/NAME")))?;
        return Ok((zone.into(), name.into()));
    }
    let keys =
        session.client.list_keys(ListRequest::default()).await.map_err(refused("listing the keyrings"))?;
    let mut names: Vec<_> = keys.into_inner().keys.into_iter().map(|key| (key.zone, key.keyring)).collect();
    names.sort();
    names.dedup();
    if names.len() > 1 {
        let names: Vec<_> = names.iter().map(|(zone, name)| format!("{zone}/{name}")).collect();
        return Err(Failure::Usage(format!("which keyring? name one with --keyring: {}", names.join(", "))));
    }
    names
        .pop()
        .ok_or_else(|| Failure::Failed(anyhow!("this certificate administers no keyring of that bridge")))
}

async fn status(session: &mut Session, id: Option<&str>, json: bool) -> Result<(), Failure> {
    let list = session.client.list_rotations(ListRequest::default()).await;
    let rotations = list.map_err(refused("listing the rotations"))?.into_inner().rotations;
    if let Some(id) = id {
        let found = rotations.iter().find(|rotation| rotation.id == id);
        let found = found.ok_or_else(|| Failure::Failed(anyhow!("there is no rotation {id}")))?;
        return if json { output::json(&RotationView::from(found)) } else { output::line(&details(found)) };
    }
    if json {
        return output::json(&rotations.iter().map(RotationView::from).collect::<Vec<_>>());
    }
    output::line(&table(&rotations, now_ms()))
}

/// Follows a rotation to its end, across restarts of the bridge.
async fn watch(session: &mut Session, id: &str, json: bool) -> Result<(), Failure> {
    let mut progress = Progress::new(json);
    let mut heard = Instant::now();
    loop {
        let ended = match session.client.watch_rotation(RotationRef { id: id.to_owned() }).await {
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(rotation)) => {
                            heard = Instant::now();
                            if json {
                                output::line(&serde_json::to_string(&RotationView::from(&rotation))?)?;
                            } else {
                                progress.show(&rotation)?;
                            }
                            if is_ended(&rotation) {
                                return conclude(&rotation);
                            }
                        }
                        Ok(None) => break Status::unavailable("the bridge ended the stream"),
                        Err(status) => break status,
                    }
                }
            }
            Err(status) => status,
        };
        if !may_come_back(ended.code()) || heard.elapsed() > RECONNECT_FOR {
            return Err(refused("watching the rotation (it goes on without a watcher)")(ended));
        }
        progress.note("the bridge is away; trying again")?;
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

/// What a bridge that stops or a broken connection looks like from here.
fn may_come_back(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::Aborted)
}

fn is_ended(rotation: &Rotation) -> bool {
    rotation.ended_ms > 0 || matches!(rotation.phase.as_str(), "done" | "rolled_back")
}

fn conclude(rotation: &Rotation) -> Result<(), Failure> {
    if rotation.phase == "done" {
        return Ok(());
    }
    Err(Failure::Failed(anyhow!("rotation {} ended as {}: {}", rotation.id, rotation.phase, rotation.detail)))
}

fn table(rotations: &[Rotation], now_ms: u64) -> String {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("KEYRING", Align::Left),
        ("VERSIONS", Align::Left),
        ("PHASE", Align::Left),
        ("MEMBERS", Align::Right),
        ("REWRAPPED", Align::Right),
        ("STARTED", Align::Left),
        ("DETAIL", Align::Left),
    ]);
    for rotation in rotations {
        table.row(vec![
            rotation.id.clone(),
            format!("{}/{}", rotation.zone, rotation.keyring),
            format!("v{} to v{}", rotation.from_version, rotation.to_version),
            rotation.phase.clone(),
            format!("{}/{}", rotation.members_applied, rotation.members_total),
            format!("{}/{}", rotation.deks_rewrapped, rotation.deks_total),
            relative(rotation.started_ms, now_ms),
            rotation.detail.clone(),
        ]);
    }
    table.render()
}

fn details(rotation: &Rotation) -> String {
    let lines = [
        ("rotation", rotation.id.clone()),
        ("keyring", format!("{}/{}", rotation.zone, rotation.keyring)),
        ("versions", format!("v{} to v{}", rotation.from_version, rotation.to_version)),
        ("phase", rotation.phase.clone()),
        ("detail", rotation.detail.clone()),
        ("generation", rotation.generation.to_string()),
        ("members", format!("{} of {} have applied it", rotation.members_applied, rotation.members_total)),
        ("rewrapped", format!("{} of {} data keys", rotation.deks_rewrapped, rotation.deks_total)),
        ("started", output::time(rotation.started_ms).unwrap_or_default()),
        ("by", rotation.actor.clone()),
        ("reason", rotation.reason.clone()),
        ("ended", output::time(rotation.ended_ms).unwrap_or_else(|| "not yet".into())),
    ];
    lines.map(|(name, value)| format!("{name:<11} {value}").trim_end().to_owned()).join("\n")
}

impl<'a> From<&'a Rotation> for RotationView<'a> {
    fn from(rotation: &'a Rotation) -> Self {
        Self {
            id: &rotation.id,
            zone: &rotation.zone,
            keyring: &rotation.keyring,
            from_version: rotation.from_version,
            to_version: rotation.to_version,
            phase: &rotation.phase,
            detail: &rotation.detail,
            members_total: rotation.members_total,
            members_applied: rotation.members_applied,
            deks_total: rotation.deks_total,
            deks_rewrapped: rotation.deks_rewrapped,
            generation: rotation.generation,
            actor: &rotation.actor,
            reason: &rotation.reason,
            started: output::time(rotation.started_ms),
            updated: output::time(rotation.updated_ms),
            ended: output::time(rotation.ended_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_done_is_success() {
        let rotation =
            |phase: &str, ended_ms| Rotation { phase: phase.into(), ended_ms, ..Rotation::default() };
        assert!(!is_ended(&rotation("paused", 0)));
        assert!(is_ended(&rotation("done", 5)));
        assert!(conclude(&rotation("done", 5)).is_ok());
        assert!(is_ended(&rotation("rolled_back", 5)));
        assert_eq!(conclude(&rotation("rolled_back", 5)).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn a_refusal_ends_a_watch_and_a_restart_does_not() {
        assert!(may_come_back(Code::Unavailable));
        for code in [
            Code::NotFound,
            Code::PermissionDenied,
            Code::Unauthenticated,
            Code::InvalidArgument,
            Code::Unimplemented,
        ] {
            assert!(!may_come_back(code), "{code:?}");
        }
    }
}
