//! Channels: subscriptions, history and presence, the server API, hooks, tokens, and Redis behind them.

mod api;
mod commands;
mod data;
mod event_source;
mod expiry;
mod handoff;
mod hook_values;
mod hooks;
mod invented_channels;
mod large_histories;
mod lifecycle;
mod prefixes;
mod presence;
mod redis_cluster;
mod redis_limits;
mod resubscribe;
mod sdk;
mod sentinel;
mod subscriptions;
mod targeted;
mod tokens;
mod user_limit;
