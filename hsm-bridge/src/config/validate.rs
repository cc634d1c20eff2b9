//! What a parser can't see: contradictions, names, and files that are not there.

use super::{Config, KeyringConfig, LimitConfig, Percent, RotationConfig, Wave, ZoneConfig};
use crate::backend::{BackendConfig, BackendKind};
use core::time::Duration;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Zones have 16-bit numbers.
const ZONES_MAX: usize = 1000;
/// Shorter than this, a heartbeat is load and nothing else.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);

/// Everything that is wrong, in reading order.
pub(super) fn problems(config: &Config) -> Vec<String> {
    let mut out = Problems(Vec::new());
    top_level(config, &mut out);
    if config.zones.is_empty() || config.zones.len() > ZONES_MAX {
        out.add("zones", format!("has {} zones; 1 to {ZONES_MAX} are possible", config.zones.len()));
    }
    out.unique("zones", "name", config.zones.iter().map(|zone| zone.name.as_str()));
    let mut places = BTreeSet::new();
    for (index, zone) in config.zones.iter().enumerate() {
        let at = format!("zones[{index}]");
        check_zone(zone, &at, config.heartbeat, &mut out);
        for (number, backend) in zone.backends.iter().enumerate() {
            let place = place_of(backend);
            if !places.insert(place.clone()) {
                out.add(
                    &format!("{at}.backends[{number}]"),
                    format!("{place} is named twice; each backend needs a store or token of its own"),
                );
            }
        }
    }
    out.0
}

struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, at: &str, what: impl AsRef<str>) {
        self.0.push(format!("{at}: {}", what.as_ref()));
    }

    fn unique<'a>(&mut self, at: &str, field: &str, values: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeSet::new();
        for value in values {
            if !seen.insert(value) {
                self.add(at, format!("{field} {value:?} appears twice"));
            }
        }
    }

    fn name(&mut self, at: &str, name: &str) {
        let fits = (1..=63).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !name.starts_with('-');
        if !fits {
            self.add(at, format!("{name:?} must be 1 to 63 of a-z, 0-9 and -, not beginning with -"));
        }
    }

    fn spiffe(&mut self, at: &str, id: &str) {
        let fits = id.strip_prefix("spiffe://").is_some_and(|rest| {
            let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
            !domain.is_empty() && !path.is_empty() && !path.ends_with('/') && id.len() <= 2048
        });
        if !fits {
            self.add(at, format!("{id:?} is no SPIFFE id; write spiffe://trust-domain/service"));
        }
    }

    fn file(&mut self, at: &str, path: &Path) {
        if let Err(error) = std::fs::File::open(path) {
            self.add(at, format!("cannot read {}: {error}", path.display()));
        }
    }

    fn directory_of(&mut self, at: &str, path: &Path) {
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        if !directory.is_dir() {
            self.add(at, format!("the directory {} does not exist; make it first", directory.display()));
        }
    }
}

fn top_level(config: &Config, out: &mut Problems) {
    out.file("tls.cert", &config.tls.cert);
    out.file("tls.key", &config.tls.key);
    out.file("tls.client_ca", &config.tls.client_ca);
    match config.store_path() {
        Some(path) => out.directory_of("store", &path),
        None if config.store.starts_with("postgres") => {
            out.add(
                "store",
                "PostgreSQL is not available in this version; write sqlite:///path/to/bridge.db",
            );
        }
        None => {
            out.add("store", format!("{:?} is no store; write sqlite:///path/to/bridge.db", config.store));
        }
    }
    out.directory_of("audit.file", &config.audit.file);
    if config.listen == config.admin && config.listen.port() != 0 {
        out.add("admin", format!("{} is already taken by `listen`", config.admin));
    }
    if config.heartbeat < HEARTBEAT_MIN {
        out.add("heartbeat", format!("must be {HEARTBEAT_MIN:?} or more"));
    }
}

fn check_zone(zone: &ZoneConfig, at: &str, heartbeat: Duration, out: &mut Problems) {
    out.name(&format!("{at}.name"), &zone.name);
    if zone.backends.is_empty() {
        out.add(&format!("{at}.backends"), "needs at least one backend");
    } else if !(1..=zone.backends.len()).contains(&zone.wraps_required) {
        let have = zone.backends.len();
        out.add(
            &format!("{at}.wraps_required"),
            format!("is {}, but the zone has {have} backend(s); write 1 to {have}", zone.wraps_required),
        );
    }
    out.unique(&format!("{at}.backends"), "name", zone.backends.iter().map(|backend| backend.name.as_str()));
    for (index, backend) in zone.backends.iter().enumerate() {
        out.name(&format!("{at}.backends[{index}].name"), &backend.name);
    }
    for (index, admin) in zone.admins.iter().enumerate() {
        out.spiffe(&format!("{at}.admins[{index}]"), admin);
    }
    if zone.keyrings.is_empty() {
        out.add(&format!("{at}.keyrings"), "needs at least one keyring");
    }
    out.unique(&format!("{at}.keyrings"), "name", zone.keyrings.iter().map(|keyring| keyring.name.as_str()));
    check_rotation(&zone.rotation, &format!("{at}.rotation"), out);
    for (index, keyring) in zone.keyrings.iter().enumerate() {
        check_keyring(keyring, &format!("{at}.keyrings[{index}]"), heartbeat, out);
    }
}

