//! A compact envelope, raw or sealed here and then changed: only what was sealed opens.
#![no_main]

use arbitrary::Arbitrary;
use keyway_envelope::Implementation;
use keyway_envelope::compact::{Compact, seal};
use keyway_fuzz::{Change, SALT, context, dek, reference};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input {
    Raw(Vec<u8>),
    Changed { plain: Vec<u8>, changes: Vec<Change> },
}

fuzz_target!(|input: Input| {
    let by = Implementation::AwsLc;
    match input {
        Input::Raw(bytes) => {
            if let Ok(parsed) = Compact::parse(&bytes) {
                assert!(parsed.open(&dek(), &context(), by).is_err(), "nobody sealed this");
            }
        }
        Input::Changed { plain, changes } => {
            let original = seal(&dek(), &reference(), SALT, &context(), by, &plain).expect("a short message");
            let mut bytes = original.clone();
            changes.iter().for_each(|change| change.apply(&mut bytes));
            let opened =
                Compact::parse(&bytes).ok().and_then(|parsed| parsed.open(&dek(), &context(), by).ok());
            // The KEK reference of a catalog block (bytes 2 to 9) is a hint: the DEK's id decides.
            let same =
                bytes.len() == original.len() && bytes[..2] == original[..2] && bytes[10..] == original[10..];
            assert_eq!(opened, same.then_some(plain));
        }
    }
});
