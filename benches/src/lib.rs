//! The load harness: real programs under load on one machine, compared in interleaved pairs.
//!
//! ```text
//! systems (what is measured) ─┐
//! load (requests)             ├─► pairs (A B A B …) ─► section (tables, targets, plots) ─► report
//! machine (cores, CPU, RSS)  ─┘
//! ```
//! Absolute figures belong to one machine on one day. What is concluded from is the ratio of two systems that took
//! turns in one run; see `docs/benchmarking.md`.

pub mod bridge;
pub mod compare;
pub mod growth;
pub mod load;
pub mod machine;
pub mod pairs;
pub mod report;
pub mod section;
pub mod systems;
pub mod table;
pub mod upstream;
