//! What surrounds the programs fails: logs that cannot be written, descriptors, ports and memory that run out, files that hang,
//! signals that are not meant for them. Traffic, health checks, signals and drains go on, and what was lost is counted and said.

#[path = "surroundings/descriptors.rs"]
mod descriptors;
#[path = "surroundings/disk.rs"]
mod disk;
#[path = "surroundings/files.rs"]
mod files;
#[path = "surroundings/full.rs"]
mod full;
#[path = "surroundings/logs.rs"]
mod logs;
#[path = "surroundings/names.rs"]
mod names;
#[path = "surroundings/ports.rs"]
mod ports;
#[path = "surroundings/random.rs"]
mod random;
#[path = "surroundings/start.rs"]
mod start;
#[path = "surroundings/subject.rs"]
mod subject;
#[path = "surroundings/tasks.rs"]
mod tasks;
