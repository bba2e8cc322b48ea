//! What a client got, in whichever version of HTTP.

/// The head of a response.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// Names are lower case.
    pub(crate) headers: Vec<(String, String)>,
}

/// What came for one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Got {
    /// The statuses of the interim responses, and their headers.
    pub(crate) interim: Vec<Head>,
    pub(crate) head: Option<Head>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    pub(crate) end: Ended,
    pub(crate) after: After,
    /// What came out of the tunnel.
    pub(crate) tunnel: Vec<u8>,
    /// What is no HTTP, or contradicts itself.
    pub(crate) faults: Vec<String>,
}

/// How a response ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ended {
    /// There was none.
    #[default]
    Nothing,
    /// The client went away itself.
    Left,
    Whole,
    /// Within its body, and so that it shows.
    Cut(String),
}

/// What became of the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum After {
    /// Nobody tried.
    #[default]
    Unknown,
    /// It served another request.
    Kept,
    Closed,
}

/// What a sender of a request has heard so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Heard {
    Nothing,
    /// A 100.
    GoOn,
    /// The head of the response.
    Response,
}
