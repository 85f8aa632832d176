//! The HTTP client: JSON requests, byte streams and errors.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::CtlError;
use super::unix::{self, UnixConnector};

/// Maximum bytes of a JSON answer; streams and files have no such limit.
const MAX_JSON: usize = 256 << 20;

/// A client of one daemon, with its key. It keeps connections and reuses them.
#[derive(Clone, Debug)]
pub struct Client {
    http: Http,
    /// Prefix of request paths.
    base: String,
    /// The URL that errors show.
    url: String,
    key: Option<String>,
}

#[derive(Clone, Debug)]
enum Http {
    Tcp(HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>),
    Unix(HyperClient<UnixConnector, Full<Bytes>>),
}

impl Client {
    /// # Errors
    /// [`CtlError::Usage`] when the URL is not `http://`, `https://` or `unix:/path`.
    pub fn new(url: &str, key: Option<String>) -> Result<Self, CtlError> {
        if let Some(path) = unix::path_of(url) {
            if !path.is_absolute() {
                return Err(CtlError::Usage(format!("--url \"{url}\": unix: needs the absolute path of a socket")));
            }
            let http = Http::Unix(HyperClient::builder(TokioExecutor::new()).build(UnixConnector(path)));
            return Ok(Self { http, base: "http://ashd".to_owned(), url: url.to_owned(), key });
        }
        let base = url.trim_end_matches('/').to_owned();
        let parsed: Uri = base.parse().map_err(|e| CtlError::Usage(format!("--url \"{url}\": {e}")))?;
        let secure = match parsed.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(CtlError::Usage(format!("--url \"{url}\" must begin with http://, https:// or unix:/"))),
        };
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(Duration::from_secs(5)));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        // Loading the system's certificates takes milliseconds; a plain connection does not need
        // them.
        if secure {
            return Self::with_native_roots(tcp, base, key);
        }
        let tls = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|e| CtlError::Usage(format!("TLS: {e}")))?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let https =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        Ok(Self::over(https, base, key))
    }

    fn over(https: HttpsConnector<HttpConnector>, base: String, key: Option<String>) -> Self {
        let http = Http::Tcp(HyperClient::builder(TokioExecutor::new()).build(https));
        Self { http, url: base.clone(), base, key }
    }

    fn with_native_roots(tcp: HttpConnector, base: String, key: Option<String>) -> Result<Self, CtlError> {
        let https = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(|e| CtlError::Usage(format!("cannot load the system's certificates: {e}")))?
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Self::over(https, base, key))
    }

    /// Sends a request and returns the answer, whatever its status.
    ///
    /// # Errors
    /// [`CtlError::Unreachable`], or [`CtlError::Usage`] for an invalid path.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Response<Incoming>, CtlError> {
        let uri = format!("{}{path}", self.base);
        let mut request = Request::builder().method(method).uri(&uri);
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let body = match body {
            None => Full::default(),
            Some(json) => {
                request = request.header("content-type", "application/json");
                Full::new(Bytes::from(json.to_string()))
            }
        };
        let request = request.body(body).map_err(|e| CtlError::Usage(format!("{uri}: {e}")))?;
        let answer = match &self.http {
            Http::Tcp(http) => http.request(request).await,
            Http::Unix(http) => http.request(request).await,
        };
        answer.map_err(|e| CtlError::Unreachable { url: self.url.clone(), reason: innermost(&e) })
    }

    /// As `send`, but a status of 400 or above is an error.
    ///
    /// # Errors
    /// As `send`; [`CtlError::Unauthorised`] for 401; [`CtlError::Refused`] otherwise.
    pub async fn open(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Response<Incoming>, CtlError> {
        let answer = self.send(method, path, body).await?;
        let status = answer.status().as_u16();
        if status < 400 {
            return Ok(answer);
        }
        let bytes = self.collect(answer).await?;
        let text = serde_json::from_slice::<Value>(&bytes)
            .ok()
            .and_then(|json| json["error"].as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&bytes).chars().take(300).collect());
        Err(if status == 401 { CtlError::Unauthorised(text) } else { CtlError::Refused { status, error: text } })
    }

    /// # Errors
    /// As [`Client::open`]; [`CtlError::Answer`] when the body is not JSON.
    pub async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, CtlError> {
        let answer = self.open(method, path, body).await?;
        let bytes = self.collect(answer).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|e| CtlError::Answer(format!("{path} is not JSON: {e}")))
    }

    /// # Errors
    /// As [`Client::json`].
    pub async fn get(&self, path: &str) -> Result<Value, CtlError> {
        self.json(Method::GET, path, None).await
    }

    /// # Errors
    /// As [`Client::json`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, CtlError> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// # Errors
    /// As [`Client::json`].
    pub async fn delete(&self, path: &str) -> Result<Value, CtlError> {
        self.json(Method::DELETE, path, None).await
    }

    async fn collect(&self, answer: Response<Incoming>) -> Result<Bytes, CtlError> {
        let body = http_body_util::Limited::new(answer.into_body(), MAX_JSON);
        let whole = body.collect().await.map_err(|e| CtlError::Unreachable {
            url: self.url.clone(),
            reason: format!("the connection was lost during the answer: {e}"),
        })?;
        Ok(whole.to_bytes())
    }
}

/// Percent-encodes one segment of a path, or with `slashes` a whole relative path.
pub fn encode(text: &str, slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || (slashes && byte == b'/');
        if plain {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The innermost cause, which a user can act on ("Connection refused").
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded() {
        assert_eq!(encode("a b/ü?.txt", true), "a%20b/%C3%BC%3F.txt");
        assert_eq!(encode("a/b", false), "a%2Fb");
    }

    #[test]
    fn only_http_urls_are_taken() {
        assert!(Client::new("http://127.0.0.1:1/", None).is_ok());
        assert!(Client::new("unix:/run/x.sock", None).is_ok() && Client::new("unix:///run/x.sock", None).is_ok());
        for bad in ["ftp://x", "localhost:4100", "", "http://a b", "unix:x.sock", "unix:"] {
            assert!(matches!(Client::new(bad, None), Err(CtlError::Usage(_))), "{bad}");
        }
    }
}
