//! How an operator finds a bridge: from the flags, or from what `keyway dev` has left in its data directory.

use crate::args::BridgeArgs;
use crate::error::Failure;
use crate::private_file;
use anyhow::{Context as _, anyhow};
use serde::{Deserialize, Serialize};
use std::env;
use std::io;
use std::path::{Path, PathBuf};

const FILE: &str = "operator.json";

/// A bridge's address and the identity to meet it with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// `https://host:port`.
    pub bridge: String,
    /// An administrator's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority of the bridge's certificate.
    pub ca: PathBuf,
    /// What `rotate start` rotates when it is not told: `zone/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyring: Option<String>,
}

impl Profile {
    /// Puts the profile where [`Profile::find`] looks.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, data_dir: &Path) -> Result<(), Failure> {
        let path = data_dir.join(FILE);
        let text = serde_json::to_vec_pretty(self)?;
        private_file::write(&path, &text).with_context(|| format!("writing {}", path.display()))?;
        Ok(())
    }

    /// From `--data-dir`, else from `--bridge` with its certificate (or their environment variables), else from the
    /// data directory of `keyway dev`.
    ///
    /// # Errors
    /// There is no profile, or it can't be read.
    pub fn find(args: &BridgeArgs) -> Result<Self, Failure> {
        if let (None, Some(bridge), Some(cert), Some(key), Some(ca)) =
            (&args.data_dir, &args.bridge, &args.cert, &args.key, &args.ca)
        {
            return Ok(Self {
                bridge: bridge.clone(),
                cert: cert.clone(),
                key: key.clone(),
                ca: ca.clone(),
                keyring: None,
            });
        }
        let data_dir = args.data_dir.clone().map_or_else(default_data_dir, Ok)?;
        Self::read(&data_dir)
    }

    /// Reads what [`Profile::write`] wrote.
    ///
    /// # Errors
    /// There is none, or it can't be read.
    pub fn read(data_dir: &Path) -> Result<Self, Failure> {
        let path = data_dir.join(FILE);
        let text = std::fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::Failed(anyhow!(
                "no bridge is known in {}: start `keyway dev`, or name one with --bridge, --cert, --key and --ca",
                data_dir.display()
            )),
            _ => Failure::Failed(anyhow!(error).context(format!("reading {}", path.display()))),
        })?;
        serde_json::from_slice(&text)
            .with_context(|| format!("reading {}", path.display()))
            .map_err(Failure::Config)
    }
}

/// `$XDG_STATE_HOME/keyway/dev`, or `~/.keyway/dev`.
///
/// # Errors
/// Neither variable is set.
pub fn default_data_dir() -> Result<PathBuf, Failure> {
    let from = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    from("XDG_STATE_HOME")
        .map(|state| state.join("keyway/dev"))
        .or_else(|| from("HOME").map(|home| home.join(".keyway/dev")))
        .ok_or_else(|| {
            Failure::Usage("neither XDG_STATE_HOME nor HOME is set: name a directory with --data-dir".into())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn args() -> BridgeArgs {
        BridgeArgs { bridge: None, cert: None, key: None, ca: None, data_dir: None }
    }

    #[test]
    fn what_dev_writes_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let profile = Profile {
            bridge: "https://127.0.0.1:7200".into(),
            cert: "/c".into(),
            key: "/k".into(),
            ca: "/a".into(),
            keyring: Some("dev/default".into()),
        };
        profile.write(dir.path()).unwrap();
        let found = Profile::find(&BridgeArgs { data_dir: Some(dir.path().into()), ..args() }).unwrap();
        assert_eq!(found, profile);
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn without_a_profile_the_error_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = Profile::find(&BridgeArgs { data_dir: Some(dir.path().into()), ..args() }).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("start `keyway dev`"), "{error}");
    }

    #[test]
    fn a_damaged_profile_is_bad_configuration() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{}").unwrap();
        assert_eq!(Profile::read(dir.path()).unwrap_err().exit_code(), 64);
    }
}
