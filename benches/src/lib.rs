//! Micro-benchmarks are in `benches/`; the load harness will be here.
