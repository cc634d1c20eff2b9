//! `keyway keys`.

use super::{Session, block_on, now_ms, refused};
use crate::args::ListArgs;
use crate::error::Failure;
use crate::output::{self, Align, Table, grouped, relative};
use keyway_protocol::v1::{Key, KeyPlace, ListRequest};
use serde::Serialize;

/// One KEK version, as `--json` prints it.
#[derive(Serialize)]
struct KeyView {
    zone: String,
    keyring: String,
    version: u32,
    state: String,
    places: Vec<PlaceView>,
    live_deks: u64,
    created: Option<String>,
    changed: Option<String>,
}

#[derive(Serialize)]
struct PlaceView {
    backend: String,
    kind: String,
    mechanism: String,
    extractable: bool,
}

/// Lists KEK versions.
///
/// # Errors
/// The bridge can't be reached, or refuses.
pub fn run(args: &ListArgs) -> Result<(), Failure> {
    let keys = block_on(async {
        let mut session = Session::open(&args.bridge).await?;
        let request = ListRequest { zone: args.zone.clone() };
        Ok(session.client.list_keys(request).await.map_err(refused("listing the keys"))?.into_inner().keys)
    })?;
    if args.json {
        return output::json(&keys.into_iter().map(KeyView::from).collect::<Vec<_>>());
    }
    output::line(&table(&keys, now_ms()))
}

fn table(keys: &[Key], now_ms: u64) -> String {
    let mut table = Table::new(&[
        ("KEYRING", Align::Left),
        ("VERSION", Align::Right),
        ("STATE", Align::Left),
        ("WRAPS", Align::Right),
        ("PLACES", Align::Left),
        ("CREATED", Align::Left),
        ("CHANGED", Align::Left),
    ]);
    for key in keys {
        table.row(vec![
            format!("{}/{}", key.zone, key.keyring),
            format!("v{}", key.version),
            key.state.clone(),
            grouped(key.live_deks),
            key.places.iter().map(place).collect::<Vec<_>>().join(", "),
            relative(key.created_ms, now_ms),
            relative(key.changed_ms, now_ms),
        ]);
    }
    table.render()
}

fn place(place: &KeyPlace) -> String {
    let extractable = if place.extractable { ", extractable" } else { "" };
    format!("{} ({}, {}{extractable})", place.backend, place.kind, place.mechanism)
}

impl From<Key> for KeyView {
    fn from(key: Key) -> Self {
        Self {
            zone: key.zone,
            keyring: key.keyring,
            version: key.version,
            state: key.state,
            places: key.places.into_iter().map(PlaceView::from).collect(),
            live_deks: key.live_deks,
            created: output::time(key.created_ms),
            changed: output::time(key.changed_ms),
        }
    }
}

impl From<KeyPlace> for PlaceView {
    fn from(place: KeyPlace) -> Self {
        Self {
            backend: place.backend,
            kind: place.kind,
            mechanism: place.mechanism,
            extractable: place.extractable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_where_a_key_lives() {
        let key = Key {
            zone: "payments".into(),
            keyring: "default".into(),
            version: 2,
            state: "primary".into(),
            places: vec![KeyPlace {
                backend: "hsm-a".into(),
                kind: "pkcs11".into(),
                mechanism: "aes-gcm".into(),
                extractable: false,
            }],
            created_ms: 1_000,
            changed_ms: 61_000,
            live_deks: 1_234,
        };
        let text = table(&[key], 121_000);
        let line = text.lines().nth(1).unwrap();
        assert_eq!(
            line,
            "payments/default       v2  primary  1 234  hsm-a (pkcs11, aes-gcm)  2m 0s ago  1m 0s ago"
        );
    }
}
