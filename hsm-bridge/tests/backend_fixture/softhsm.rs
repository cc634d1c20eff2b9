//! SoftHSM for one test process: a folder, a configuration, and tokens that are there before the module is loaded.
// Included by path; none exports anything.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses a part of it; a fixture that fails has to fail the test, with the place"
)]

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use keyway_bridge::backend::{self, BackendConfig, BackendKind, KeyBackend, Pkcs11Config};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex, MutexGuard};

pub const PIN: &str = "123456";
const SO_PIN: &str = "87654321";

/// What `./test.sh` installs.
const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
];

pub struct SoftHsm {
    pub folder: tempfile::TempDir,
    pub module: PathBuf,
}

static SOFTHSM: OnceLock<SoftHsm> = OnceLock::new();
static ALONE: Mutex<()> = Mutex::const_new(());

/// Held by a test while it uses the module.
///
/// A session's opening looks at every token, and SoftHSM takes one for broken that another process writes to at this
/// moment; each login writes. So while one test has another program at work, no other test may look.
pub async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

/// The one of this process, with these tokens. Every test of a file names the same tokens.
///
/// `prepare` is the place for what other programs write to a token: nothing of this process looks at it yet.
pub fn softhsm(tokens: &[&str], prepare: impl FnOnce(&SoftHsm)) -> &'static SoftHsm {
    SOFTHSM.get_or_init(|| {
        let module = MODULES
            .iter()
            .map(PathBuf::from)
            .find(|path| path.exists())
            .expect("SoftHSM is not installed: run ./test.sh, which installs what the tests need");
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("tokens")).unwrap();
        let conf = folder.path().join("softhsm2.conf");
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n",
            folder.path().join("tokens").display()
        );
        std::fs::write(&conf, text).unwrap();
        // SAFETY: done once, before the module is loaded; Rust's own readers of the environment take the same lock,
        // and no C code of this process reads it before the module does.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var("SOFTHSM2_CONF", &conf);
        }
        for token in tokens {
            run(
                "softhsm2-util",
                &["--init-token", "--free", "--label", token, "--pin", PIN, "--so-pin", SO_PIN],
            );
        }
        let hsm = SoftHsm { folder, module };
        prepare(&hsm);
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        hsm.beside().initialize(arguments).unwrap();
        hsm
    })
}

impl SoftHsm {
    pub fn pin_file(&self, name: &str, pin: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, format!("{pin}\n")).unwrap();
        set_mode(&path, 0o600);
        path
    }

    pub fn pkcs11(&self, token: &str) -> Pkcs11Config {
        Pkcs11Config::new(&self.module, token, self.pin_file(&format!("{token}.pin"), PIN))
    }

    pub fn config(&self, token: &str) -> BackendConfig {
        BackendConfig { name: format!("hsm-{token}"), kind: BackendKind::Pkcs11(self.pkcs11(token)) }
    }

    pub async fn open(&self, token: &str) -> Arc<dyn KeyBackend> {
        backend::open(&self.config(token)).await.unwrap()
    }

    /// The module beside the backend, in this process: what it is told, the backend's sessions feel.
    pub fn beside(&self) -> Pkcs11 {
        Pkcs11::new(&self.module).unwrap()
    }

    pub fn slot(&self, token: &str) -> cryptoki::slot::Slot {
        let pkcs11 = self.beside();
        // A broken token beside the one that is looked for is not this test's concern.
        let labelled = |&slot: &_| pkcs11.get_token_info(slot).is_ok_and(|info| info.label() == token);
        pkcs11.get_slots_with_token().unwrap().into_iter().find(labelled).unwrap()
    }

    /// `pkcs11-tool`, logged in to a token.
    pub fn tool(&self, token: &str, arguments: &[&str]) -> Output {
        let module = self.module.to_str().unwrap();
        let mut all = vec!["--module", module, "--token-label", token, "--login", "--pin", PIN];
        all.extend(arguments);
        run("pkcs11-tool", &all)
    }
}

pub fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| {
        panic!("can't run {program} ({error}): run ./test.sh, which installs what the tests need")
    });
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
