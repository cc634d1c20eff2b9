//! Records that are dropped, repeated, swapped and changed: what is read is the beginning of what was said, and it ends
//! only if all of it was read.
#![no_main]

use arbitrary::Arbitrary;
use keyway_envelope::stream::{
    Keying, RECORD_HEADER, RECORD_MAX, RECORD_MORE, Record, StreamContext, StreamOpener, StreamSealer, Way,
};
use keyway_fuzz::{SALT, dek, implementation, reference};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    by: u8,
    /// What is said; none is a change of keys.
    says: Vec<Option<Vec<u8>>>,
    tampers: Vec<Tamper>,
}

#[derive(Arbitrary, Debug)]
enum Tamper {
    Drop(u8),
    Repeat(u8),
    Swap(u8, u8),
    Flip(u8, u16, u8),
    Cut(u8, u16),
}

impl Tamper {
    fn apply(&self, records: &mut Vec<Vec<u8>>) {
        if records.is_empty() {
            return;
        }
        let at = |index: u8| usize::from(index) % records.len();
        match *self {
            Self::Drop(index) => drop(records.remove(at(index))),
            Self::Repeat(index) => {
                let (at, record) = (at(index), records[at(index)].clone());
                records.insert(at, record);
            }
            Self::Swap(one, other) => {
                let (one, other) = (at(one), at(other));
                records.swap(one, other);
            }
            Self::Flip(index, byte, bits) => {
                let at = at(index);
                let byte = usize::from(byte) % records[at].len().max(1);
                if let Some(byte) = records[at].get_mut(byte) {
                    *byte ^= bits;
                }
            }
            Self::Cut(index, len) => {
                let at = at(index);
                let len = usize::from(len) % (records[at].len() + 1);
                records[at].truncate(len);
            }
        }
    }
}

fn context() -> StreamContext {
    StreamContext { zone: "zone".into(), tenant: None, domain: "domain".into(), way: Way::There([1; 24]) }
}

fuzz_target!(|input: Input| {
    let by = implementation(input.by);
    let (mut sealer, setup) = StreamSealer::begin(&dek(), &reference(), SALT, context(), by);
    let (mut said, mut records) = (Vec::new(), Vec::new());
    for (n, plain) in input.says.iter().take(20).enumerate() {
        match plain {
            Some(plain) if plain.len() <= RECORD_MAX => {
                let mut record = vec![0; plain.len() + RECORD_MORE];
                sealer.data(plain, &mut record).unwrap();
                said.extend_from_slice(plain);
                records.push(record);
            }
            Some(_) => {}
            None => records.push(sealer.rekey(&dek(), &reference(), [n as u8; 24]).unwrap().to_vec()),
        }
    }
    records.push(sealer.finish().unwrap().to_vec());
    let whole = records.clone();
    for tamper in input.tampers.iter().take(8) {
        tamper.apply(&mut records);
    }

    let keying = Keying::parse(&setup).unwrap();
    let mut opener = StreamOpener::begin(&keying, &dek(), context(), by).unwrap();
    let mut read = Vec::new();
    for record in &records {
        let Some((header, sealed)) = record.split_first_chunk::<RECORD_HEADER>() else { break };
        let mut out = vec![0; RECORD_MAX];
        match opener.open(*header, sealed, &mut out) {
            Ok(Record::Data(len)) => read.extend_from_slice(&out[..len]),
            Ok(Record::Rekey(keying)) => opener.rekey(&keying, &dek()).unwrap(),
            Ok(Record::Fin) => {}
            Err(_) => break,
        }
    }
    assert!(said.starts_with(&read));
    if records == whole {
        assert!(opener.has_ended());
    }
    if opener.has_ended() {
        assert_eq!(read, said);
    }
});
