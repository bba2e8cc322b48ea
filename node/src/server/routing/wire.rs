//! The requests of a SockJS session over HTTP, by the last part of their path.

use crate::config::Sockjs;
use crate::config::SockjsTransport;

/// What a request does with a session, and in which format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// One frame.
    Xhr,
    /// Frames.
    XhrStreaming,
    /// To send messages; for all that receive without `jsonp`.
    XhrSend,
    /// Frames as server-sent events.
    Eventsource,
    /// Frames as scripts of a page.
    Htmlfile,
    /// One frame as a script.
    Jsonp,
    /// To send messages by a form.
    JsonpSend,
}

impl Wire {
    /// The wire with this name.
    pub(crate) fn find(name: &str) -> Option<Self> {
        Some(match name {
            "xhr" => Self::Xhr,
            "xhr_streaming" => Self::XhrStreaming,
            "xhr_send" => Self::XhrSend,
            "eventsource" => Self::Eventsource,
            "htmlfile" => Self::Htmlfile,
            "jsonp" => Self::Jsonp,
            "jsonp_send" => Self::JsonpSend,
            _ => return None,
        })
    }

    /// Whether one of the endpoint's transports needs it.
    pub(crate) fn is_served(self, sockjs: &Sockjs) -> bool {
        let transports: &[SockjsTransport] = match self {
            Self::Xhr => &[SockjsTransport::Xhr],
            Self::XhrStreaming => &[SockjsTransport::XhrStreaming],
            Self::XhrSend => &[
                SockjsTransport::Xhr,
                SockjsTransport::XhrStreaming,
                SockjsTransport::Eventsource,
                SockjsTransport::Htmlfile,
            ],
            Self::Eventsource => &[SockjsTransport::Eventsource],
            Self::Htmlfile => &[SockjsTransport::Htmlfile],
            Self::Jsonp | Self::JsonpSend => &[SockjsTransport::Jsonp],
        };
        transports.iter().any(|transport| sockjs.allows(*transport))
    }

    /// The methods that are allowed, as in an `Allow` header.
    pub(crate) fn allow(self) -> &'static str {
        match self {
            Self::Xhr | Self::XhrStreaming | Self::XhrSend => "OPTIONS, POST",
            Self::Eventsource | Self::Htmlfile | Self::Jsonp => "GET",
            Self::JsonpSend => "POST",
        }
    }

    /// Whether a page of another origin may send the request and read the response, for which browsers require CORS headers.
    /// Other responses are loaded as scripts or pages.
    pub(crate) fn is_cross_origin(self) -> bool {
        match self {
            Self::Xhr | Self::XhrStreaming | Self::XhrSend | Self::Eventsource => true,
            Self::Htmlfile | Self::Jsonp | Self::JsonpSend => false,
        }
    }
}
