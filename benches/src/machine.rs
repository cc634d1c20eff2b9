//! The machine under the harness: cores, network namespace, CPU time and memory of processes.
