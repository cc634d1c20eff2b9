//! `keyway-bench`: the load harness.

fn main() -> anyhow::Result<()> {
    anyhow::bail!("nothing to run yet")
}
