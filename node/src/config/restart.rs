//! Which settings of a reloaded configuration need a restart.

use std::sync::Arc;

use crate::config::AllowedOrigins;
use crate::config::Api;
use crate::config::Channels;
use crate::config::Config;
use crate::config::Endpoint;
use crate::config::Limits;
use crate::config::Log;
use crate::config::Protocol;

impl Config {
    /// The settings that differ in `new` and that cannot change while the node runs.
    pub(crate) fn needing_restart(&self, new: &Self) -> Vec<&'static str> {
        // Each field is named, so that a new one does not compile until it is decided here.
        let Self {
            file: _,
            id,
            listen,
            admin,
            threads,
            advertise,
            zone,
            generation,
            broker,
            auth: _,
            hooks,
            registry,
            lifecycle,
            api,
            values,
            endpoints,
            channels,
            page: _,
            trusted_proxies: _,
            limits,
            tcp,
            fanout,
            drain,
            log,
            warnings: _,
        } = new;
        let differ = [
            (*id != self.id, "node.id"),
            (*advertise != self.advertise, "node.advertise"),
            (*zone != self.zone, "node.zone"),
            (*generation != self.generation, "node.generation"),
            (*listen != self.listen, "listen"),
            (*admin != self.admin, "admin"),
            (*threads != self.threads, "threads"),
            (*broker != self.broker, "broker"),
            (*hooks != self.hooks, "hooks"),
            (*registry != self.registry, "registry"),
            (*lifecycle != self.lifecycle, "lifecycle"),
            (*values != self.values, "values"),
            (
                fixed_endpoints(endpoints) != fixed_endpoints(&self.endpoints),
                "endpoints (all but allowed_origins)",
            ),
            (
                commands_sizes(endpoints) != commands_sizes(&self.endpoints),
                "endpoints.commands_size (its default depends on channels_per_client)",
            ),
            (*tcp != self.tcp, "tcp"),
            (*fanout != self.fanout, "fanout"),
            (*drain != self.drain, "drain"),
        ];
        let differ = differ.into_iter();
        let differ = differ
            .chain(api_differs(self.api.as_ref(), api.as_ref()))
            .chain(channels_differ(&self.channels, channels))
            .chain(limits_differ(&self.limits, limits))
            .chain(log_differs(&self.log, log));
        let changed = differ.filter(|(differs, _)| *differs);
        changed.map(|(_, name)| name).collect()
    }
}

