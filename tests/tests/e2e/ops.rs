//! What operators use: command lines, configuration, documents, dashboards, packages; and the tools of these tests.

mod check;
mod command_line;
mod dashboards;
mod documents;
mod harness;
mod node_reload;
mod packaging;
mod runner;
mod service_manager;
mod takeover;
