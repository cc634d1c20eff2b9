//! A keyring set, checked and in our own types. Pure.

use keyway_envelope::{KekRef, KekVersion, KeyBlock, KeyringId, ZoneId};
use keyway_keycache::DekLimits;
use keyway_protocol::{kat, v1};
use std::sync::Arc;

/// Why a keyring set is not applied; becomes a NACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) reason: String,
}

/// The codes of a NACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    Signature,
    Epoch,
    Generation,
    Parse,
    KnownAnswer,
    Persist,
    Dek,
}

impl Code {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Signature => "SIGNATURE",
            Self::Epoch => "EPOCH",
            Self::Generation => "GENERATION",
            Self::Parse => "PARSE",
            Self::KnownAnswer => "KNOWN_ANSWER",
            Self::Persist => "PERSIST",
            Self::Dek => "DEK",
        }
    }

    pub(super) fn because(self, reason: impl Into<String>) -> Refusal {
        Refusal { code: self, reason: reason.into() }
    }
}

/// The lowest epoch and generation that are still accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Floor {
    /// The highest epoch in any set whose signature was good.
    pub(super) epoch: u64,
    /// The generation that is served from.
    pub(super) generation: u64,
}

impl Floor {
    /// Invariants 5 and 6: a deposed leader is not obeyed, and generations never go down. The same generation again is
    /// what a bridge sends after a reconnect.
    pub(super) fn check(self, set: &v1::KeyringSet) -> Result<(), Refusal> {
        if set.epoch < self.epoch {
            return Err(Code::Epoch.because(format!("epoch {} is below {}", set.epoch, self.epoch)));
        }
        if set.generation < self.generation {
            let reason = format!("generation {} is below {}", set.generation, self.generation);
            return Err(Code::Generation.because(reason));
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) zone_id: ZoneId,
    pub(super) generation: u64,
    pub(super) epoch: u64,
    pub(super) keyrings: Vec<PlannedKeyring>,
}

#[derive(Clone, Debug)]
pub(super) struct PlannedKeyring {
    pub(super) name: Arc<str>,
    pub(super) keyring_id: KeyringId,
    pub(super) primary: KekVersion,
    pub(super) versions: Vec<PlannedVersion>,
    pub(super) seal_lease_ms: u64,
    pub(super) open_lease_ms: u64,
    pub(super) may_seal: bool,
    pub(super) may_open: bool,
    pub(super) limits: DekLimits,
}

#[derive(Clone, Debug)]
pub(super) struct PlannedVersion {
    pub(super) version: KekVersion,
    pub(super) known_answer: Vec<u8>,
    /// The block in the known answer: what to ask the bridge for.
    pub(super) key_block: KeyBlock,
}

impl Plan {
    /// Reads a set whose signature is good. Whole or not at all.
    pub(super) fn read(zone: &str, set: &v1::KeyringSet) -> Result<Self, Refusal> {
        if set.zone != zone {
            return Err(Code::Parse.because(format!("the set is of zone {:?}", set.zone)));
        }
        let zone_id = u16::try_from(set.zone_id)
            .map(ZoneId)
            .map_err(|_| Code::Parse.because(format!("zone number {} is too large", set.zone_id)))?;
        let mut keyrings: Vec<PlannedKeyring> = Vec::with_capacity(set.keyrings.len());
        for keyring in &set.keyrings {
            let planned = PlannedKeyring::read(zone_id, keyring)?;
            let again =
                |other: &PlannedKeyring| other.name == planned.name || other.keyring_id == planned.keyring_id;
            if keyrings.iter().any(again) {
                return Err(Code::Parse.because(format!("keyring {} is there twice", keyring.name)));
            }
            keyrings.push(planned);
        }
        Ok(Self { zone_id, generation: set.generation, epoch: set.epoch, keyrings })
    }

    pub(super) fn keyring(&self, name: &str) -> Option<&PlannedKeyring> {
        self.keyrings.iter().find(|keyring| &*keyring.name == name)
    }
}

impl PlannedKeyring {
    fn read(zone: ZoneId, keyring: &v1::Keyring) -> Result<Self, Refusal> {
        let name = &keyring.name;
        let bad = |what: &str| Code::Parse.because(format!("keyring {name}: {what}"));
        if name.is_empty() || name.contains('/') {
            return Err(bad("this is no name"));
        }
        let keyring_id = KeyringId(keyring.keyring_id);
        let mut versions: Vec<PlannedVersion> = Vec::with_capacity(keyring.versions.len());
        for version in &keyring.versions {
            let number =
                to_version(version.version).ok_or_else(|| bad("a version number is out of range"))?;
            if versions.iter().any(|other| other.version == number) {
                return Err(bad("a version is there twice"));
            }
            let kek = KekRef { zone, keyring: keyring_id, version: number };
            versions.push(PlannedVersion::read(name, kek, &version.known_answer)?);
        }
        let primary = to_version(keyring.primary).ok_or_else(|| bad("the primary is out of range"))?;
        // Invariant 22: exactly one primary, and never one that is not accepted.
        if !versions.iter().any(|version| version.version == primary) {
            return Err(bad("the primary is not among the accepted versions"));
        }
        Ok(Self {
            name: name.as_str().into(),
            keyring_id,
            primary,
            versions,
            seal_lease_ms: keyring.seal_lease_ms,
            open_lease_ms: keyring.open_lease_ms,
            may_seal: keyring.may_seal,
            may_open: keyring.may_open,
            limits: limits(keyring),
        })
    }

    pub(super) fn accepts(&self, version: KekVersion) -> bool {
        self.versions.iter().any(|accepted| accepted.version == version)
    }

    pub(super) fn accepted(&self) -> Vec<KekVersion> {
        self.versions.iter().map(|version| version.version).collect()
    }
}

impl PlannedVersion {
    fn read(keyring: &str, kek: KekRef, known_answer: &[u8]) -> Result<Self, Refusal> {
        let version = kek.version;
        let key_block = kat::known_answer_key_block(known_answer)
            .map_err(|error| Code::KnownAnswer.because(format!("{keyring} v{version}: {error}")))?;
        // A known answer of another version would prove nothing of this one.
        if key_block.kek() != kek {
            let reason = format!("{keyring} v{version}: the known answer is of {}", key_block.kek());
            return Err(Code::KnownAnswer.because(reason));
        }
        Ok(Self { version, known_answer: known_answer.to_vec(), key_block })
    }
}

/// Versions are 1, 2, 3 …; 0 is what an unset field reads as.
fn to_version(number: u32) -> Option<KekVersion> {
    u16::try_from(number).ok().filter(|number| *number != 0).map(KekVersion)
}

/// A limit that the bridge leaves unset is the format's own; a wider one is narrowed to it.
fn limits(keyring: &v1::Keyring) -> DekLimits {
    let ours = DekLimits::default();
    let choose = |theirs: u64, ours: u64| if theirs == 0 { ours } else { theirs.min(ours) };
    let hard_messages = choose(keyring.dek_hard_messages, ours.hard_messages);
    let hard_bytes = choose(keyring.dek_hard_bytes, ours.hard_bytes);
    DekLimits {
        soft_messages: choose(keyring.dek_soft_messages, ours.soft_messages).min(hard_messages),
        hard_messages,
        soft_bytes: choose(keyring.dek_soft_bytes, ours.soft_bytes).min(hard_bytes),
        hard_bytes,
    }
}

#[cfg(test)]
#[path = "tests/plan.rs"]
mod tests;
