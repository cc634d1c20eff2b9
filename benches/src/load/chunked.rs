//! Chunked bodies (RFC 9112, section 7.1), piece by piece and wherever the reads cut them.

use anyhow::{anyhow, bail};

/// Extensions and trailers are skipped, but not without end.
const SKIPPED_BYTES_MAX: usize = 16 * 1024;

/// Where in a chunked body the next byte belongs.
#[derive(Debug, Default)]
pub(crate) struct Chunked {
    at: At,
    /// Of the chunk.
    left: u64,
    skipped: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    FirstDigit,
    Digits,
    Extension,
    SizeEnd,
    Data,
    DataReturn,
    DataEnd,
    TrailerStart,
    Trailer,
    TrailerEnd,
    LastEnd,
    Done,
}

impl Chunked {
    /// Whether the body is whole.
    pub(crate) fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// The next data in `input`, which is moved behind it; empty when `input` is used up or the body is whole.
    pub(crate) fn next<'a>(&mut self, input: &mut &'a [u8]) -> anyhow::Result<&'a [u8]> {
        while !self.is_done() {
            if self.at == At::Data {
                let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
                let (data, rest) = input.split_at(length);
                *input = rest;
                self.left -= length as u64;
                if self.left == 0 {
                    self.at = At::DataReturn;
                }
                return Ok(data);
            }
            let Some((&byte, rest)) = input.split_first() else { return Ok(&[]) };
            *input = rest;
            self.at = self.step(byte)?;
        }
        Ok(&[])
    }

    fn step(&mut self, byte: u8) -> anyhow::Result<At> {
        Ok(match (self.at, byte) {
            (At::FirstDigit | At::Digits, digit) if digit.is_ascii_hexdigit() => {
                let digit = char::from(digit).to_digit(16).unwrap_or_default();
                let size = self.left.checked_mul(16).ok_or_else(|| anyhow!("a chunk without bounds"))?;
                self.left = size + u64::from(digit);
                At::Digits
            }
            (At::Digits | At::Extension, b'\r') => At::SizeEnd,
            (At::Digits, b';' | b' ' | b'\t') => At::Extension,
            (At::Extension, other) if other != b'\n' => self.skip(At::Extension)?,
            (At::SizeEnd, b'\n') if self.left == 0 => At::TrailerStart,
            (At::SizeEnd, b'\n') => At::Data,
            (At::DataReturn, b'\r') => At::DataEnd,
            (At::DataEnd, b'\n') => At::FirstDigit,
            (At::TrailerStart, b'\r') => At::LastEnd,
            (At::Trailer, b'\r') => At::TrailerEnd,
            (At::TrailerStart | At::Trailer, other) if other != b'\n' => self.skip(At::Trailer)?,
            (At::TrailerEnd, b'\n') => At::TrailerStart,
            (At::LastEnd, b'\n') => At::Done,
            (at, other) => bail!("byte {other:#04x} can't be in a chunked body here ({at:?})"),
        })
    }

    fn skip(&mut self, at: At) -> anyhow::Result<At> {
        self.skipped += 1;
        anyhow::ensure!(self.skipped <= SKIPPED_BYTES_MAX, "too much beside the data in a chunked body");
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::Chunked;

    const BODY: &[u8] = b"5\r\nhello\r\n1;name=value\r\n \r\n00A\r\nchunked!!!\r\n0\r\nDigest: x\r\n\r\n";

    fn decode(reads: &[&[u8]]) -> anyhow::Result<(Vec<u8>, bool)> {
        let (mut chunked, mut data) = (Chunked::default(), Vec::new());
        for read in reads {
            let mut input = *read;
            while !input.is_empty() && !chunked.is_done() {
                data.extend_from_slice(chunked.next(&mut input)?);
            }
        }
        Ok((data, chunked.is_done()))
    }

    #[test]
    fn wherever_it_is_cut() {
        for cut in 0..=BODY.len() {
            let (left, right) = BODY.split_at(cut);
            assert_eq!(decode(&[left, right]).unwrap(), (b"hello chunked!!!".to_vec(), true), "cut at {cut}");
            assert_eq!(decode(&[left]).unwrap().1, cut == BODY.len());
        }
        let bytes: Vec<&[u8]> = BODY.chunks(1).collect();
        assert_eq!(decode(&bytes).unwrap(), (b"hello chunked!!!".to_vec(), true));
    }

    #[test]
    fn what_is_no_chunked_body() {
        let bodies: [&[u8]; 6] =
            [b"\r\n", b"x", b"3\r\nabcd\r\n", b"3\nabc\r\n", b"fffffffffffffffff\r\n", b"0\r\nA: b\n"];
        for body in bodies {
            assert!(decode(&[body]).is_err(), "{}", body.escape_ascii());
        }
    }
}
