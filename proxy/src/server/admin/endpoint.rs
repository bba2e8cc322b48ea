//! The paths of the admin listener, and the actions among them.

use http::Method;

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// A page that everybody may read.
    Page,
    /// The list of tunnels.
    Tunnels,
    Action(Action),
}

/// An action on the running edge, with what its path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Drain(String),
    Ready(String),
    Maintenance(String),
    Weight(String),
    CloseTunnel(String),
    Rebalance,
    Reload,
    Upgrade,
}

impl Endpoint {
    /// What `path` leads to; `None` if to nothing.
    pub(super) fn of(path: &str) -> Option<Self> {
        let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let owned = |text: &&str| (*text).to_owned();
        let action = match segments[..] {
            ["live" | "ready" | "metrics" | "backends" | "certificates"] => {
                return Some(Self::Page);
            }
            ["tunnels"] => return Some(Self::Tunnels),
            ["rebalance"] => Action::Rebalance,
            ["reload"] => Action::Reload,
            ["upgrade"] => Action::Upgrade,
            ["tunnels", ref number, "close"] => Action::CloseTunnel(owned(number)),
            ["backends", ref id, action] => match action {
                "drain" => Action::Drain(owned(id)),
                "ready" => Action::Ready(owned(id)),
                "maintenance" => Action::Maintenance(owned(id)),
                "weight" => Action::Weight(owned(id)),
                _ => return None,
            },
            _ => return None,
        };
        Some(Self::Action(action))
    }

    /// The methods that it has, as in the `Allow` header.
    pub(super) fn allowed(&self) -> &'static str {
        match self {
            Self::Page | Self::Tunnels => "GET, HEAD",
            Self::Action(_) => "POST",
        }
    }

    pub(super) fn allows(&self, method: &Method) -> bool {
        self.allowed()
            .split(", ")
            .any(|allowed| allowed == method.as_str())
    }

    /// Its name in logs and metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Tunnels => "tunnels",
            Self::Action(Action::Drain(_)) => "drain",
            Self::Action(Action::Ready(_)) => "ready",
            Self::Action(Action::Maintenance(_)) => "maintenance",
            Self::Action(Action::Weight(_)) => "weight",
            Self::Action(Action::CloseTunnel(_)) => "close",
            Self::Action(Action::Rebalance) => "rebalance",
            Self::Action(Action::Reload) => "reload",
            Self::Action(Action::Upgrade) => "upgrade",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_a_page_an_action_or_nothing() {
        let drain = Endpoint::Action(Action::Drain("n1".to_owned()));
        for (path, endpoint) in [
            ("/ready", Some(Endpoint::Page)),
            ("/tunnels", Some(Endpoint::Tunnels)),
            ("/backends/n1/drain", Some(drain)),
            ("/reload", Some(Endpoint::Action(Action::Reload))),
            ("/", None),
            ("", None),
            ("/ready/", None),
            ("/backends/n1", None),
            ("/backends/n1/drain/", None),
            ("/backends/n1/stop", None),
            ("/tunnels/7", None),
        ] {
            assert_eq!(Endpoint::of(path), endpoint, "{path}");
        }
    }

    #[test]
    fn pages_are_read_and_actions_are_posted() {
        let page = Endpoint::of("/ready").unwrap();
        assert!(page.allows(&Method::GET) && page.allows(&Method::HEAD));
        assert!(!page.allows(&Method::POST));
        let action = Endpoint::of("/reload").unwrap();
        assert!(action.allows(&Method::POST) && !action.allows(&Method::GET));
    }
}
