//! What `keyway dev` says once it serves.

use super::Addresses;
use crate::args::{DevArgs, Hsm, Mode, Protocol};
use crate::operator::default_data_dir;
use std::env;
use std::fmt::Write as _;
use std::path::Path;

/// The text, with commands that work as they stand.
pub(super) fn text(args: &DevArgs, addresses: &Addresses, hsm_command: Option<&str>) -> String {
    let program = program();
    let is_default = default_data_dir().is_ok_and(|default| default == addresses.data_dir);
    let data_dir = if is_default {
        String::new()
    } else {
        format!(" --data-dir {}", shell_word(&addresses.data_dir.to_string_lossy()))
    };
    let backend = match args.hsm {
        Hsm::Software => "software keystore",
        Hsm::Pkcs11 => "SoftHSM token",
    };
    let mut out = format!("Keyway is serving: zone {}, keyring {}, {backend}\n\n", args.zone, args.keyring);
    let mut row = |name: &str, value: String| {
        writeln!(out, "  {name:<14}{value}").expect("writing to a String can't fail");
    };
    let is_tcp = args.protocol == Protocol::Tcp;
    row("data", format!("{}://{}", if is_tcp { "tcp" } else { "http" }, addresses.data));
    match (&addresses.store, &args.upstream) {
        (Some(store), _) => {
            row("object store", format!("http://{store}   (what is stored, as it is stored)"));
        }
        (None, Some(upstream)) => row("upstream", upstream.clone()),
        (None, None) => {}
    }
    row("proxy admin", format!("http://{}/metrics  /readyz  /keyring", addresses.proxy_admin));
    if let Some(server) = &addresses.server_admin {
        row("server admin", format!("http://{server}/metrics  /readyz  /keyring"));
    }
    row("bridge", format!("https://{}", addresses.bridge));
    row("bridge admin", format!("http://{}/metrics  /readyz", addresses.bridge_admin));
    row("data dir", addresses.data_dir.display().to_string());

    let mut say = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    let data = addresses.data;
    if let Some(store) = &addresses.store {
        if args.mode == Mode::Json {
            say("\nStore a document (what --field selects is sealed on its way), and get it back:".into());
            say(format!(
                "  curl -X PUT -H 'Content-Type: application/json' --data-binary @FILE http://{data}/objects/a"
            ));
            say(format!("  curl http://{data}/objects/a"));
            say("\nLook at what is stored:".into());
            say(format!("  curl http://{store}/objects/a"));
        } else {
            let target = if args.mode == Mode::Pass { "sent as it is" } else { "sealed on its way" };
            say(format!("\nStore something ({target}), and get it back:"));
            say(format!("  curl -T README.md http://{data}/objects/readme"));
            say(format!("  curl http://{data}/objects/readme"));
            say("\nLook at what is stored:".into());
            say(format!("  curl -s http://{store}/objects/readme | {program} inspect -"));
        }
    } else if is_tcp {
        say(format!("\nConnect the client to {data} in place of its server."));
    } else {
        say("\nSend something through it:".into());
        say(format!("  curl http://{data}/"));
    }
    say("\nRotate the KEK while traffic flows; list keys and members:".into());
    say(format!("  {program} rotate start --watch{data_dir}"));
    say(format!("  {program} keys{data_dir}"));
    say(format!("  {program} members{data_dir}"));
    if let Some(command) = hsm_command {
        say("\nLook at the KEK in the token:".into());
        say(format!("  {command}"));
    }
    out.push_str("\nCtrl-C drains and stops.");
    out
}

/// How this program was called, so that the commands can be copied.
fn program() -> String {
    let called = env::args_os().next().unwrap_or_default();
    let called = called.to_string_lossy();
    if called.is_empty() { "keyway".into() } else { shell_word(&called) }
}

/// Quoted for a shell, where that is needed.
pub(super) fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._/:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Shows the KEK in the token, and that it is not extractable.
pub(super) fn pkcs11_tool(configuration: &Path, module: &Path, token: &str, pin_file: &Path) -> String {
    let word = |path: &Path| shell_word(&path.to_string_lossy());
    format!(
        "SOFTHSM2_CONF={} pkcs11-tool --module {} --token-label {token} --login --pin \"$(cat {})\" --list-objects --type secrkey",
        word(configuration),
        word(module),
        word(pin_file)
    )
}

#[cfg(test)]
mod tests {
    use super::shell_word;

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(shell_word("/a/b-c_1.2"), "/a/b-c_1.2");
        assert_eq!(shell_word("a b"), "'a b'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }
}
