use std::time::Duration;

use expect_test::expect;

use super::*;

/// The rendered text without what differs from run to run and without zero buckets' noise.
fn stable(metrics: &Metrics) -> String {
    let volatile = ["resident_memory", "open_files"];
    metrics
        .render()
        .lines()
        .filter(|line| !volatile.iter().any(|name| line.contains(name)))
        .filter(|line| !line.starts_with("# HELP") && !line.contains("_bucket"))
        .fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn everything_that_is_counted_has_its_line() {
    let metrics = Metrics::new();
    let _connection = metrics.connection();
    let _client = metrics.client(Transport::Websocket);
    let _session = metrics.session();
    metrics.refused(RefuseReason::Origin);
    metrics.dropped(DropReason::QueueExpired, 3);
    metrics.disconnected(Disconnect::SLOW);
    metrics.broker_connected(Side::Publish);
    metrics.broker_lost(Side::Subscribe);
    metrics.probe_seen(Duration::from_millis(1));
    metrics.hook(Hook::Rpc, HookOutcome::Failed);
    metrics.recovered(Recovered::Hit);
    metrics.reloaded(Reload::Applied);
    expect![[r##"
        # TYPE causeway_node_connections gauge
        causeway_node_connections 1
        # TYPE causeway_node_connections_accepted counter
        causeway_node_connections_accepted_total 1
        # TYPE causeway_node_connections_refused counter
        causeway_node_connections_refused_total{reason="origin"} 1
        # TYPE causeway_node_clients gauge
        causeway_node_clients{transport="websocket"} 1
        # TYPE causeway_node_sessions gauge
        causeway_node_sessions 1
        # TYPE causeway_node_messages_received counter
        causeway_node_messages_received_total 0
        # TYPE causeway_node_commands_refused counter
        causeway_node_commands_refused_total 0
        # TYPE causeway_node_publications_published counter
        causeway_node_publications_published_total 0
        # TYPE causeway_node_publications_received counter
        causeway_node_publications_received_total 0
        # TYPE causeway_node_deliveries counter
        causeway_node_deliveries_total 0
        # TYPE causeway_node_dropped counter
        causeway_node_dropped_total{reason="publish_queue_expired"} 3
        # TYPE causeway_node_disconnects counter
        causeway_node_disconnects_total{code="3008",reason="slow"} 1
        # TYPE causeway_node_log_lines_dropped counter
        causeway_node_log_lines_dropped_total 0
        # TYPE causeway_node_broker_ready gauge
        causeway_node_broker_ready 0
        # TYPE causeway_node_broker_connects counter
        causeway_node_broker_connects_total{side="publish"} 1
        # TYPE causeway_node_broker_losses counter
        causeway_node_broker_losses_total{side="subscribe"} 1
        # TYPE causeway_node_broker_primary_changes counter
        causeway_node_broker_primary_changes_total 0
        # TYPE causeway_node_broker_slots_uncovered gauge
        causeway_node_broker_slots_uncovered 0
        # TYPE causeway_node_broker_gaps counter
        causeway_node_broker_gaps_total 0
        # TYPE causeway_node_subscriptions_wanted gauge
        causeway_node_subscriptions_wanted 0
        # TYPE causeway_node_subscriptions gauge
        causeway_node_subscriptions 0
        # TYPE causeway_node_feeds gauge
        causeway_node_feeds 0
        # TYPE causeway_node_channel_streams gauge
        causeway_node_channel_streams 0
        # TYPE causeway_node_gaps_noticed counter
        causeway_node_gaps_noticed_total 0
        # TYPE causeway_node_gaps_filled counter
        causeway_node_gaps_filled_total 0
        # TYPE causeway_node_gaps_announced counter
        causeway_node_gaps_announced_total 0
        # TYPE causeway_node_recoveries counter
        causeway_node_recoveries_total{result="hit"} 1
        # TYPE causeway_node_registry_leases counter
        causeway_node_registry_leases_total 0
        # TYPE causeway_node_registry_lapses counter
        causeway_node_registry_lapses_total 0
        # TYPE causeway_node_registry_swept counter
        causeway_node_registry_swept_total 0
        # TYPE causeway_node_registry_ready gauge
        causeway_node_registry_ready 0
        # TYPE causeway_node_registry_same_id gauge
        causeway_node_registry_same_id 0
        # TYPE causeway_node_registry_repaired counter
        causeway_node_registry_repaired_total 0
        # TYPE causeway_node_redis_full gauge
        causeway_node_redis_full 0
        # TYPE causeway_node_lifecycle_delivered counter
        causeway_node_lifecycle_delivered_total 0
        # TYPE causeway_node_lifecycle_lost counter
        causeway_node_lifecycle_lost_total 0
        # TYPE causeway_node_lifecycle_dropped counter
        causeway_node_lifecycle_dropped_total 0
        # TYPE causeway_node_lifecycle_waiting gauge
        causeway_node_lifecycle_waiting 0
        # TYPE causeway_node_lane_bytes gauge
        causeway_node_lane_bytes 0
        # TYPE causeway_node_publish_queue_bytes gauge
        causeway_node_publish_queue_bytes 0
        # TYPE causeway_node_lane_publications gauge
        causeway_node_lane_publications 0
        # TYPE causeway_node_publish_queue_publications gauge
        causeway_node_publish_queue_publications 0
        # TYPE causeway_node_probe_seconds histogram
        # UNIT causeway_node_probe_seconds seconds
        causeway_node_probe_seconds_sum 0.001
        causeway_node_probe_seconds_count 1
        # TYPE causeway_node_probe_age_seconds gauge
        # UNIT causeway_node_probe_age_seconds seconds
        causeway_node_probe_age_seconds 0.0
        # TYPE causeway_node_probes_missed counter
        causeway_node_probes_missed_total 0
        # TYPE causeway_node_outbox_bytes gauge
        causeway_node_outbox_bytes 0
        # TYPE causeway_node_lag_seconds histogram
        # UNIT causeway_node_lag_seconds seconds
        causeway_node_lag_seconds_sum 0.0
        causeway_node_lag_seconds_count 0
        # TYPE causeway_node_hooks counter
        causeway_node_hooks_total{hook="rpc",outcome="failed"} 1
        # TYPE causeway_node_reloads counter
        causeway_node_reloads_total{result="applied"} 1
        # TYPE causeway_node_handoffs_sent counter
        causeway_node_handoffs_sent_total 0
        # TYPE causeway_node_handoffs_received counter
        causeway_node_handoffs_received_total 0
        # TYPE causeway_node_handoffs_kept counter
        causeway_node_handoffs_kept_total 0
        # TYPE causeway_node_handoffs_lost counter
        causeway_node_handoffs_lost_total 0
        # EOF
    "##]]
    .assert_eq(&stable(&metrics));
}

#[test]
fn a_dropped_guard_is_counted_no_longer() {
    let metrics = Metrics::new();
    drop(metrics.client(Transport::SockjsHttp));
    let line = "causeway_node_clients{transport=\"sockjs_http\"} 0\n";
    assert!(metrics.render().contains(line), "{}", metrics.render());
}

#[test]
fn memory_and_open_files_of_the_process_are_among_them() {
    let text = Metrics::new().render();
    assert!(
        text.contains("causeway_node_resident_memory_bytes "),
        "{text}"
    );
    assert!(text.contains("causeway_node_open_files "), "{text}");
}
