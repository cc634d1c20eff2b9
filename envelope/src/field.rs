//! A sealed JSON value as text: a readable prefix and base64url (RFC 4648, section 5, no padding) of the compact form.
//!
//! What is sealed is the value's own token as it stood in the document, so that a number keeps its digits and an object
//! its order. Needs no escaping in JSON, and is the same text in whatever writes JSON.

use crate::compact::Compact;
use crate::error::FormatError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// How every sealed value begins.
pub const PREFIX: &str = "keyway:1:";

/// The text for one compact envelope.
#[must_use]
pub fn encode(compact: &[u8]) -> String {
    let mut text = String::with_capacity(PREFIX.len() + compact.len() * 4 / 3 + 3);
    text.push_str(PREFIX);
    URL_SAFE_NO_PAD.encode_string(compact, &mut text);
    text
}

/// Whether a string claims to be a sealed value.
#[must_use]
pub fn is_sealed(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// The compact envelope in a string that [`is_sealed`]; it parses (see [`Compact::parse`]).
///
/// # Errors
/// [`FormatError`]: no prefix, not base64url in its one form, or no compact envelope.
pub fn decode(text: &str) -> Result<Vec<u8>, FormatError> {
    let encoded = text.strip_prefix(PREFIX).ok_or(FormatError::Magic)?;
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| FormatError::Short)?;
    Compact::parse(&bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_go_there_and_back_and_have_one_form() {
        let mut compact = vec![0x11, 1];
        compact.extend_from_slice(&[7; 8 + 16 + 24 + 32 + 16 + 5]);
        let text = encode(&compact);
        assert!(is_sealed(&text));
        assert_eq!(decode(&text).unwrap(), compact);
        for bad in [
            "keyway:1:",
            "keyway:2:AAAA",
            "",
            &format!("{text}="),
            &format!("{text} "),
            &text.replace("keyway", "Keyway"),
        ] {
            assert!(decode(bad).is_err(), "{bad}");
        }
        // Bits behind the last byte are zero, or two texts would be one value.
        let (head, last) = text.split_at(text.len() - 1);
        let other = if last == "A" { "B" } else { "A" };
        let changed = format!("{head}{other}");
        assert_ne!(decode(&changed).ok(), Some(compact));
    }
}
