//! The scheme of a request: `http` or `https`.

/// The scheme with which the client reached the edge, or a trusted proxy before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// [`Scheme::default_port`] as text.
    pub(crate) fn default_port_text(self) -> &'static str {
        match self {
            Self::Http => "80",
            Self::Https => "443",
        }
    }

    /// The port of a URL of this scheme without an explicit port.
    pub(crate) fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}
