//! Work for relays: clients that share a channel.

use anyhow::Result;

use crate::bench::Options;
use crate::bench::contender::Running;
use crate::bench::load::{Load, Plan, Publishing};
use crate::bench::report::Figure;
use crate::bench::scenario::{FRESH_BYTES, LARGE_BYTES, Memory, SMALL_BYTES, Scenario, Work};

/// Clients that take turns in publishing.
const PUBLISHERS: usize = 8;

/// Reads memory of clients on one channel, before and after a large message reached all of them.
pub(super) fn channel(
    server: &Running,
    scenario: Scenario,
    options: &Options,
) -> Result<Vec<Figure>> {
    let clients = scenario.clients(options);
    let memory = Memory::new(server)?;
    let mut load = Load::new(Plan::websocket(server.address, "/ws"))?;
    load.open(clients)?;
    load.spread(FRESH_BYTES)?;
    load.idle(options.settle())?;
    let fresh = memory.per_client(clients)?;
    load.spread(LARGE_BYTES)?;
    load.idle(options.settle())?;
    let used = memory.per_client(clients)?;
    Ok(vec![
        Figure::kilobytes("fresh", fresh),
        Figure::kilobytes("after 60 KB to each", used),
    ])
}

/// Publishes at a fixed rate and counts every delivery.
pub(super) fn fan_out(
    server: &Running,
    scenario: Scenario,
    options: &Options,
) -> Result<Vec<Figure>> {
    let clients = scenario.clients(options);
    let mut load = Load::new(Plan::websocket(server.address, "/ws"))?;
    load.open(clients)?;
    load.spread(FRESH_BYTES)?;
    let mut publishing = Publishing {
        publishers: PUBLISHERS.min(clients),
        per_second: scenario.messages_per_second(),
        payload_bytes: SMALL_BYTES,
        duration: options.warm_up(),
    };
    load.publish(&publishing)?;
    publishing.duration = options.duration();
    let work = Work::start(server)?;
    let published = load.publish(&publishing)?;
    let cpu = work.per_unit(published.deliveries)?;
    let due = published.messages * clients as u64;
    let lost = due.saturating_sub(published.deliveries) as f64 / due.max(1) as f64;
    Ok(vec![
        Figure::microseconds("CPU of a delivery", cpu),
        Figure::milliseconds("p50", published.latency.quantile_ms(0.5)),
        Figure::milliseconds("p99", published.latency.quantile_ms(0.99)),
        Figure::milliseconds("p99.9", published.latency.quantile_ms(0.999)),
        Figure::count("deliveries", published.deliveries as f64),
        Figure::percent("lost", lost * 100.0),
        Figure::count("clients lost", load.lost() as f64),
    ])
}
