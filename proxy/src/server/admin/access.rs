//! Who asks on the admin listener, and whether they may act: with the token over TCP, as the same user over the unix socket.

use std::fmt;
use std::net::SocketAddr;

use causeway_conf::Secret;
use http::StatusCode;
use subtle::ConstantTimeEq as _;

/// The peer of a unix socket, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: u32,
    pub(crate) process: Option<i32>,
    /// Whether it is the user of this process, or root.
    pub(crate) is_own_user: bool,
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Tcp(Option<SocketAddr>),
    Socket(Credentials),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(Some(address)) => address.fmt(f),
            Self::Tcp(None) => f.write_str("unknown address"),
            Self::Socket(Credentials { user, process, .. }) => {
                write!(f, "uid {user}")?;
                match process {
                    Some(process) => write!(f, ", pid {process}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Why a request may not act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    /// There is no way to act over TCP.
    #[error(
        "actions over TCP need \"admin.token\" in the configuration; without it they are possible through \"admin.socket\" alone"
    )]
    NoToken,
    #[error(
        "expected the header \"Authorization: Bearer TOKEN\", with the token in \"admin.token\""
    )]
    Missing,
    #[error("the token is not the one in \"admin.token\"")]
    WrongToken,
    #[error("only the user of the edge and root may act through the socket")]
    OtherUser,
}

impl Denied {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Missing | Self::WrongToken => StatusCode::UNAUTHORIZED,
            Self::NoToken | Self::OtherUser => StatusCode::FORBIDDEN,
        }
    }
}

/// Checks whether a request from `origin` with this `Authorization` header may act.
///
/// # Errors
///
/// [`Denied`], without any part of a token.
pub(super) fn check(
    origin: Origin,
    authorization: Option<&[u8]>,
    token: Option<&Secret>,
) -> Result<(), Denied> {
    match origin {
        Origin::Socket(peer) if peer.is_own_user => return Ok(()),
        Origin::Socket(_) => return Err(Denied::OtherUser),
        Origin::Tcp(_) => {}
    }
    let token = token.ok_or(Denied::NoToken)?;
    let given = authorization.and_then(bearer).ok_or(Denied::Missing)?;
    // In a time that depends on the lengths alone.
    match bool::from(given.ct_eq(token.expose().as_bytes())) {
        true => Ok(()),
        false => Err(Denied::WrongToken),
    }
}

/// The token of a header by RFC 6750, 2.1. The scheme is in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: Origin = Origin::Tcp(None);

    fn socket(is_own_user: bool) -> Origin {
        Origin::Socket(Credentials {
            user: 1000,
            process: Some(7),
            is_own_user,
        })
    }

    #[test]
    fn over_tcp_only_the_token_opens() {
        let token = Secret::new("0123456789abcdef".to_owned());
        let check = |given: Option<&[u8]>| super::check(TCP, given, Some(&token));
        assert_eq!(check(Some(b"Bearer 0123456789abcdef")), Ok(()));
        assert_eq!(check(Some(b"bearer  0123456789abcdef ")), Ok(()));
        for (given, denied) in [
            (None, Denied::Missing),
            (Some(&b"Bearer "[..]), Denied::Missing),
            (Some(b"Basic 0123456789abcdef"), Denied::Missing),
            (Some(b"Bearer 0123456789abcdeX"), Denied::WrongToken),
            (Some(b"Bearer 0123456789abcde"), Denied::WrongToken),
            (Some(b"Bearer 0123456789abcdef0"), Denied::WrongToken),
        ] {
            assert_eq!(check(given), Err(denied));
            assert_eq!(denied.status(), 401);
        }
    }

    #[test]
    fn without_a_token_nobody_acts_over_tcp() {
        let denied = check(TCP, Some(b"Bearer 0123456789abcdef"), None).unwrap_err();
        assert_eq!((denied, denied.status().as_u16()), (Denied::NoToken, 403));
    }

    #[test]
    fn through_the_socket_the_own_user_needs_no_token() {
        assert_eq!(check(socket(true), None, None), Ok(()));
        let denied = check(socket(false), Some(b"Bearer x"), None).unwrap_err();
        assert_eq!((denied, denied.status().as_u16()), (Denied::OtherUser, 403));
        assert_eq!(socket(true).to_string(), "uid 1000, pid 7");
    }
}
