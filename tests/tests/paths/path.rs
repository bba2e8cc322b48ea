//! The paths that a request can take through the edge, and how it is written on each of them.

use std::fmt;

/// Which program serves it, over what, in which version of HTTP, and in how many segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Path {
    /// HTTP/1.1: head and body in one segment.
    One,
    /// HTTP/1.1: the body is sent after the edge has read the head. Without a body the head itself is in two segments.
    Two,
    /// HTTP/1.1: the edge reads each of the first bytes on its own.
    Bytes,
    /// HTTP/1.1: `Expect: 100-continue`, and the body behind the 100.
    Expect,
    /// HTTP/1.0 in one segment.
    Old,
    /// HTTP/1.0 in two.
    OldTwo,
    /// HTTP/1.1 over TLS, in one record.
    Tls,
    /// HTTP/1.1 over TLS, in two records, read one after the other.
    TlsTwo,
    /// HTTP/2 over TLS.
    H2,
    /// HTTP/1.1 to the edge in a Pingora server.
    Plugin,
    /// The same in two segments.
    PluginTwo,
    /// HTTP/2 over TLS to the edge in a Pingora server.
    PluginH2,
}

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Program {
    Edge,
    Plugin,
    /// The plugin example has one kind of listener: this one speaks TLS.
    PluginTls,
}

impl Program {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Plugin => "plugin",
            Self::PluginTls => "plugin with TLS",
        }
    }
}

/// How the bytes of a request of HTTP/1 are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    One,
    Two,
    Bytes,
}

/// Where an ordinary request goes.
pub(crate) const ALL: [Path; 12] = [
    Path::One,
    Path::Two,
    Path::Bytes,
    Path::Expect,
    Path::Old,
    Path::OldTwo,
    Path::Tls,
    Path::TlsTwo,
    Path::H2,
    Path::Plugin,
    Path::PluginTwo,
    Path::PluginH2,
];

/// Where an upgrade goes; over HTTP/2 it is an extended CONNECT (RFC 8441).
pub(crate) const UPGRADES: [Path; 8] = [
    Path::One,
    Path::Two,
    Path::Bytes,
    Path::Tls,
    Path::TlsTwo,
    Path::H2,
    Path::Plugin,
    Path::PluginTwo,
];

pub(crate) const HTTP2: &[Path] = &[Path::H2, Path::PluginH2];
pub(crate) const HTTP10: &[Path] = &[Path::Old, Path::OldTwo];
pub(crate) const EXPECT: &[Path] = &[Path::Expect];

/// Where Pingora reads requests and carries bodies: what it does otherwise is in the documentation of `Plugin`.
pub(crate) const PINGORA: &[Path] = &[Path::Plugin, Path::PluginTwo, Path::PluginH2];
pub(crate) const PINGORA_HTTP1: &[Path] = &[Path::Plugin, Path::PluginTwo];

impl Path {
    pub(crate) fn program(self) -> Program {
        match self {
            Self::Plugin | Self::PluginTwo => Program::Plugin,
            Self::PluginH2 => Program::PluginTls,
            _ => Program::Edge,
        }
    }

    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::TlsTwo) || self.is_h2()
    }

    pub(crate) fn is_h2(self) -> bool {
        HTTP2.contains(&self)
    }

    pub(crate) fn is_http10(self) -> bool {
        HTTP10.contains(&self)
    }

    pub(crate) fn cut(self) -> Cut {
        match self {
            Self::Two | Self::OldTwo | Self::TlsTwo | Self::PluginTwo => Cut::Two,
            Self::Bytes => Cut::Bytes,
            _ => Cut::One,
        }
    }

    pub(crate) fn scheme(self) -> &'static str {
        if self.is_tls() { "https" } else { "http" }
    }

    /// The port that `scheme` has by default.
    pub(crate) fn port(self) -> &'static str {
        if self.is_tls() { "443" } else { "80" }
    }

    /// The head of its column.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::One => "1.1",
            Self::Two => "1.1/2",
            Self::Bytes => "bytes",
            Self::Expect => "expect",
            Self::Old => "1.0",
            Self::OldTwo => "1.0/2",
            Self::Tls => "tls",
            Self::TlsTwo => "tls/2",
            Self::H2 => "h2",
            Self::Plugin => "plugin",
            Self::PluginTwo => "plug/2",
            Self::PluginH2 => "plugh2",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
