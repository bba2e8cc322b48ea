//! The edge: where requests go, what clients see of backends that come and go, TLS, and the operator's actions.

mod access_log;
mod addresses;
mod admin_actions;
mod affinity;
mod app_errors;
mod balance;
mod certificates;
mod contract;
mod cookies;
mod discovery;
mod failover;
mod handoffs;
mod migration;
mod other_apps;
mod planned_stop;
mod proxy_protocol;
mod reload;
mod smuggling;
mod tls;
mod tls_tunnels;
mod upgrades;
