//! `keyway inspect FILE`: explains an envelope's header byte by byte. Needs no key and reads no payload.

mod fields;

use crate::error::Failure;
use crate::output::{self, Align, Table, grouped};
use anyhow::Context as _;
use fields::Field;
use keyway_envelope::compact::Compact;
use keyway_envelope::header::{Header, looks_sealed};
use keyway_envelope::length::{HEADER, SEGMENT, TAG, plain_len_of_segments};
use keyway_envelope::{FormatError, KeyBlock};
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The compact form with its key block inline: form, suite, key block, salt, commitment.
const COMPACT_INLINE: usize = 2 + KeyBlock::LEN + 24 + 32;
/// The same with a reference in the key block's place.
const COMPACT_CATALOG: usize = 2 + 8 + 16 + 24 + 32;

/// The longest of all headers: no more is read of a file.
const HEAD_MAX: usize = if HEADER > COMPACT_INLINE { HEADER } else { COMPACT_INLINE };

/// Which form of envelope the bytes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Bodies: a header of 160 bytes.
    Object,
    /// Fields and short messages.
    Compact,
}

/// What is known about an envelope without a key. `--json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Object or compact.
    pub form: Form,
    /// Bytes of the whole envelope.
    pub length: u64,
    /// Bytes in front of the first segment.
    pub header_length: u64,
    /// Bytes of the plaintext; absent if no plaintext seals to this length.
    pub plain_length: Option<u64>,
    /// Segments, the short or empty last one included; absent with `plain_length`.
    pub segments: Option<u64>,
    /// Whether the length is one that sealing makes. If not, the envelope was cut or something was added.
    pub length_possible: bool,
    /// Every field in front of the first segment.
    pub fields: Vec<Field>,
    /// What is wrong with the header, if anything.
    pub problem: Option<String>,
}

/// Looks at the beginning of an envelope; `length` is that of the whole.
///
/// # Errors
/// [`FormatError::Magic`] if it is no envelope at all. One that is malformed gives a report with its problem.
pub fn report(head: &[u8], length: u64) -> Result<Report, FormatError> {
    if looks_sealed(head) && head.len() >= 4 {
        return Ok(object(head, length));
    }
    compact(head, length).ok_or(FormatError::Magic)
}

fn object(head: &[u8], length: u64) -> Report {
    let problem = Header::parse(head).err();
    let fields = fields::object(&head[..head.len().min(HEADER)]);
    finish(Form::Object, length, HEADER, fields, problem)
}

/// The compact form has no magic: it is one only if it parses.
fn compact(head: &[u8], length: u64) -> Option<Report> {
    let header = match head.first()? {
        0x11 => COMPACT_CATALOG,
        0x12 => COMPACT_INLINE,
        _ => return None,
    };
    let fields = head.get(..header)?;
    // The parser wants segments too; the shortest that are possible stand in for them, and the true length is checked
    // below.
    let stand_in = [fields, &[0; TAG]].concat();
    Compact::parse(&stand_in).ok()?;
    Some(finish(Form::Compact, length, header, fields::compact(fields), None))
}

fn finish(
    form: Form,
    length: u64,
    header: usize,
    fields: Vec<Field>,
    problem: Option<FormatError>,
) -> Report {
    let header_length = header as u64;
    let plain_length =
        length.checked_sub(header_length).and_then(|segments| plain_len_of_segments(segments).ok());
    Report {
        form,
        length,
        header_length,
        plain_length,
        segments: plain_length.map(|plain| plain / SEGMENT as u64 + 1),
        length_possible: plain_length.is_some(),
        fields,
        problem: problem.map(|problem| problem.to_string()),
    }
}

/// Runs the command. `-` is standard input.
///
/// # Errors
/// The file can't be read, is no envelope, is malformed, or has an impossible length: exit code 1 for each.
pub fn run(path: &Path, as_json: bool) -> Result<(), Failure> {
    let (head, length) = read(path).with_context(|| format!("reading {}", path.display()))?;
    let report = report(&head, length).with_context(|| path.display().to_string())?;
    if as_json {
        output::json(&report)?;
    } else {
        output::line(&text(path, &report))?;
    }
    if report.problem.is_none() && report.length_possible { Ok(()) } else { Err(Failure::Told) }
}

/// The first bytes, and how many there are in all.
fn read(path: &Path) -> io::Result<(Vec<u8>, u64)> {
    let mut head = Vec::new();
    if path == Path::new("-") {
        let mut input = io::stdin().lock();
        (&mut input).take(HEAD_MAX as u64).read_to_end(&mut head)?;
        let rest = io::copy(&mut input, &mut io::sink())?;
        let length = head.len() as u64 + rest;
        return Ok((head, length));
    }
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    (&file).take(HEAD_MAX as u64).read_to_end(&mut head)?;
    Ok((head, length))
}

fn text(path: &Path, report: &Report) -> String {
    let mut table = Table::new(&[
        ("offset", Align::Right),
        ("length", Align::Right),
        ("field", Align::Left),
        ("bytes", Align::Left),
        ("meaning", Align::Left),
    ]);
    for field in &report.fields {
        let hex = if field.hex.len() > 32 { format!("{}…", &field.hex[..30]) } else { field.hex.clone() };
        table.row(vec![
            field.offset.to_string(),
            field.length.to_string(),
            field.name.to_owned(),
            hex,
            field.meaning.clone(),
        ]);
    }
    if report.length > report.header_length {
        table.row(vec![
            report.header_length.to_string(),
            (report.length - report.header_length).to_string(),
            "segments".into(),
            String::new(),
            match (report.segments, report.plain_length) {
                (Some(1), Some(plain)) => format!("one segment of {} bytes, and its tag", grouped(plain)),
                (Some(segments), Some(plain)) => format!(
                    "{} full segments of 16 KiB, a last one of {} bytes, and a tag of 16 bytes behind each",
                    grouped(segments - 1),
                    grouped(plain % SEGMENT as u64)
                ),
                _ => "no plaintext makes as many bytes as these".into(),
            },
        ]);
    }
    let form = match report.form {
        Form::Object => "object form",
        Form::Compact => "compact form",
    };
    let mut out =
        format!("{}: Keyway envelope, {form}, {} bytes\n\n", path.display(), grouped(report.length));
    out.push_str(&table.render());
    out.push_str("\n\n");
    out.push_str(&match report.plain_length {
        Some(plain) => format!("plaintext: {} bytes (the length is possible)", grouped(plain)),
        None => format!(
            "no plaintext seals to {} bytes: this envelope was cut, or something was added",
            report.length
        ),
    });
    if let Some(problem) = &report.problem {
        out.push_str("\nrefused: ");
        out.push_str(problem);
    }
    out
}
