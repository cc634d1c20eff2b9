//! Any bytes: a header is read as exactly what writes it, or refused; arithmetic on any length never panics.
#![no_main]

use keyway_envelope::header::looks_sealed;
use keyway_envelope::length::{HEADER, plain_len, range_plan, sealed_len};
use keyway_envelope::{FormatError, Header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match Header::parse(data) {
        Ok(header) => {
            assert!(looks_sealed(data));
            assert_eq!(header.to_bytes(), data[..HEADER]);
            assert_eq!(header.key_block.wrapped().len(), header.key_block.mechanism().wrapped_len());
        }
        Err(FormatError::Magic) => assert!(!looks_sealed(data)),
        Err(FormatError::Short) => assert!(looks_sealed(data) && data.len() < HEADER),
        Err(error) => assert!(looks_sealed(data) && data.len() >= HEADER && !error.to_string().is_empty()),
    }
    let Some((words, _)) = data.as_chunks::<8>().0.split_first_chunk::<3>() else { return };
    let [length, a, b] = words.map(u64::from_be_bytes);
    if let Ok(plain) = plain_len(length) {
        assert_eq!(sealed_len(plain), Some(length));
        if plain > 0 {
            let (first, last) = ((a % plain).min(b % plain), (a % plain).max(b % plain));
            let plan = range_plan(plain, first, last);
            assert!(*plan.sealed.start() >= HEADER as u64 && *plan.sealed.end() < length);
            assert_eq!(plan.take, last - first + 1);
            assert_eq!(plan.includes_last, *plan.sealed.end() == length - 1);
        }
    }
});
