//! Loads YAML configuration: positions, units, address ranges, secrets.
//!
//! Both programs read their settings through this crate, so that an error looks the same in both:
//! `conf/proxy.yaml:12:11: pools[0].backends[1].id: duplicate id "a", ...`. A program mirrors its file
//! in serde structs with `deny_unknown_fields`, [`load`]s it, and reports what serde cannot see (two
//! equal ids, a route to an unknown pool) through [`Positions::error`].
//!
//! What else both do before they read a setting is here too: they raise the limit of open files.
//!
//! This crate knows no setting of either program, and no default.

mod address;
mod document;
mod error;
mod open_files;
mod positions;
mod secret;
mod units;

pub use crate::address::AddressRange;
pub use crate::document::{Document, FILE_BYTES_MAX, load, parse};
pub use crate::error::{ConfError, ConfErrors};
pub use crate::open_files::raise_open_files;
pub use crate::positions::Positions;
pub use crate::secret::Secret;
pub use crate::units::{ByteSize, Span, Timestamp};
