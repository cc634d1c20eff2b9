//! `keyway open FILE`: recovers a stored object from HSM and ciphertext alone.
//!
//! No bridge has to run, and its database is not read: the wrapped DEK is in the envelope, and the KEK that opens it
//! is in the key backend. So this is also the proof that nothing else is needed to get data back.

mod keys;
mod sink;

pub use keys::{Keys, zone_of};

use crate::args::OpenArgs;
use crate::dev::softhsm;
use crate::error::Failure;
use crate::operator::default_data_dir;
use anyhow::{Context as _, anyhow, bail};
use keyway_bridge::Config;
use keyway_envelope::header::Header;
use keyway_envelope::length::{HEADER, plain_len};
use keyway_envelope::open::OPEN_ROOM;
use keyway_envelope::{
    Context, Dek, FormatError, Implementation, KeyBlockKind, OpenError, Opener, Profile, aead,
};
use sink::Sink;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use zeroize::Zeroizing;

/// Sealed bytes read at once; a multiple of nothing in particular.
const READ: usize = 256 * 1024;

/// What the object was sealed for. A wrong one does not open.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The zone's name.
    pub zone: &'a str,
    /// The tenant, if the route has one.
    pub tenant: Option<&'a str>,
    /// The route's domain.
    pub domain: &'a str,
}

/// Why an object could not be recovered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// It can't be read, or the plaintext not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is no envelope, or not one of this version.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// It was sealed with something else than the given zone, tenant and domain, or it was changed.
    #[error("the object does not open: another zone, tenant or domain than it was sealed for, or changed bytes ({})", .0.reason())]
    Open(#[from] OpenError),
}

/// Reads the header in front of the segments.
///
/// # Errors
/// [`RecoverError::Io`], [`RecoverError::Format`].
pub fn read_header(input: &mut impl Read) -> Result<Header, RecoverError> {
    let mut head = Vec::with_capacity(HEADER);
    input.take(HEADER as u64).read_to_end(&mut head)?;
    Ok(Header::parse(&head)?)
}

/// Opens what follows the header, in constant memory; gives the plaintext's length.
///
/// What was written before an error is not to be used.
///
/// # Errors
/// [`RecoverError::Io`], [`RecoverError::Open`].
pub fn open_segments(
    header: &Header,
    dek: &Dek,
    scope: Scope<'_>,
    input: &mut impl Read,
    output: &mut impl Write,
) -> Result<u64, RecoverError> {
    let context = Context::object(scope.zone, scope.tenant, scope.domain).digest();
    let keys = dek.derive(&header.salt, &context);
    keys.verify(&header.commitment)?;
    let mut opener = Opener::new(keys, Implementation::selected());
    let mut sealed = vec![0; READ];
    let mut plain = Zeroizing::new(vec![0; READ + OPEN_ROOM]);
    let mut written = 0;
    loop {
        let n = match input.read(&mut sealed) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let mut rest = &sealed[..n];
        while !rest.is_empty() {
            let done = opener.update(rest, &mut plain)?;
            output.write_all(&plain[..done.produced])?;
            written += done.produced as u64;
            rest = &rest[done.consumed..];
        }
    }
    let last = opener.finish(&mut plain)?;
    output.write_all(&plain[..last])?;
    Ok(written + last as u64)
}

/// Runs the command.
///
/// # Errors
/// The configuration can't be read (64), or the object not recovered (1).
pub fn run(args: &OpenArgs) -> Result<(), Failure> {
    let config_path = match &args.config {
        Some(path) => path.clone(),
        None => {
            let data_dir = args.data_dir.clone().map_or_else(default_data_dir, Ok)?;
            softhsm::enter(&data_dir)?;
            data_dir.join("bridge.yaml")
        }
    };
    let config = load(&config_path)?;
    let zone = zone_of(&config, args.zone.as_deref())?;
    let clock = Instant::now();
    aead::select(|| u64::try_from(clock.elapsed().as_nanos()).unwrap_or(u64::MAX))?;

    let mut input = File::open(&args.file).with_context(|| format!("reading {}", args.file.display()))?;
    let length = input.metadata()?.len();
    let header = check(&mut input, length).with_context(|| args.file.display().to_string())?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tenant = args.tenant.as_deref();
    let dek = runtime.block_on(async {
        let keys = Keys::open(zone).await?;
        keys.dek(&header.key_block, &zone.name, tenant.unwrap_or_default()).await
    })?;
    let scope = Scope { zone: &zone.name, tenant, domain: &args.domain };
    let target = args.output.clone().unwrap_or_else(|| with_plain_ending(&args.file));
    let mut sink = Sink::create(&target)?;
    let plain = open_segments(&header, &dek, scope, &mut input, &mut sink).map_err(anyhow::Error::from)?;
    sink.keep().with_context(|| format!("writing {}", target.display()))?;
    eprintln_done(&args.file, &target, plain);
    Ok(())
}

/// Only what is asked of the backends matters here: the bridge's certificates and database may be gone.
fn load(path: &Path) -> Result<Config, Failure> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading the bridge's configuration {}", path.display()))
        .map_err(Failure::Config)?;
    Config::parse(&text, &path.display().to_string()).map_err(Failure::config)
}

/// What can be refused before a key is asked for.
fn check(input: &mut File, length: u64) -> anyhow::Result<Header> {
    let header = read_header(input)?;
    plain_len(length).context("the envelope was cut, or something was added")?;
    if header.profile != Profile::Object {
        bail!("this is no stored object (its context profile is {:?})", header.profile);
    }
    if header.key_block.kind() != KeyBlockKind::Inline {
        return Err(anyhow!("this envelope only names its DEK: the bridge's catalog is needed to open it"));
    }
    Ok(header)
}

fn with_plain_ending(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".plain");
    file.with_file_name(name)
}

fn eprintln_done(from: &Path, to: &Path, plain: u64) {
    if to != Path::new("-") {
        eprintln!("{}: {plain} bytes verified and written to {}", from.display(), to.display());
    }
}
