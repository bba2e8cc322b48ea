//! The end-to-end tests: the programs as they run, with real clients, applications and Redis.
//!
//! One program, so that it is linked once and no core is idle between two of them. Tests run beside each other, as many as the
//! machine has cores: each starts what it needs on ports of its own, waits on conditions, and asserts no times. What has to have
//! the machine to itself is a program of its own beside this folder: `bench`, `chaos`, `faults`, `paths`, `siege`, `storm` and
//! `surroundings`.

mod channels;
mod edge;
mod ops;
mod relay;
