//! The key side: KEKs in HSMs, DEKs in a catalog, keyrings pushed to the fleet, rotations that resume.

pub mod backend;
pub mod config;
