//! The protocol's error and unsubscribe codes. Disconnect codes are in [`crate::protocol::disconnect`].

/// Why a command is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ErrorCode {
    /// Something here has failed; it may work in a moment.
    Internal = 100,
    /// A user is required, and the client is anonymous.
    Unauthorized = 101,
    /// No namespace of this name is configured.
    UnknownChannel = 102,
    /// This client may not do this.
    PermissionDenied = 103,
    /// There is no such command or method.
    MethodNotFound = 104,
    /// The client is already subscribed to the channel.
    AlreadySubscribed = 105,
    /// One more would be too many.
    LimitExceeded = 106,
    /// The command makes no sense.
    BadRequest = 107,
    /// What is asked for is not offered in this channel.
    NotAvailable = 108,
    /// The token has expired: the client gets itself a newer one and tries again.
    TokenExpired = 109,
    /// A refresh was too late.
    Expired = 110,
    /// The client is too fast; it may try again.
    TooManyRequests = 111,
    /// The position that the client asks from is not in the stream any more.
    UnrecoverablePosition = 112,
}

impl ErrorCode {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 13] = [
        Self::Internal,
        Self::Unauthorized,
        Self::UnknownChannel,
        Self::PermissionDenied,
        Self::MethodNotFound,
        Self::AlreadySubscribed,
        Self::LimitExceeded,
        Self::BadRequest,
        Self::NotAvailable,
        Self::TokenExpired,
        Self::Expired,
        Self::TooManyRequests,
        Self::UnrecoverablePosition,
    ];

    /// As text.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::Internal => "internal server error",
            Self::Unauthorized => "unauthorized",
            Self::UnknownChannel => "unknown channel",
            Self::PermissionDenied => "permission denied",
            Self::MethodNotFound => "method not found",
            Self::AlreadySubscribed => "already subscribed",
            Self::LimitExceeded => "limit exceeded",
            Self::BadRequest => "bad request",
            Self::NotAvailable => "not available",
            Self::TokenExpired => "token expired",
            Self::Expired => "expired",
            Self::TooManyRequests => "too many requests",
            Self::UnrecoverablePosition => "unrecoverable position",
        }
    }

    /// Whether the client may try the same again.
    pub(crate) fn is_temporary(self) -> bool {
        matches!(self, Self::Internal | Self::TooManyRequests)
    }
}

/// Why a subscription ends from our side. From 2500 on, clients subscribe again by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum UnsubscribeCode {
    /// The application wants it so.
    Server = 2000,
    /// Publications may be missing: the client gets `recovered: false` when it subscribes again.
    InsufficientState = 2500,
    /// It has expired without a refresh.
    Expired = 2501,
}

impl UnsubscribeCode {
    /// As text.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Server => "server unsubscribe",
            Self::InsufficientState => "insufficient state",
            Self::Expired => "subscription expired",
        }
    }
}