type Difference = (bool, &'static str);

/// The endpoints, but for what a reload changes.
fn fixed_endpoints(endpoints: &[Arc<Endpoint>]) -> Vec<Endpoint> {
    let fixed = |endpoint: &Arc<Endpoint>| {
        let mut endpoint = Endpoint::clone(endpoint);
        endpoint.allowed_origins = AllowedOrigins::Same;
        if let Protocol::Channels(channels) = &mut endpoint.protocol {
            channels.commands_bytes_max = 0; // Named by itself.
        }
        endpoint
    };
    endpoints.iter().map(fixed).collect()
}

fn commands_sizes(endpoints: &[Arc<Endpoint>]) -> Vec<usize> {
    let size = |endpoint: &Arc<Endpoint>| match &endpoint.protocol {
        Protocol::Channels(channels) => Some(channels.commands_bytes_max),
        _ => None,
    };
    endpoints.iter().filter_map(size).collect()
}

fn api_differs(old: Option<&Api>, new: Option<&Api>) -> Vec<Difference> {
    let (Some(old), Some(new)) = (old, new) else {
        return vec![(old.is_some() != new.is_some(), "api")];
    };
    let Api {
        path,
        keys: _,
        ack,
        history_page,
    } = new;
    vec![
        (*path != old.path, "api.path"),
        (*ack != old.ack, "api.ack"),
        (*history_page != old.history_page, "api.history_page"),
    ]
}

fn channels_differ(old: &Channels, new: &Channels) -> [Difference; 1] {
    let Channels {
        namespaces: _,
        streams,
        limits: _,
    } = new;
    [(*streams != old.streams, "channels.linger")]
}

fn limits_differ(old: &Limits, new: &Limits) -> [Difference; 2] {
    let Limits {
        connections,
        memory,
        sessions: _,
        sessions_per_address: _,
        head_bytes_max: _,
        head_timeout: _,
        keepalive: _,
        body_bytes_max: _,
        body_timeout: _,
        send_timeout: _,
    } = new;
    [
        (*connections != old.connections, "limits.connections"),
        (*memory != old.memory, "limits.memory"),
    ]
}

fn log_differs(old: &Log, new: &Log) -> [Difference; 1] {
    let Log { level: _, format } = new;
    [(*format != old.format, "log.format")]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differences(old: &str, new: &str) -> Vec<&'static str> {
        let [old, new] = [old, new].map(|text| Config::parse("test", text).unwrap());
        old.needing_restart(&new)
    }

    #[test]
    fn settings_that_a_reload_applies_are_not_named() {
        let changed = "
auth: { anonymous: true, audience: [a], keys: [{ algorithm: HS256, key: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa }] }
channels: { namespaces: [{ name: a }], limits: { channels_per_client: 7 } }
limits: { sessions: 7, sessions_per_address: 7, head_timeout: 1s, body_size: 1MiB }
trusted_proxies: [10.0.0.1]
page: false
log: { level: debug }
endpoints:
  - { path: /sockjs, protocol: sockjs, allowed_origins: [\"https://a.example\"] }
  - { path: /ws, protocol: websocket, allowed_origins: [\"*\"] }
  - { path: /echo, protocol: sockjs, mode: echo, response_limit: 4KiB }
";
        assert_eq!(differences("", changed), [""; 0]);
        let keys = |key: char| format!("api: {{ keys: [{}] }}", key.to_string().repeat(16));
        assert_eq!(differences(&keys('a'), &keys('b')), [""; 0]);
        let origins = |origin: &str| {
            format!(
                "channels: {{ namespaces: [{{ name: a }}] }}\nendpoints: [{{ path: /c, mode: channels, allowed_origins: [\"{origin}\"] }}]"
            )
        };
        let (old, new) = (origins("https://a.example"), origins("https://b.example"));
        assert_eq!(differences(&old, &new), [""; 0]);
    }

    #[test]
    fn settings_that_need_a_restart_are_named() {
        let changed = "
node: { id: a, advertise: \"a:1\", zone: z, generation: 7 }
listen: 127.0.0.1:1
admin: none
threads: 1
broker: { kind: redis, url: \"redis://a\" }
hooks: { response_size: 1KiB }
registry: { renew: 1s }
api: { keys: [aaaaaaaaaaaaaaaa] }
values: { size: 1KiB }
channels: { linger: 1s }
limits: { connections: 7, memory: 1GiB }
tcp: { keepalive: 1s }
fanout: { window: 1ms }
drain: { spread: 2s }
log: { format: text }
endpoints: [{ path: /ws, protocol: websocket }]
";
        let named = [
            "node.id",
            "node.advertise",
            "node.zone",
            "node.generation",
            "listen",
            "admin",
            "threads",
            "broker",
            "hooks",
            "registry",
            "values",
            "endpoints (all but allowed_origins)",
            "tcp",
            "fanout",
            "drain",
            "api",
            "channels.linger",
            "limits.connections",
            "limits.memory",
            "log.format",
        ];
        assert_eq!(differences("", changed), named);
        let channels = |count: usize| {
            format!(
                "channels: {{ namespaces: [{{ name: a }}], limits: {{ channels_per_client: {count} }} }}\nendpoints: [{{ path: /c, mode: channels }}]"
            )
        };
        let commands_size = "endpoints.commands_size (its default depends on channels_per_client)";
        assert_eq!(differences(&channels(7), &channels(8)), [commands_size]);
        let api = |path: &str| format!("api: {{ keys: [aaaaaaaaaaaaaaaa], path: {path} }}");
        assert_eq!(differences(&api("/a"), &api("/b")), ["api.path"]);
    }
}
