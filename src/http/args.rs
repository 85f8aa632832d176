//! Path and query parameters. Errors name the parameter.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::str::FromStr;

use axum::extract::{FromRequestParts, MatchedPath, Query};
use axum::http::request::Parts;
use uuid::Uuid;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use crate::sessions::{Own, SessionError};
use crate::store::Window;
use ash_model::{TenantId, names};

/// The session of the route, which must belong to the caller's tenant; otherwise 404. Handlers
/// extract it before query and body, so another tenant does not learn whether its request is
/// well-formed.
#[derive(Clone, Debug)]
pub struct OwnSession(pub Own);

impl FromRequestParts<AppState> for OwnSession {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let Id(id) = Id::from_request_parts(parts, state).await?;
        let id = id.ok_or(SessionError::NotFound)?;
        let own = state.sessions.own(&caller.tenant, id).await?;
        tracing::Span::current().record("ASH_SESSION", tracing::field::display(id));
        Ok(Self(own))
    }
}

/// The `{id}` of any other route. `None` when it is not a UUID.
#[derive(Clone, Copy, Debug)]
pub struct Id(pub Option<Uuid>);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = segment(parts, state, "id").await.ok();
        Ok(Self(id.and_then(|Segment(id)| Uuid::try_parse(&id).ok())))
    }
}

/// The `{name}` of an agent's route.
#[derive(Clone, Debug)]
pub struct AgentName(pub String);

impl<S: Send + Sync> FromRequestParts<S> for AgentName {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        segment(parts, state, "name").await.map(|Segment(name)| Self(name))
    }
}

/// A version of an agent: its number or its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionName {
    Number(i64),
    Id(Uuid),
}

impl VersionName {
    /// A number from 1, or a UUID; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse() {
            return (number >= 1).then_some(Self::Number(number));
        }
        Uuid::try_parse(text).ok().map(Self::Id)
    }
}

/// The `{number}` of a version's route: its number or its id. Anything else is 404.
#[derive(Clone, Copy, Debug)]
pub struct VersionNumber(pub i64);

impl FromRequestParts<AppState> for VersionNumber {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let AgentName(agent) = AgentName::from_request_parts(parts, state).await?;
        let Segment(name) = segment(parts, state, "number").await?;
        let number = match VersionName::parse(&name) {
            Some(VersionName::Number(number)) => Some(number),
            Some(VersionName::Id(id)) => state.store.version_number(&caller.tenant, &agent, id).await?,
            None => None,
        };
        number.map(Self).ok_or_else(|| ApiError::not_found("Version not found"))
    }
}

/// The `{id}` of a tenant's route.
#[derive(Clone, Debug)]
pub struct TenantName(pub TenantId);

impl<S: Send + Sync> FromRequestParts<S> for TenantName {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Segment(name) = segment(parts, state, "id").await?;
        name.parse().map(Self).map_err(ApiError::bad_request)
    }
}

/// The rest of a path below `/files/`, percent-decoded: any bytes.
#[derive(Clone, Debug)]
pub struct FilePath(pub Vec<u8>);

impl<S: Send + Sync> FromRequestParts<S> for FilePath {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let route = MatchedPath::from_request_parts(parts, state).await;
        let route = route.map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
        raw_segment(route.as_str(), parts.uri.path(), "path").map(Self).ok_or_else(|| no_segment("path"))
    }
}

struct Segment(String);

async fn segment<S: Send + Sync>(parts: &mut Parts, state: &S, name: &str) -> Result<Segment, ApiError> {
    let route = MatchedPath::from_request_parts(parts, state).await;
    let route = route.map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
    let bytes = raw_segment(route.as_str(), parts.uri.path(), name).ok_or_else(|| no_segment(name))?;
    let text = String::from_utf8(bytes);
    text.map(Segment).map_err(|_| ApiError::bad_request(format!("URL path: {name} is not UTF-8")))
}

fn no_segment(name: &str) -> ApiError {
    ApiError::bad_request(format!("URL path: {name} is missing"))
}

/// The percent-decoded part of a URL's path that the route calls `{name}`, or `{*name}` for the
/// rest. A file name may have any bytes, which must not prevent reading the session's id.
fn raw_segment(route: &str, path: &str, name: &str) -> Option<Vec<u8>> {
    let mut rest = path;
    for part in route.split('/') {
        let called = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
        if called.and_then(|called| called.strip_prefix('*')) == Some(name) {
            return Some(names::unescaped(rest.as_bytes()));
        }
        let (this, after) = rest.split_once('/').unwrap_or((rest, ""));
        if called == Some(name) {
            return Some(names::unescaped(this.as_bytes()));
        }
        rest = after;
    }
    None
}

