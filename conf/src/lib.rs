//! Loads YAML configuration: positions, units, address ranges, secrets.
//!
//! Both programs read their settings through this crate, so that an error looks the same in both:
//! `conf/proxy.yaml:12:11: pools[0].backends[1].id: duplicate id "a", ...`. A program mirrors its file
//! in serde structs with `deny_unknown_fields`, loads it ([`load_with`]), and reports what serde cannot see (two
//! equal ids, a route to an unknown pool) through [`Positions::error`].
//!
//! What else both do alike with the machine that they run on is here too, and nothing of what they serve: they raise the limit of
//! open files ([`raise_open_files`]), read files that may hang ([`read_file`]), write logs without blocking
//! ([`LogWriter`]) and tell systemd what they do ([`ServiceManager`]).
//!
//! Settings and metrics that change their name stay under the old one for a version: [`RenamedSetting`], [`RenamedMetric`]. Each
//! program has one table of each.
//!
//! This crate knows no setting and no metric of either program, and no default.

mod address;
mod blocking;
mod document;
mod effective;
mod environment;
mod error;
mod log_writer;
mod metrics;
mod open_files;
mod positions;
mod print;
mod reader;
mod renamed;
mod secret;
mod service_manager;
mod signals;
mod tree;
mod units;
mod words;
mod yaml;

pub use crate::address::AddressRange;
pub use crate::blocking::{PEM_BYTES_MAX, file_metadata, folder_entries, read_file};
pub use crate::document::{Document, FILE_BYTES_MAX, load_with, parse, parse_with};
pub use crate::effective::Effective;
pub use crate::environment::Environment;
pub use crate::error::{ConfError, ConfErrors};
pub use crate::log_writer::{LogConfig, LogEvents, LogLine, LogTarget, LogWriter, capture};
pub use crate::metrics::{MetricRegistry, RenamedMetric};
pub use crate::open_files::{TooFewOpenFiles, raise_open_files};
pub use crate::positions::Positions;
pub use crate::print::{print_error, print_output, write_document};
pub use crate::renamed::{RenamedSetting, RenamedSettings};
pub use crate::secret::Secret;
pub use crate::service_manager::{ServiceManager, ServiceState};
pub use crate::signals::ignore_signals;
pub use crate::units::{BadSpan, ByteSize, Span, Timestamp};
