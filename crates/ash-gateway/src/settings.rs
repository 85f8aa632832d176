//! Parses the gateway's flags, environment and credentials.

use std::path::Path;

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::uri::{Authority, Scheme};

pub const ANTHROPIC: &str = "https://api.anthropic.com";
/// Maximum characters of an upstream URL. A request URL, which adds a route, may have 65,534 (crate
/// `http`).
const MAX_URL: usize = 4096;

/// A model key. Never printed, not even by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// How a key is sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Credential {
    /// In `x-api-key`.
    ApiKey(HeaderValue),
    /// In `Authorization: Bearer`, for OAuth tokens; the value is the whole header.
    Bearer(HeaderValue),
}

impl Key {
    /// Parses a key from a file or variable; ignores surrounding white space.
    ///
    /// # Errors
    /// It is empty, longer than 4096 bytes, or has bytes that a header cannot contain. The text
    /// never contains the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let key = text.trim();
        if key.is_empty() {
            return Err("the model key is empty".into());
        }
        if key.len() > 4096 || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("the model key must be one word of at most 4096 printable characters".into());
        }
        Ok(Self(key.to_owned()))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The header of the key: OAuth tokens (`sk-ant-oat...`) go in `Authorization`, API keys in
    /// `x-api-key`.
    pub fn credential(&self) -> Credential {
        let oauth = self.0.starts_with("sk-ant-oat");
        let text = if oauth { format!("Bearer {}", self.0) } else { self.0.clone() };
        let mut value = HeaderValue::from_str(&text).expect("checked by `parse`");
        value.set_sensitive(true);
        if oauth { Credential::Bearer(value) } else { Credential::ApiKey(value) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    pub scheme: Scheme,
    pub authority: Authority,
    /// Without a final slash; empty for the root.
    pub path: String,
}

impl BaseUrl {
    /// Parses `https://host[:port][/base]`.
    ///
    /// # Errors
    /// What is wrong: another scheme, a password in the URL, a query, no host.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().len() > MAX_URL {
            return Err(format!("upstream has {} characters, at most {MAX_URL} are allowed", text.trim().len()));
        }
        let uri: Uri = text.trim().parse().map_err(|error| format!("upstream is not a URL: {error}"))?;
        let wrong = |why: &str| format!("upstream {why}; write it as https://host[:port][/base], or `offline`");
        let parts = uri.into_parts();
        let scheme = parts.scheme.filter(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS);
        let scheme = scheme.ok_or_else(|| wrong("is neither http:// nor https://"))?;
        let authority = parts.authority.ok_or_else(|| wrong("has no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("contains a user or password, which argv and logs would show"));
        }
        if authority.host().is_empty() {
            return Err(wrong("has no host"));
        }
        let target = parts.path_and_query.map(|target| target.to_string()).unwrap_or_default();
        if target.contains('?') {
            return Err(wrong("has a query"));
        }
        Ok(Self { scheme, authority, path: target.trim_end_matches('/').to_owned() })
    }

    pub fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.scheme == Scheme::HTTP { 80 } else { 443 })
    }
}

impl BaseUrl {
    /// Whether a key would be sent in clear to another host.
    pub fn is_insecure(&self) -> bool {
        ash_model::sends_in_clear(&self.to_string())
    }
}

impl std::fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.path)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    Offline,
    Url(BaseUrl),
}

impl Upstream {
    /// Refuses an upstream that would receive the model key over the network in clear.
    ///
    /// # Errors
    /// Names the alternatives.
    pub fn check_secure(&self) -> Result<(), String> {
        match self {
            Upstream::Url(url) if url.is_insecure() => Err(format!(
                "upstream {url} is http:// on another host, so the model key would be sent in clear; use https://, or \
                 accept it with --allow-insecure-upstream (ASH_ALLOW_INSECURE_UPSTREAM=1)"
            )),
            _ => Ok(()),
        }
    }

    /// Order: the flag, `ANTHROPIC_BASE_URL`, Anthropic if there is a key, the offline model. An
    /// empty variable counts as unset.
    ///
    /// # Errors
    /// Those of [`BaseUrl::parse`].
    pub fn choose(flag: Option<&str>, base_url: Option<&str>, has_key: bool) -> Result<Self, String> {
        match (flag, base_url.filter(|url| !url.trim().is_empty())) {
            (Some("offline"), _) => Ok(Upstream::Offline),
            (Some(url), _) | (None, Some(url)) => Ok(Upstream::Url(BaseUrl::parse(url)?)),
            (None, None) if has_key => Ok(Upstream::Url(BaseUrl::parse(ANTHROPIC)?)),
            (None, None) => Ok(Upstream::Offline),
        }
    }
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Upstream::Offline => f.write_str("offline"),
            Upstream::Url(url) => url.fmt(f),
        }
    }
}

/// Value of the unit's `SetCredential=` without a key: systemd cannot load an optional file
/// otherwise.
const NO_CREDENTIAL: &str = "none";

