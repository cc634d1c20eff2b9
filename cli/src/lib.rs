//! What the `keyway` command is made of, as a library, so that tests can use the parts.

pub mod store;
