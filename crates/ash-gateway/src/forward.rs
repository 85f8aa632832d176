//! Rewrites the URI and headers of a sandbox's request for the model, and those of the answer for
//! the sandbox. Pure.

use hyper::Uri;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::admit::Route;
use super::mask::Secrets;
use super::settings::{BaseUrl, Credential, Key};

/// The API refuses OAuth tokens without this beta flag.
const OAUTH_BETA: &str = "oauth-2025-04-20";

/// Headers of one connection (RFC 9110, section 7.6.1) and headers that frame a message. hyper
/// writes both from what it parsed, so that no two parties can read one message differently.
pub fn is_framing(name: &HeaderName) -> bool {
    const NAMES: &[&str] = &[
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES.contains(&name.as_str())
}

/// Request headers that are not forwarded: possible credentials, and the path of the request here.
fn ends_here(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(name, "x-api-key" | "authorization" | "cookie" | "forwarded" | "via" | "accept-encoding" | "x-real-ip")
        || name.starts_with("x-forwarded-")
}

/// The upstream URI: the base's host and path, the route's path, the sandbox's query.
pub fn uri(base: &BaseUrl, route: &Route, query: Option<&str>) -> Result<Uri, hyper::http::Error> {
    let mut target = format!("{}{}", base.path, route.path());
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    Uri::builder().scheme(base.scheme.clone()).authority(base.authority.clone()).path_and_query(target).build()
}

/// The upstream headers: those of the sandbox without framing and credentials, then the real key
/// and the admin's headers, which replace the sandbox's.
pub fn request_headers(sent: &HeaderMap, key: Option<&Key>, custom: &[(HeaderName, HeaderValue)]) -> HeaderMap {
    let mut headers = without_connection(sent);
    let dropped: Vec<HeaderName> = headers.keys().filter(|name| ends_here(name)).cloned().collect();
    for name in dropped {
        headers.remove(name);
    }
    // The meter reads the answer's text, so it must not be compressed.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    match key.map(Key::credential) {
        Some(Credential::ApiKey(value)) => drop(headers.insert("x-api-key", value)),
        Some(Credential::Bearer(value)) => {
            headers.insert(header::AUTHORIZATION, value);
            let named = headers
                .get_all("anthropic-beta")
                .iter()
                .any(|value| value.to_str().is_ok_and(|list| list.split(',').any(|flag| flag.trim() == OAUTH_BETA)));
            if !named {
                headers.append("anthropic-beta", HeaderValue::from_static(OAUTH_BETA));
            }
        }
        None => {}
    }
    for (name, value) in custom {
        headers.insert(name, value.clone());
    }
    headers
}

/// The answer's headers for the sandbox: those of the model without framing, cookies, the name of
/// the owner's organisation, and values that contain a secret. Keeps the length, as the body's does
/// not change.
pub fn response_headers(got: &HeaderMap, secrets: &Secrets) -> HeaderMap {
    let mut headers = without_connection(got);
    let telling: Vec<HeaderName> = headers
        .iter()
        .filter(|(name, value)| *name != header::CONTENT_TYPE && secrets.are_in(value.as_bytes()))
        .map(|(name, _)| name.clone())
        .collect();
    for name in telling {
        headers.remove(name);
    }
    for name in ["set-cookie", "anthropic-organization-id", "alt-svc", "strict-transport-security"] {
        headers.remove(name);
    }
    let mut lengths = got.get_all(header::CONTENT_LENGTH).iter();
    if let (Some(length), None) = (lengths.next(), lengths.next()) {
        headers.insert(header::CONTENT_LENGTH, length.clone());
    }
    headers
}

/// A copy without framing headers and without those that `Connection` names.
fn without_connection(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let kept = |name: &HeaderName| !is_framing(name) && !named.iter().any(|other| other == name.as_str());
    let mut copy = HeaderMap::with_capacity(headers.len() + 2);
    for (name, value) in headers.iter().filter(|(name, _)| kept(name)) {
        copy.append(name, value.clone());
    }
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn the_uri_keeps_base_path_and_query() {
        let base = BaseUrl::parse("http://llm.test:81/anthropic/").unwrap();
        let got = uri(&base, &Route::Messages, Some("beta=true")).unwrap();
        assert_eq!(got, "http://llm.test:81/anthropic/v1/messages?beta=true");
        let got = uri(&BaseUrl::parse("https://api.test").unwrap(), &Route::Models(None), None).unwrap();
        assert_eq!(got, "https://api.test/v1/models");
    }

    #[test]
    fn credentials_are_swapped_and_framing_is_dropped() {
        let sent = map(&[
            ("x-api-key", "placeholder"),
            ("authorization", "Bearer placeholder"),
            ("cookie", "a=b"),
            ("host", "127.0.0.1:8080"),
            ("connection", "keep-alive, X-Secret-Hop"),
            ("x-secret-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("accept-encoding", "gzip, br"),
            ("x-forwarded-for", "10.0.0.1"),
            ("proxy-authorization", "Basic x"),
            ("anthropic-version", "2023-06-01"),
            ("anthropic-beta", "a"),
            ("anthropic-beta", "b"),
            ("x-team", "theirs"),
        ]);
        let custom = [(HeaderName::from_static("x-team"), HeaderValue::from_static("ours"))];
        let key = Key::parse("sk-ant-api03-real").unwrap();
        let got = request_headers(&sent, Some(&key), &custom);
        let expected = map(&[
            ("anthropic-version", "2023-06-01"),
            ("anthropic-beta", "a"),
            ("anthropic-beta", "b"),
            ("accept-encoding", "identity"),
            ("x-api-key", "sk-ant-api03-real"),
            ("x-team", "ours"),
        ]);
        assert_eq!(got, expected);
        let none = request_headers(&sent, None, &[]);
        assert!(!none.contains_key("x-api-key") && !none.contains_key("authorization"));
    }

    #[test]
    fn oauth_tokens_go_as_bearer_with_their_beta_flag() {
        let key = Key::parse("sk-ant-oat01-real").unwrap();
        let got = request_headers(&map(&[("anthropic-beta", "a")]), Some(&key), &[]);
        assert_eq!(got["authorization"], "Bearer sk-ant-oat01-real");
        let flags: Vec<_> = got.get_all("anthropic-beta").iter().collect();
        assert_eq!(flags, ["a", OAUTH_BETA]);
        let again = request_headers(&map(&[("anthropic-beta", "a, oauth-2025-04-20")]), Some(&key), &[]);
        assert_eq!(again.get_all("anthropic-beta").iter().count(), 1);
    }

    #[test]
    fn answers_lose_cookies_and_keep_their_length() {
        let got = map(&[
            ("content-type", "text/event-stream"),
            ("transfer-encoding", "chunked"),
            ("set-cookie", "session=1"),
            ("anthropic-organization-id", "org"),
            ("request-id", "req_1"),
        ]);
        let secrets = Secrets::new(std::iter::once(b"sk-ant-real".as_slice()));
        assert_eq!(
            response_headers(&got, &secrets),
            map(&[("content-type", "text/event-stream"), ("request-id", "req_1")])
        );
        let got = map(&[("content-length", "5"), ("x-key-used", "Bearer sk-ant-real")]);
        assert_eq!(response_headers(&got, &secrets), map(&[("content-length", "5")]));
    }
}