/// The model key: `$CREDENTIALS_DIRECTORY/anthropic_api_key`, else the variable
/// `ANTHROPIC_API_KEY`, else none.
///
/// # Errors
/// The file exists but cannot be read, or the value is not a key.
pub fn find_key(credentials: Option<&Path>, variable: Option<&str>) -> Result<Option<Key>, String> {
    if let Some(directory) = credentials {
        let path = directory.join("anthropic_api_key");
        match std::fs::read_to_string(&path) {
            Ok(text) if text.trim() == NO_CREDENTIAL => {}
            Ok(text) => return Key::parse(&text).map(Some).map_err(|why| format!("{}: {why}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", path.display())),
        }
    }
    match variable.map(str::trim).filter(|text| !text.is_empty()) {
        Some(text) => Key::parse(text).map(Some).map_err(|why| format!("ANTHROPIC_API_KEY: {why}")),
        None => Ok(None),
    }
}

/// The headers of `ANTHROPIC_CUSTOM_HEADERS`: one `Name: value` per line; they replace the
/// sandbox's.
///
/// # Errors
/// Names the line, never its value (it may be a secret).
pub fn custom_headers(text: &str) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut headers = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |why: &str| format!("ANTHROPIC_CUSTOM_HEADERS line {}: {why}", number + 1);
        let (name, value) = line.split_once(':').ok_or_else(|| wrong("write `Name: value`"))?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong("invalid header name"))?;
        if super::forward::is_framing(&name) {
            return Err(wrong("this header belongs to the connection and cannot be set"));
        }
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| wrong("invalid header value"))?;
        value.set_sensitive(true);
        headers.push((name, value));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls() {
        let good = [
            ("https://api.anthropic.com", "https://api.anthropic.com"),
            ("https://api.anthropic.com/", "https://api.anthropic.com"),
            ("http://127.0.0.1:8080/llm/v2/", "http://127.0.0.1:8080/llm/v2"),
            ("http://[::1]:9", "http://[::1]:9"),
        ];
        for (text, shown) in good {
            assert_eq!(BaseUrl::parse(text).unwrap().to_string(), shown);
        }
        let port = |text| BaseUrl::parse(text).unwrap().port();
        assert_eq!((port("https://a"), port("http://a/x"), port("http://[::1]:9")), (443, 80, 9));
        let bad =
            ["ftp://host", "api.anthropic.com", "/v1", "https://me:pw@host", "https://host/a?b=c", "", "https://"];
        for text in bad {
            let why = BaseUrl::parse(text).unwrap_err();
            assert!(!why.contains("pw"), "{text:?}: {why}");
        }
    }

    #[test]
    fn which_upstream() {
        let shown = |flag, base, key| Upstream::choose(flag, base, key).unwrap().to_string();
        assert_eq!(shown(None, None, false), "offline");
        assert_eq!(shown(None, None, true), ANTHROPIC);
        assert_eq!(shown(None, Some("http://a"), false), "http://a");
        assert_eq!(shown(None, Some(""), true), ANTHROPIC);
        assert_eq!(shown(Some("offline"), Some("http://a"), true), "offline");
        assert_eq!(shown(Some("http://b"), Some("http://a"), true), "http://b");
    }

    #[test]
    fn keys_do_not_travel_in_clear() {
        let check = |url: &str| Upstream::choose(Some(url), None, true).unwrap().check_secure();
        for good in ["offline", "https://a.test", "http://127.0.0.1:1/x", "http://[::1]", "http://localhost:80"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["http://a.test", "http://10.0.0.1:80/x", "http://localhost.evil.test", "http://127.0.0.1.evil.test"]
        {
            let why = check(bad).unwrap_err();
            assert!(why.contains("https://") && why.contains("--allow-insecure-upstream"), "{why}");
        }
    }

    #[test]
    fn keys_travel_in_their_header_and_are_never_shown() {
        let key = Key::parse(" sk-ant-api03-x\n").unwrap();
        assert_eq!(key.credential(), Credential::ApiKey(HeaderValue::from_static("sk-ant-api03-x")));
        let oauth = Key::parse("sk-ant-oat01-x").unwrap();
        assert_eq!(oauth.credential(), Credential::Bearer(HeaderValue::from_static("Bearer sk-ant-oat01-x")));
        assert!(!format!("{key:?}{:?}", key.credential()).contains("api03"));
        for bad in ["", "  ", "two words", "new\nline"] {
            assert!(Key::parse(bad).is_err());
        }
    }

    #[test]
    fn the_credential_file_wins_over_the_variable() {
        let directory = tempfile::tempdir().unwrap();
        let find = |variable| find_key(Some(directory.path()), variable);
        assert_eq!(find(None), Ok(None));
        assert_eq!(find(Some(" ")), Ok(None));
        assert_eq!(find(Some("var")), Ok(Some(Key("var".into()))));
        std::fs::write(directory.path().join("anthropic_api_key"), "file\n").unwrap();
        assert_eq!(find(Some("var")), Ok(Some(Key("file".into()))));
        std::fs::write(directory.path().join("anthropic_api_key"), "").unwrap();
        assert!(find(Some("var")).unwrap_err().contains("empty"));
        std::fs::write(directory.path().join("anthropic_api_key"), "none").unwrap();
        assert_eq!(find(None), Ok(None), "the unit sets no key");
    }

    #[test]
    fn custom_headers_by_line() {
        let headers = custom_headers("X-Team: red\n\nx-cost: a: b\n").unwrap();
        assert_eq!(headers.len(), 2);
        assert_eq!(headers[1].1, "a: b");
        for bad in ["nothing", "a b: c", "Host: x", "content-length: 3", "x: \u{7f}"] {
            let why = custom_headers(bad).unwrap_err();
            assert!(why.contains("line 1"), "{why}");
        }
    }
}
