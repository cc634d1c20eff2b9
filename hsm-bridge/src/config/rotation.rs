//! How a zone's rotations go.

use super::units;
use core::fmt;
use core::str::FromStr;
use core::time::Duration;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;

/// How a zone's rotations go.
///
/// In this version every member is promoted at once, after each of them has proved the new version: what asks for
/// several waves or a gate is read and checked, and answered with a warning; see [`super::Config::warnings`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotationConfig {
    /// How long the new version is primary everywhere before the old wraps are replaced.
    #[serde(default, with = "units::duration_or_zero")]
    #[schemars(with = "String")]
    pub soak: Duration,
    /// DEKs rewrapped per second at most; without it, as fast as the HSM goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub rewrap_per_second: Option<u32>,
    /// How many members are promoted in each wave, growing to `100%`. Not in force in this version: one wave.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<Wave>,
    /// Operators who have to approve a rotation. Only 0 is possible in this version.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = 0))]
    pub approvals: u32,
    /// What has to hold before the next wave. Not in force in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateConfig>,
}

impl Default for RotationConfig {
    fn default() -> Self {
        Self { soak: Duration::ZERO, rewrap_per_second: None, waves: Vec::new(), approvals: 0, gate: None }
    }
}

fn is_zero(approvals: &u32) -> bool {
    *approvals == 0
}

/// What promoted members may not exceed, against those not yet promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GateConfig {
    /// Failed requests, of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_rate: Option<Percent>,
    /// By how much the 99th percentile of the latency may grow. May be more than `100%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_increase: Option<Percent>,
    /// Fewer requests than this prove nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub min_requests: Option<u64>,
}

/// One wave: a number of members (`1`), or a share of them (`10%`), those of earlier waves included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wave {
    /// So many.
    Members(u32),
    /// So much of all.
    Share(Percent),
}

impl FromStr for Wave {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no wave; write a number of members such as 1, or a share such as 10%");
        let wave = if text.ends_with('%') {
            Self::Share(text.parse().map_err(|_| wrong())?)
        } else {
            Self::Members(text.parse().map_err(|_| wrong())?)
        };
        let empty = matches!(wave, Self::Members(0) | Self::Share(Percent { millionths: 0 }));
        let too_much = matches!(wave, Self::Share(share) if share > Percent::ALL);
        if empty || too_much { Err(wrong()) } else { Ok(wave) }
    }
}

impl fmt::Display for Wave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Members(members) => members.fmt(f),
            Self::Share(share) => share.fmt(f),
        }
    }
}

/// `0.1%`, `20%`; to a hundredth of a basis point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent {
    millionths: u64,
}

/// Millionths in one percent.
const ONE: u64 = 10_000;
/// Digits behind the point of a percentage.
const DIGITS: usize = 4;

impl Percent {
    /// `100%`.
    pub const ALL: Self = Self { millionths: 100 * ONE };

    /// As a ratio: `0.1%` is 1000 millionths.
    #[must_use]
    pub fn millionths(self) -> u64 {
        self.millionths
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no percentage such as 0.1% or 20%");
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.strip_suffix('%').ok_or_else(wrong)?.trim_end();
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        if !digits(whole) || !digits(part) || part.is_empty() || part.len() > DIGITS {
            return Err(wrong());
        }
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let part: u64 = format!("{part:0<DIGITS$}").parse().map_err(|_| wrong())?;
        let millionths =
            whole.checked_mul(ONE).and_then(|whole| whole.checked_add(part)).ok_or_else(wrong)?;
        Ok(Self { millionths })
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.millionths / ONE, self.millionths % ONE);
        if part == 0 {
            return write!(f, "{whole}%");
        }
        let part = format!("{part:0>DIGITS$}");
        write!(f, "{whole}.{}%", part.trim_end_matches('0'))
    }
}

impl Serialize for Wave {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Wave {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Wave {
    fn schema_name() -> Cow<'static, str> {
        "Wave".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "pattern": "^([0-9]+|[0-9]+([.][0-9]{1,4})? *%)$" })
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Percent {
    fn schema_name() -> Cow<'static, str> {
        "Percent".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+([.][0-9]{1,4})? *%$" })
    }
}
