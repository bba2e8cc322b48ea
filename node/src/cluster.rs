//! What the nodes know of each other, kept in Redis: which are alive, and which users and channel members each has.
//!
//! [`registry`] renews this node's lease and registers its users and channel members; [`presence`] lists the members of a
//! channel; [`control`] sends control commands and requests from node to node; [`directory`] finds this node's clients by id and
//! user; [`values`] stores session values for the application.
//!
//! Invariant: once a node's lease has lapsed, another node removes everything registered under it.

pub(crate) mod control;
pub(crate) mod directory;
pub(crate) mod presence;
pub(crate) mod registry;
pub(crate) mod values;
