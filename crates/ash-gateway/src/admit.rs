//! Decides by the head of a request whether a sandbox may send it. Pure.
//!
//! ```text
//!  absolute-form or CONNECT -> 400   unknown path -> 404   wrong method -> 405   wrong token -> 401
//!  HEAD|GET /api/hello -> answered here, no token needed     everything else -> forwarded
//! ```

use hyper::header::{AUTHORIZATION, HeaderMap};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use subtle::ConstantTimeEq;

/// An admitted request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Claude Code's test of the network. The gateway answers it.
    Hello,
    /// `POST /v1/messages`; the only route that costs tokens.
    Messages,
    CountTokens,
    /// `GET /v1/models` or `GET /v1/models/{id}`.
    Models(Option<String>),
}

impl Route {
    /// The upstream path, without the query.
    pub fn path(&self) -> String {
        match self {
            Route::Hello => "/api/hello".into(),
            Route::Messages => "/v1/messages".into(),
            Route::CountTokens => "/v1/messages/count_tokens".into(),
            Route::Models(None) => "/v1/models".into(),
            Route::Models(Some(id)) => format!("/v1/models/{id}"),
        }
    }
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: &'static str,
}

/// Decides on a request by its head.
///
/// # Errors
/// 400, 401, 404 or 405, with the text for the sandbox.
pub fn admit(request: &Parts, token: &str) -> Result<Route, Refusal> {
    let refuse = |status, message| Err(Refusal { status, message });
    if request.method == Method::CONNECT || request.uri.authority().is_some() {
        return refuse(
            StatusCode::BAD_REQUEST,
            "this is the model gateway, not a proxy: request a path such as /v1/messages, without a host",
        );
    }
    let Some(route) = route(request.uri.path()) else {
        return refuse(
            StatusCode::NOT_FOUND,
            "unknown path; the gateway serves /v1/messages, /v1/messages/count_tokens, /v1/models and /api/hello",
        );
    };
    let method = &request.method;
    let fits = match route {
        Route::Hello => method == Method::GET || method == Method::HEAD,
        Route::Messages | Route::CountTokens => method == Method::POST,
        Route::Models(_) => method == Method::GET,
    };
    if !fits {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "this path does not support this method");
    }
    if route != Route::Hello && !token_matches(&request.headers, token) {
        return refuse(
            StatusCode::UNAUTHORIZED,
            "the token is not this session's; use ANTHROPIC_API_KEY from the session's environment",
        );
    }
    Ok(route)
}

fn route(path: &str) -> Option<Route> {
    match path {
        "/api/hello" => Some(Route::Hello),
        "/v1/messages" => Some(Route::Messages),
        "/v1/messages/count_tokens" => Some(Route::CountTokens),
        "/v1/models" => Some(Route::Models(None)),
        _ => {
            let id = path.strip_prefix("/v1/models/")?;
            // Model ids have only these bytes; dot segments, escapes and slashes never go upstream.
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@' | b':');
            let named = !id.is_empty() && id.len() <= 128 && !id.starts_with('.') && id.bytes().all(plain);
            named.then(|| Route::Models(Some(id.to_owned())))
        }
    }
}

/// Whether a header that clients use for keys has the token. Compares in constant time, so that the
/// response time reveals nothing about a guess.
fn token_matches(headers: &HeaderMap, token: &str) -> bool {
    let given = headers.get_all("x-api-key").iter().map(|value| value.as_bytes());
    let bearer = headers.get_all(AUTHORIZATION).iter().filter_map(|value| {
        let (scheme, rest) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(rest)
    });
    !token.is_empty() && given.chain(bearer).any(|key| key.ct_eq(token.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_table_of_what_is_let_through() {
        let key: &[(&str, &str)] = &[("x-api-key", "s3cret")];
        let bearer: &[(&str, &str)] = &[("authorization", "bearer s3cret")];
        let other: &[(&str, &str)] = &[("x-api-key", "s3cre7")];
        let model = || Route::Models(Some("claude-sonnet-4-5".into()));
        type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], Result<Route, u16>);
        let table: &[Row<'_>] = &[
            ("POST", "/v1/messages?beta=true", key, Ok(Route::Messages)),
            ("POST", "/v1/messages", bearer, Ok(Route::Messages)),
            ("POST", "/v1/messages/count_tokens", key, Ok(Route::CountTokens)),
            ("GET", "/v1/models", key, Ok(Route::Models(None))),
            ("GET", "/v1/models/claude-sonnet-4-5", key, Ok(model())),
            ("HEAD", "/api/hello", &[], Ok(Route::Hello)),
            ("GET", "/api/hello", other, Ok(Route::Hello)),
            ("POST", "/v1/messages", other, Err(401)),
            ("POST", "/v1/messages", &[], Err(401)),
            ("POST", "/v1/messages", &[("x-api-key", "")], Err(401)),
            ("POST", "/v1/messages", &[("x-api-key", "s3cretx")], Err(401)),
            ("POST", "/v1/messages", &[("authorization", "Basic s3cret")], Err(401)),
            ("GET", "/v1/messages", key, Err(405)),
            ("POST", "/api/hello", key, Err(405)),
            ("GET", "/", key, Err(404)),
            ("GET", "/v1/files", key, Err(404)),
            ("POST", "/v1/messages/batches", key, Err(404)),
            ("POST", "/v1/messages/../organizations", key, Err(404)),
            ("GET", "/v1/models/../files", key, Err(404)),
            ("GET", "/v1/models/..", key, Err(404)),
            ("GET", "/v1/models/a%2fb", key, Err(404)),
            ("POST", "//evil.test/v1/messages", key, Err(404)),
            ("POST", "http://evil.test/v1/messages", key, Err(400)),
            ("CONNECT", "evil.test:443", key, Err(400)),
            ("OPTIONS", "*", key, Err(404)),
        ];
        for (method, uri, headers, expected) in table {
            let got = admit(&parts(method, uri, headers), "s3cret").map_err(|refusal| refusal.status.as_u16());
            assert_eq!(&got, expected, "{method} {uri} {headers:?}");
        }
    }

    #[test]
    fn an_empty_token_opens_nothing() {
        let request = parts("POST", "/v1/messages", &[("x-api-key", "")]);
        assert_eq!(admit(&request, "").unwrap_err().status, StatusCode::UNAUTHORIZED);
    }
}
