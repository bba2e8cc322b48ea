//! What the nodes know of each other, kept in Redis: which are alive, and what each of them holds.
//!
//! [`registry`] renews this node's lease and keeps its users and channel members listed; [`presence`] answers who is in a channel;
//! [`control`] carries orders and questions from node to node; [`directory`] lists this node's clients by id and user; [`values`]
//! stores session values of the application.
//!
//! Invariant: everything that a node wrote disappears with its lease, by the sweep of any other node.

pub(crate) mod control;
pub(crate) mod directory;
pub(crate) mod presence;
pub(crate) mod registry;
pub(crate) mod values;