fn check_rotation(rotation: &RotationConfig, at: &str, out: &mut Problems) {
    if rotation.rewrap_per_second == Some(0) {
        out.add(&format!("{at}.rewrap_per_second"), "must be 1 or more; leave it out for no limit");
    }
    // Unlike a wave or a gate, an approval decides who may act: going on without it would be less safe than asked.
    if rotation.approvals > 0 {
        let approvals = rotation.approvals;
        out.add(
            &format!("{at}.approvals"),
            format!(
                "is {approvals}, but this version cannot ask for approvals, and would rotate without; write 0"
            ),
        );
    }
    let grows = rotation.waves.windows(2).all(|pair| match (pair[0], pair[1]) {
        (Wave::Members(one), Wave::Members(next)) => one < next,
        (Wave::Share(one), Wave::Share(next)) => one < next,
        // Which of them is more depends on how many members there are.
        _ => true,
    });
    if !grows {
        out.add(&format!("{at}.waves"), "each wave has to be larger than the one before");
    }
    if rotation.waves.last().is_some_and(|last| *last != Wave::Share(Percent::ALL)) {
        out.add(&format!("{at}.waves"), "the last wave has to be 100%, or members would be left behind");
    }
    if let Some(gate) = rotation.gate {
        if gate.error_rate.is_some_and(|rate| rate > Percent::ALL) {
            out.add(&format!("{at}.gate.error_rate"), "must not be above 100%");
        }
        if gate.min_requests == Some(0) {
            out.add(&format!("{at}.gate.min_requests"), "must be 1 or more: no traffic is no proof");
        }
    }
}

/// What is asked for and not done, where that is safe: it changes how far a fault spreads, not who may read what.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut out = Problems(Vec::new());
    if config.audit.checkpoint_every.is_some() {
        out.add(
            "audit.checkpoint_every",
            "is not in force in this version: the audit file is appended to, without signed checkpoints",
        );
    }
    for (index, zone) in config.zones.iter().enumerate() {
        let at = format!("zones[{index}].rotation");
        if zone.rotation.waves.len() > 1 {
            out.add(
                &format!("{at}.waves"),
                "are not in force: this version promotes in one wave, after every member has proved the new version",
            );
        }
        if zone.rotation.gate.is_some() {
            out.add(
                &format!("{at}.gate"),
                "is not evaluated in this version: no measurement holds a rotation up or rolls it back",
            );
        }
    }
    out.0
}

fn check_keyring(keyring: &KeyringConfig, at: &str, heartbeat: Duration, out: &mut Problems) {
    out.name(&format!("{at}.name"), &keyring.name);
    // A lease that one late heartbeat can end would stop a healthy member.
    if keyring.leases.seal < heartbeat * 3 {
        out.add(
            &format!("{at}.leases.seal"),
            format!("must be three heartbeats or more ({heartbeat:?} each)"),
        );
    }
    if keyring.leases.open < keyring.leases.seal {
        out.add(&format!("{at}.leases.open"), "must not be shorter than leases.seal");
    }
    check_limits(&keyring.limits, &format!("{at}.limits"), out);
    if keyring.services.is_empty() {
        out.add(&format!("{at}.services"), "names no service; nobody could use this keyring");
    }
    out.unique(&format!("{at}.services"), "id", keyring.services.iter().map(|service| service.id.as_str()));
    for (index, service) in keyring.services.iter().enumerate() {
        out.spiffe(&format!("{at}.services[{index}].id"), &service.id);
        if service.ops.is_empty() {
            out.add(&format!("{at}.services[{index}].ops"), "is empty; write [seal, open], [seal] or [open]");
        }
    }
}

fn check_limits(limits: &LimitConfig, at: &str, out: &mut Problems) {
    let pairs = [
        ("messages", limits.soft_messages, limits.hard_messages, LimitConfig::MESSAGES_MAX),
        ("bytes", limits.soft_bytes.0, limits.hard_bytes.0, LimitConfig::BYTES_MAX),
    ];
    for (unit, soft, hard, max) in pairs {
        if soft == 0 || soft > hard {
            out.add(at, format!("soft_{unit} must be 1 or more, and not above hard_{unit}"));
        }
        if hard > max {
            out.add(at, format!("hard_{unit} must not be above {max}, the safe limit of the cipher"));
        }
    }
}

/// What a backend stands on, for finding one that is named twice.
fn place_of(backend: &BackendConfig) -> String {
    let real = |path: &Path| -> PathBuf { std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()) };
    match &backend.kind {
        BackendKind::Software(software) => format!("keystore {}", real(&software.path).display()),
        BackendKind::Pkcs11(pkcs11) => {
            format!("token {:?} of {}", pkcs11.token, real(&pkcs11.module).display())
        }
    }
}
