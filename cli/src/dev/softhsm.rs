//! A SoftHSM token for `--hsm pkcs11`: its own configuration, tokens and PIN, all in the data directory.
//!
//! SoftHSM finds its configuration through an environment variable only, and changing the environment of a running
//! process is not sound. So the process starts itself anew with the variable set, before it has done anything else.

use crate::error::Failure;
use crate::private_file;
use anyhow::{Context as _, anyhow};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use std::env;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use zeroize::Zeroizing;

const VARIABLE: &str = "SOFTHSM2_CONF";
/// The token's label.
pub(super) const TOKEN: &str = "keyway-dev";
/// Where distributions put the module.
const MODULES: [&str; 7] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
];

/// A token that is ready.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) module: PathBuf,
    pub(super) pin_file: PathBuf,
    pub(super) configuration: PathBuf,
}

/// Starts this process anew inside the SoftHSM configuration of `data_dir`, if there is one and it is not in it already.
/// Call it before anything else is started.
///
/// # Errors
/// The program can't be started again.
pub fn enter(data_dir: &Path) -> Result<(), Failure> {
    let configuration = configuration(data_dir);
    if !configuration.exists() || env::var_os(VARIABLE).as_deref() == Some(configuration.as_os_str()) {
        return Ok(());
    }
    let program = env::current_exe().context("finding this program's file")?;
    // Only returns if it fails.
    let error = Command::new(program).args(env::args_os().skip(1)).env(VARIABLE, &configuration).exec();
    Err(anyhow!(error).context("starting this program anew with SOFTHSM2_CONF").into())
}

/// Writes the configuration of a token in `data_dir`; [`enter`] takes it from there.
pub(super) fn configure(data_dir: &Path) -> Result<(), Failure> {
    module()?;
    let tokens = data_dir.join("softhsm").join("tokens");
    private_file::make_directory(&tokens).with_context(|| format!("making {}", tokens.display()))?;
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nobjectstore.umask = 0077\nlog.level = ERROR\nslots.removable = false\n",
        tokens.display()
    );
    let path = configuration(data_dir);
    private_file::write(&path, text.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

/// The token, made if it is missing. The process is inside its configuration, and has one thread.
pub(super) fn token(data_dir: &Path) -> Result<Token, Failure> {
    let directory = data_dir.join("softhsm");
    let token =
        Token { module: module()?, pin_file: directory.join("pin"), configuration: configuration(data_dir) };
    let pkcs11 = Pkcs11::new(&token.module).with_context(|| format!("loading {}", token.module.display()))?;
    pkcs11
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .context("initialising SoftHSM")?;
    let made = make(&pkcs11, &token.pin_file, &directory.join("so-pin"));
    // The bridge initialises the module again, and finds the token under its final slot number then.
    pkcs11.finalize().context("finalising SoftHSM")?;
    made?;
    Ok(token)
}

fn make(pkcs11: &Pkcs11, pin_file: &Path, so_pin_file: &Path) -> Result<(), Failure> {
    for slot in pkcs11.get_slots_with_initialized_token().context("listing the tokens")? {
        let info = pkcs11.get_token_info(slot).context("reading a token's label")?;
        if info.label() != TOKEN {
            continue;
        }
        if info.user_pin_initialized() && pin_file.exists() {
            return Ok(());
        }
        return Err(anyhow!(
            "the token {TOKEN} is there, but its PIN is not in {}: restore that file, or move the directory away",
            pin_file.display()
        )
        .into());
    }
    let all = pkcs11.get_slots_with_token().context("listing the slots")?;
    let is_free = |slot| pkcs11.get_token_info(slot).is_ok_and(|info| !info.token_initialized());
    let slot = all.into_iter().find(|&slot| is_free(slot)).context("SoftHSM has no free slot")?;
    let (pin, so_pin) = (fresh_pin()?, fresh_pin()?);
    // The PINs are kept before the token depends on them.
    private_file::write(so_pin_file, so_pin.as_bytes()).context("writing the SO PIN")?;
    private_file::write(pin_file, pin.as_bytes()).context("writing the PIN")?;
    let so_pin = AuthPin::from(so_pin.to_string());
    pkcs11.init_token(slot, &so_pin, TOKEN).context("making the token")?;
    let session = pkcs11.open_rw_session(slot).context("opening a session")?;
    session.login(UserType::So, Some(&so_pin)).context("logging in as security officer")?;
    session.init_pin(&AuthPin::from(pin.to_string())).context("setting the PIN")?;
    session.logout().context("logging out")?;
    Ok(())
}

/// Where SoftHSM is installed.
fn module() -> Result<PathBuf, Failure> {
    let found = MODULES.iter().map(PathBuf::from).find(|path| path.exists());
    found.ok_or_else(|| {
        Failure::Failed(anyhow!(
            "--hsm pkcs11 needs SoftHSM, and it is not installed: apt-get install softhsm2"
        ))
    })
}

fn configuration(data_dir: &Path) -> PathBuf {
    // SoftHSM reads it after a change of directory too.
    let data_dir = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    data_dir.join("softhsm").join("softhsm2.conf")
}

fn fresh_pin() -> Result<Zeroizing<String>, Failure> {
    let mut bytes = Zeroizing::new([0; 16]);
    getrandom::fill(&mut *bytes).map_err(std::io::Error::other)?;
    Ok(Zeroizing::new(hex::encode(*bytes)))
}
