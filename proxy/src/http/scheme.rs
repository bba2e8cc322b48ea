//! The scheme that a client used: `http` or `https`.

/// How the client reached us, or the trusted proxy before us.
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

    /// The port that a URL of this scheme means when it names none.
    pub(crate) fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}
