//! Who may look: frames are private.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Whether a token is one of those that open the page.
type Known = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// The check before every page.
#[derive(Clone)]
pub struct Access(Option<Known>);

impl Access {
    /// For a port on loopback: whoever can use this machine may look. A request that names another host is refused:
    /// with such a name, the page of a stranger could have the browser ask this port.
    pub fn of_this_machine() -> Self {
        Access(None)
    }

    /// Whoever has a token may look: as `Authorization: Bearer TOKEN`, or as a password with any user name, for which
    /// browsers ask.
    pub fn with_token(is_known: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Self {
        Access(Some(Arc::new(is_known)))
    }

    fn admits(&self, headers: &HeaderMap) -> Result<(), Refused> {
        match &self.0 {
            None if names_this_machine(headers) => Ok(()),
            None => Err(Refused::OtherHost),
            Some(is_known) => {
                let mut given = headers.get_all(header::AUTHORIZATION).iter();
                let token = given.next().and_then(|value| token(value.as_bytes()));
                let alone = given.next().is_none();
                if alone && token.is_some_and(|token| is_known(&token)) { Ok(()) } else { Err(Refused::NoToken) }
            }
        }
    }
}

enum Refused {
    OtherHost,
    NoToken,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Refused::OtherHost => {
                let sentence = "this page is for this machine: open it as localhost or by its address\n";
                (StatusCode::MISDIRECTED_REQUEST, sentence).into_response()
            }
            Refused::NoToken => {
                let asks = [(header::WWW_AUTHENTICATE, "Basic realm=\"camlens\", charset=\"UTF-8\"")];
                let sentence = "this page wants a token: send `Authorization: Bearer TOKEN`, or give the token as the \
                                password, with any user name\n";
                (StatusCode::UNAUTHORIZED, asks, sentence).into_response()
            }
        }
    }
}

/// Middleware that answers in place of pages that may not be seen.
pub(super) async fn check(State(access): State<Access>, request: Request, next: Next) -> Response {
    match access.admits(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

/// The token of an `Authorization` header.
fn token(authorization: &[u8]) -> Option<Vec<u8>> {
    let space = authorization.iter().position(|byte| *byte == b' ')?;
    let (scheme, value) = (&authorization[..space], authorization[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(value.to_vec());
    }
    if scheme.eq_ignore_ascii_case(b"basic") {
        let pair = STANDARD.decode(value).ok()?;
        let colon = pair.iter().position(|byte| *byte == b':')?;
        return Some(pair[colon + 1..].to_vec());
    }
    None
}

/// Whether the request's host is an address, or `localhost`. Names of the Internet can be made to mean this machine.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), value.parse().expect("a header"));
        }
        headers
    }

    #[test]
    fn a_name_that_a_stranger_may_choose_is_refused() {
        let access = Access::of_this_machine();
        for host in ["localhost:9465", "127.0.0.1:9465", "[::1]:9465", "LocalHost", "10.1.2.3"] {
            assert!(access.admits(&headers(header::HOST, &[host])).is_ok(), "{host}");
        }
        for host in ["attacker.example:9465", "localhost.attacker.example", "", "[::1.attacker]"] {
            assert!(access.admits(&headers(header::HOST, &[host])).is_err(), "{host}");
        }
        assert!(access.admits(&HeaderMap::new()).is_err(), "no host at all");
    }

    #[test]
    fn a_token_comes_as_a_bearers_or_as_a_password() {
        let access = Access::with_token(|token| token == b"welcome:token");
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for value in
            ["Bearer welcome:token", "bearer  welcome:token", &basic("me:welcome:token"), &basic(":welcome:token")]
        {
            assert!(access.admits(&headers(header::AUTHORIZATION, &[value])).is_ok(), "{value}");
        }
        for value in ["Bearer other", "welcome:token", "Basic !!", &basic("welcome:token"), "Bearer "] {
            assert!(access.admits(&headers(header::AUTHORIZATION, &[value])).is_err(), "{value}");
        }
        let twice = headers(header::AUTHORIZATION, &["Bearer welcome:token"; 2]);
        assert!(access.admits(&twice).is_err() && access.admits(&HeaderMap::new()).is_err());
    }
}
