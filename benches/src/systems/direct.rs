//! Nothing in between: what the load generator and the upstream can do by themselves.

use super::{Running, Setting, System};
use std::net::SocketAddr;

pub(super) struct Direct;

struct Upstream(SocketAddr);

impl System for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn version(&self) -> anyhow::Result<String> {
        Ok("the upstream itself".to_owned())
    }

    fn seals(&self) -> bool {
        false
    }

    fn start(&self, setting: &Setting) -> anyhow::Result<Box<dyn Running>> {
        anyhow::ensure!(
            setting.client_tls == setting.upstream_tls,
            "direct: clients meet the upstream itself, so both sides have TLS or none"
        );
        Ok(Box::new(Upstream(setting.upstream)))
    }
}

impl Running for Upstream {
    fn address(&self) -> SocketAddr {
        self.0
    }

    fn pids(&self) -> Vec<u32> {
        Vec::new()
    }

    fn log(&self) -> String {
        String::new()
    }
}
