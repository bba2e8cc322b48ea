//! The limits that a client can reach, in the only list of them.

use http::StatusCode;

/// Defines [`Limit`] from rows of variant, setting under `limits`, and status and body of the response.
macro_rules! limits {
    ($($variant:ident: $name:literal, $status:ident, $body:literal;)*) => {
        /// A limit of the edge, named after its setting.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Limit {
            $($variant,)*
        }

        impl Limit {
            /// All of them, in the order of their rows.
            pub(crate) const ALL: [Self; [$($name),*].len()] = [$(Self::$variant,)*];

            /// The setting under `limits`, also the name in logs and metrics.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// 429 if the client exceeds its own limit (RFC 6585, 4), 503 if the edge or a backend is at its limit.
            pub(crate) fn status(self) -> StatusCode {
                match self {
                    $(Self::$variant => StatusCode::$status,)*
                }
            }

            /// The body of the response.
            pub(crate) fn body(self) -> &'static str {
                match self {
                    $(Self::$variant => $body,)*
                }
            }
        }
    };
}

limits! {
    Connections: "connections", SERVICE_UNAVAILABLE, "too many connections\n";
    ConnectionsPerAddress: "connections_per_address", TOO_MANY_REQUESTS, "too many connections\n";
    ConnectionRate: "connection_rate_per_address", TOO_MANY_REQUESTS, "too many connections\n";
    HandshakesPerAddress: "handshakes_per_address", TOO_MANY_REQUESTS, "too many handshakes\n";
    HandshakeRate: "handshake_rate_per_address", TOO_MANY_REQUESTS, "too many handshakes\n";
    Requests: "requests", SERVICE_UNAVAILABLE, "too many requests\n";
    RequestsPerAddress: "requests_per_address", TOO_MANY_REQUESTS, "too many requests\n";
    Tunnels: "tunnels", SERVICE_UNAVAILABLE, "too many tunnels\n";
    TunnelsPerAddress: "tunnels_per_address", TOO_MANY_REQUESTS, "too many tunnels\n";
    TunnelsPerBackend: "tunnels_per_backend", SERVICE_UNAVAILABLE, "too many tunnels\n";
    RequestsPerBackend: "requests_per_backend", SERVICE_UNAVAILABLE, "too many requests\n";
    BodySize: "body_size", PAYLOAD_TOO_LARGE, "request body too large\n";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_its_index_and_a_unique_name() {
        let mut names: Vec<_> = Limit::ALL.map(Limit::name).into();
        for (at, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(limit as usize, at);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Limit::ALL.len());
    }
}
