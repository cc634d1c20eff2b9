//! The machine under the harness: cores, network namespace, CPU time and memory of processes.

mod describe;
mod isolate;
mod meter;
mod noise;
mod pin;

pub use describe::{Machine, describe};
pub use isolate::{Isolation, isolate};
pub use meter::{Memory, Meter, Reading, Usage};
pub use noise::{Calibration, Judgement, Noise, Steal, judge};
pub use pin::{available_cores, command, other_cores, pin_process, pin_thread};
