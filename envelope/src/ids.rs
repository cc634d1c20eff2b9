//! Names of keys, as numbers and bytes.

use core::fmt;

macro_rules! number {
    ($(#[$meta:meta])* $name:ident, $inner:ty) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A zone's number, stable for its life. Zones are cryptographic domains; nothing crosses.
    ZoneId,
    u16
);
number!(
    /// A keyring's number in its zone, stable for its life.
    KeyringId,
    u32
);
number!(
    /// A KEK's version in its keyring: 1, 2, 3 …, never reused.
    KekVersion,
    u16
);

/// Which KEK: zone ‖ keyring ‖ version, 8 bytes big-endian. Also the HSM object's `CKA_ID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KekRef {
    /// The zone that the KEK lives in.
    pub zone: ZoneId,
    /// The keyring that it is a version of.
    pub keyring: KeyringId,
    /// Its version.
    pub version: KekVersion,
}

impl KekRef {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 8;

    /// The 8 bytes, as in an envelope and in `CKA_ID`.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..2].copy_from_slice(&self.zone.0.to_be_bytes());
        out[2..6].copy_from_slice(&self.keyring.0.to_be_bytes());
        out[6..].copy_from_slice(&self.version.0.to_be_bytes());
        out
    }

    /// The way back; every 8 bytes are a reference.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [z0, z1, k0, k1, k2, k3, v0, v1] = bytes;
        Self {
            zone: ZoneId(u16::from_be_bytes([z0, z1])),
            keyring: KeyringId(u32::from_be_bytes([k0, k1, k2, k3])),
            version: KekVersion(u16::from_be_bytes([v0, v1])),
        }
    }
}

impl fmt::Display for KekRef {
    /// `zone 1 keyring 7 v3`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zone {} keyring {} v{}", self.zone, self.keyring, self.version)
    }
}

/// A DEK's random name, 16 bytes. Not a secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DekId(pub [u8; 16]);

impl DekId {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 16;
}

impl fmt::Display for DekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DekId({self})")
    }
}
