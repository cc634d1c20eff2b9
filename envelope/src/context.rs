//! What is authenticated beside the bytes.
//!
//! `context = "keyway/v1" ‖ 0x00 ‖ DEK id ‖ SHA-256(label ‖ TLV)`, where TLV is tag u8 ‖ length u32 ‖ value with
//! strictly ascending tags. A part that is absent has no entry: absent is not empty.

use crate::header::SALT;
use crate::ids::DekId;
use sha2::{Digest, Sha256};

const PREFIX: &[u8; 10] = b"keyway/v1\0";
const LABEL: &[u8] = b"keyway context v1\0";

/// Which parts the context has; byte 7 of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// A body at rest: zone, tenant, domain, direction, object id and content type if the route binds them.
    Object,
    /// A field of a document: those, and the field's path.
    Field,
    /// One direction of a connection between two sidecars.
    Stream,
    /// A known answer that a bridge hands to its members. Never on a route.
    KnownAnswer,
}

impl Profile {
    /// The number on the wire.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Object => 1,
            Self::Field => 2,
            Self::Stream => 3,
            Self::KnownAnswer => 0x7F,
        }
    }

    /// The way back.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Object,
            2 => Self::Field,
            3 => Self::Stream,
            0x7F => Self::KnownAnswer,
            _ => return None,
        })
    }
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Stored and read back later: what went up as a request comes down as a response.
    AtRest,
    /// From a client sidecar to a server sidecar.
    Request,
    /// And back.
    Response,
}

/// The parts. Zone, domain, direction and profile are always there.
///
/// Never bound, since they change for good reasons: host, URL, HTTP version, ETag, lengths, encodings, the
/// writer's identity, the KEK's version.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The zone's name.
    pub zone: &'a str,
    /// The tenant, where the route has one.
    pub tenant: Option<&'a str>,
    /// The stable name that the route gives its data.
    pub domain: &'a str,
    /// Which way.
    pub direction: Direction,
    /// Which profile; has to be the one in the header.
    pub profile: Profile,
    /// RFC 6901 path of a field, array indices as `*`.
    pub field: Option<&'a str>,
    /// An object's id, where the route binds it.
    pub object_id: Option<&'a str>,
    /// The content type, where the route binds it.
    pub content_type: Option<&'a str>,
    /// Of a stream: what the other side has said before, so that neither can be played again.
    pub peer_salt: Option<&'a [u8; SALT]>,
    /// Of keys that follow others in a stream: what came before.
    pub chain: Option<&'a [u8; 32]>,
}

impl<'a> Context<'a> {
    /// The context of a body at rest.
    #[must_use]
    pub fn object(zone: &'a str, tenant: Option<&'a str>, domain: &'a str) -> Self {
        Self {
            zone,
            tenant,
            domain,
            direction: Direction::AtRest,
            profile: Profile::Object,
            field: None,
            object_id: None,
            content_type: None,
            peer_salt: None,
            chain: None,
        }
    }

    /// SHA-256 over label and TLV; a route with no varying part computes it once.
    #[must_use]
    pub fn digest(&self) -> ContextDigest {
        let direction = [match self.direction {
            Direction::AtRest => 0u8,
            Direction::Request => 1,
            Direction::Response => 2,
        }];
        let profile = [self.profile.to_byte()];
        let entries: [(u8, Option<&[u8]>); 10] = [
            (1, Some(self.zone.as_bytes())),
            (2, self.tenant.map(str::as_bytes)),
            (3, Some(self.domain.as_bytes())),
            (4, Some(&direction)),
            (5, Some(&profile)),
            (6, self.field.map(str::as_bytes)),
            (7, self.object_id.map(str::as_bytes)),
            (8, self.content_type.map(str::as_bytes)),
            (9, self.peer_salt.map(|salt| &salt[..])),
            (10, self.chain.map(|chain| &chain[..])),
        ];
        let mut hash = Sha256::new();
        hash.update(LABEL);
        for (tag, value) in entries {
            let Some(value) = value else { continue };
            let len =
                u32::try_from(value.len()).expect("names are bounded by the header limits, far below 4 GiB");
            hash.update([tag]);
            hash.update(len.to_be_bytes());
            hash.update(value);
        }
        ContextDigest(hash.finalize().into())
    }
}

/// The hashed parts, before the DEK's id joins them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextDigest([u8; 32]);

impl ContextDigest {
    /// Length of the context bytes that go into the key derivation.
    pub const CONTEXT_LEN: usize = PREFIX.len() + DekId::LEN + 32;

    /// The context bytes for one DEK.
    #[must_use]
    pub fn for_dek(&self, dek_id: DekId) -> [u8; Self::CONTEXT_LEN] {
        let mut out = [0; Self::CONTEXT_LEN];
        out[..PREFIX.len()].copy_from_slice(PREFIX);
        out[PREFIX.len()..PREFIX.len() + DekId::LEN].copy_from_slice(&dek_id.0);
        out[PREFIX.len() + DekId::LEN..].copy_from_slice(&self.0);
        out
    }
}
