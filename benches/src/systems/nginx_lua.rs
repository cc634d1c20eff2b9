//! nginx that seals: Lua in its worker processes calls libcrypto. What a team would build that has nginx already.

use super::nginx::{self, Server, config_tuned};
use super::process::{installed, version};
use super::{Running, Setting, System};
use anyhow::Context as _;
use std::fs;
use std::path::Path;

/// The module's file and its package.
pub(super) const PACKAGE: (&str, &str) =
    ("/usr/lib/nginx/modules/ngx_http_lua_module.so", "libnginx-mod-http-lua");
const MODULES: &str = "load_module /usr/lib/nginx/modules/ndk_http_module.so;\n\
                       load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;\n";
/// Whole bodies are sealed in memory, so they have to fit: the largest that is uploaded.
const BODY_BUFFER: &str = "72m";

pub(super) struct NginxLua;

impl System for NginxLua {
    fn name(&self) -> &'static str {
        "nginx-lua"
    }

    fn version(&self) -> anyhow::Result<String> {
        check_module()?;
        version(&installed(nginx::PACKAGE)?, &["-v"])
    }

    fn seals(&self) -> bool {
        true
    }

    fn start(&self, setting: &Setting) -> anyhow::Result<Box<dyn Running>> {
        check_module()?;
        fs::create_dir_all(&setting.dir)?;
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        fs::write(setting.dir.join("master.key"), key).context("writing the key")?;
        fs::write(setting.dir.join("seal.lua"), include_str!("seal.lua"))?;
        let dir = setting.dir.display();
        let http = format!(
            "  lua_package_path \"{dir}/?.lua;;\";\n  \
             init_by_lua_block {{ require(\"seal\").load_key(\"{dir}/master.key\") }}\n"
        );
        let location = format!(
            "      client_body_buffer_size {BODY_BUFFER};\n      proxy_request_buffering on;\n      \
             proxy_set_header Range \"\";\n      proxy_set_header If-Range \"\";\n      \
             access_by_lua_block {{ require(\"seal\").request() }}\n      \
             header_filter_by_lua_block {{ require(\"seal\").response_head() }}\n      \
             body_filter_by_lua_block {{ return require(\"seal\").response_body() }}\n"
        );
        let http2 = if setting.client_tls { " http2" } else { "" };
        Server::start(self.name(), setting, |listen| {
            config_tuned(setting, &format!("{listen}{http2}"), MODULES, &http, &location)
        })
    }
}

fn check_module() -> anyhow::Result<()> {
    let (file, package) = PACKAGE;
    anyhow::ensure!(
        Path::new(file).exists(),
        "{file} is missing: apt-get install --no-install-recommends {package}"
    );
    Ok(())
}