/// The query string. Unknown parameters are ignored; the last of a repeated parameter counts.
#[derive(Clone, Debug, Default)]
pub struct Args(BTreeMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Args {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|rejection| ApiError::bad_request(format!("query string: {}", rejection.body_text())))?;
        Ok(Self(pairs.into_iter().collect()))
    }
}

impl Args {
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// An integer within `range`; `None` when it is absent.
    pub fn int(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let wrong = || {
            let (low, high) = (range.start(), range.end());
            let bounds = if *high == i64::MAX { format!("{low} or more") } else { format!("from {low} to {high}") };
            ApiError::bad_request(format!("{name} must be an integer, {bounds}, not \"{text}\""))
        };
        let value = text.parse().map_err(|_| wrong())?;
        if range.contains(&value) { Ok(Some(value)) } else { Err(wrong()) }
    }

    /// `limit` (1 to 1000), `after` and `before` (sequence numbers) and `order` of a history.
    pub fn window(&self, default: u32) -> Result<Window, ApiError> {
        Ok(Window {
            limit: self.int("limit", 1..=1000)?.and_then(|n| u32::try_from(n).ok()).unwrap_or(default),
            after: self.int("after", 0..=i64::MAX)?.unwrap_or(0),
            before: self.int("before", 1..=i64::MAX)?,
            newest_first: self.one_of("order", &["asc", "desc"])? == Some("desc"),
        })
    }

    pub fn flag(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        match self.text(name) {
            None => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(text) => Err(ApiError::bad_request(format!("{name} must be true or false, not \"{text}\""))),
        }
    }

    /// A value of a type that parses its own words.
    pub fn word<T: FromStr<Err = String>>(&self, name: &str) -> Result<Option<T>, ApiError> {
        self.text(name)
            .map(|text| text.parse().map_err(|why| ApiError::bad_request(format!("{name}: {why}"))))
            .transpose()
    }

    /// One of `words`.
    pub fn one_of(&self, name: &str, words: &[&'static str]) -> Result<Option<&'static str>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        words
            .iter()
            .copied()
            .find(|word| *word == text)
            .map(Some)
            .ok_or_else(|| ApiError::bad_request(format!("{name} must be one of {}, not \"{text}\"", words.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ash_model::SessionStatus;

    fn args(query: &[(&str, &str)]) -> Args {
        Args(query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn segments_are_bytes() {
        let route = "/api/sessions/{id}/files/{*path}";
        for (path, name, want) in [
            ("/api/sessions/1-2/files/caf%E9", "id", Some(&b"1-2"[..])),
            ("/api/sessions/1-2/files/caf%E9", "path", Some(b"caf\xe9")),
            ("/api/sessions/1-2/files/a%2Fb/c%20d%", "path", Some(b"a/b/c d%")),
            ("/api/sessions/%FF/files/x", "id", Some(b"\xff")),
            ("/api/sessions/1-2/files/x", "name", None),
        ] {
            assert_eq!(raw_segment(route, path, name).as_deref(), want, "{path} {name}");
        }
    }

    #[test]
    fn integers_keep_their_bounds() {
        for (text, fits) in
            [("1", true), ("1000", true), ("0", false), ("1001", false), ("-1", false), ("1.5", false), ("", false)]
        {
            assert_eq!(args(&[("limit", text)]).int("limit", 1..=1000).is_ok(), fits, "{text}");
        }
        assert_eq!(args(&[]).int("limit", 1..=1000).unwrap(), None);
        let error = args(&[("limit", "x")]).int("limit", 1..=1000).unwrap_err();
        assert_eq!(error.text(), "limit must be an integer, from 1 to 1000, not \"x\"");
        let error = args(&[("after", "-2")]).int("after", 0..=i64::MAX).unwrap_err();
        assert_eq!(error.text(), "after must be an integer, 0 or more, not \"-2\"");
    }

    #[test]
    fn a_version_has_two_names() {
        let id = Uuid::from_u128(7);
        assert_eq!(VersionName::parse("3"), Some(VersionName::Number(3)));
        assert_eq!(VersionName::parse(&id.to_string()), Some(VersionName::Id(id)));
        for other in ["", "0", "-1", "x", "1.0", "v1"] {
            assert_eq!(VersionName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn words_name_the_parameter() {
        let error = args(&[("status", "running")]).word::<SessionStatus>("status").unwrap_err();
        assert!(error.text().starts_with("status: \"running\" is not a session status"), "{}", error.text());
        let error = args(&[("format", "xml")]).one_of("format", &["raw", "json"]).unwrap_err();
        assert_eq!(error.text(), "format must be one of raw, json, not \"xml\"");
        assert!(args(&[("includeTotal", "yes")]).flag("includeTotal", false).is_err());
    }
}
