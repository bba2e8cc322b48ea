//! `JSESSIONID`: the cookie that some load balancers stick to.

use http::HeaderMap;
use http::HeaderValue;
use http::header;

/// The value for a client without the cookie: it does not matter, a balancer appends its own.
const FIRST_VALUE: &str = "dummy";

/// Sets the cookie to the value that the client sent, else to `dummy`.
pub(crate) fn set_jsessionid(request: &HeaderMap, response: &mut HeaderMap) {
    let value = request
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|cookies| cookies.to_str().ok())
        .flat_map(|cookies| cookies.split(';'))
        .find_map(|cookie| cookie.trim().strip_prefix("JSESSIONID="))
        .unwrap_or(FIRST_VALUE);
    let cookie = HeaderValue::try_from(format!("JSESSIONID={value}; path=/"))
        .expect("it is a part of a header value");
    response.append(header::SET_COOKIE, cookie);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cookies: &[&'static str]) -> HeaderValue {
        let mut request = HeaderMap::new();
        for cookie in cookies {
            request.append(header::COOKIE, HeaderValue::from_static(cookie));
        }
        let mut response = HeaderMap::new();
        set_jsessionid(&request, &mut response);
        response[header::SET_COOKIE].clone()
    }

    #[test]
    fn a_client_without_the_cookie_gets_a_dummy() {
        assert_eq!(set(&[]), "JSESSIONID=dummy; path=/");
        assert_eq!(set(&["a=b; XJSESSIONID=c"]), "JSESSIONID=dummy; path=/");
    }

    #[test]
    fn a_client_keeps_its_own_value_wherever_it_stands() {
        assert_eq!(set(&["JSESSIONID=abc"]), "JSESSIONID=abc; path=/");
        assert_eq!(
            set(&["a=b", "c=d; JSESSIONID=x=y ; e=f"]),
            "JSESSIONID=x=y; path=/"
        );
    }
}
