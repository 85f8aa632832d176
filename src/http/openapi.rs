//! The OpenAPI description, generated from the handlers, and its page. All assets are in the
//! binary: no CDN.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::response::AppendHeaders;
use axum::routing::get;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, ResponseBuilder};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::error::{ApiError, ErrorBody};
use super::{coding, schemas};
use ash_archive::coding::Coding;

const BEARER: &str = "bearer";
const JSON: &str = "/docs/json";

/// Parts that the handlers do not define: title, security, the format of errors.
pub fn base() -> OpenApi {
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("The key in <data dir>/initial-api-key, or ASH_API_KEY"))
        .build();
    let components = ComponentsBuilder::new()
        .schema_from::<ErrorBody>()
        .security_scheme(BEARER, SecurityScheme::Http(scheme))
        .build();
    let info = InfoBuilder::new()
        .title("Ash API")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Deploy agents, open sessions, stream every message. Each session is a Claude Code process in its own \
             sandbox. Every failure is `{\"error\", \"statusCode\"}`.",
        ))
        .build();
    OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new(BEARER, Vec::<String>::new())]))
        .build()
}

/// Adds to every route an operation id, the common failures, and `{path}` for the rest of a path
/// (axum writes `{*path}`).
pub fn finish(mut api: OpenApi) -> OpenApi {
    schemas::refine(&mut api);
    let paths = std::mem::take(&mut api.paths.paths);
    for (path, mut item) in paths {
        let path = path.replace("{*", "{");
        for (method, operation) in operations(&mut item) {
            operation.operation_id = Some(operation_id(method, &path));
            schemas::refine_answers(operation);
            let mut add = |code: &str, text: &str| {
                operation.responses.responses.entry(code.to_owned()).or_insert_with(|| failure(text).into());
            };
            if path.starts_with("/api/") {
                add("401", "Missing Authorization header, or an invalid API key");
            }
            add("500", "Internal server error");
            if operation.request_body.is_some() {
                let mut add = |code: &str, text: &str| {
                    operation.responses.responses.entry(code.to_owned()).or_insert_with(|| failure(text).into());
                };
                add("400", "A field is missing or of a wrong type; the text names it");
                add("413", "The body is too large");
            }
        }
        api.paths.paths.insert(path, item);
    }
    api
}

/// The operations of a path, by method in lower case.
fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    [
        ("get", &mut item.get),
        ("post", &mut item.post),
        ("put", &mut item.put),
        ("patch", &mut item.patch),
        ("delete", &mut item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| operation.as_mut().map(|operation| (method, operation)))
}

/// `post_api_sessions_id_pause`: unique, and the function name in the published client.
fn operation_id(method: &str, path: &str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    std::iter::once(method).chain(words).collect::<Vec<_>>().join("_")
}

fn failure(text: &str) -> utoipa::openapi::Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ApiError"))).build();
    ResponseBuilder::new().description(text).content("application/json", content).build()
}

/// `/docs` and `/docs/json`. The description is kept compressed: its structures would be a fifth of
/// the memory of an idle ashd.
pub fn pages(api: &OpenApi) -> Router {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    serde_json::to_writer(&mut packed, api).expect("names and texts, into memory");
    let packed = Bytes::from(packed.finish().expect("writing into memory"));
    let plain = Arc::new(Mutex::new(Weak::new()));
    let json = move |headers: HeaderMap| {
        let answer = match coding::accepted(&headers) {
            Some(Coding::Gzip) => Ok((Some([(CONTENT_ENCODING, "gzip")]), packed.clone())),
            _ => unpacked(&plain, &packed).map(|text| (None, text)),
        };
        async move {
            answer
                .map(|(coded, body)| ([(CONTENT_TYPE, "application/json")], coded.map(AppendHeaders), body))
                .map_err(|cause| ApiError::internal("the description", &cause))
        }
    };
    let config = Config::from(JSON).try_it_out_enabled(true).display_request_duration(true).filter(true);
    Router::from(SwaggerUi::new("/docs").config(config)).route(JSON, get(json))
}

/// The description as text: one copy for all answers that are being sent.
fn unpacked(plain: &Mutex<Weak<Vec<u8>>>, packed: &[u8]) -> io::Result<Bytes> {
    struct Text(Arc<Vec<u8>>);
    impl AsRef<[u8]> for Text {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let mut plain = plain.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(text) = plain.upgrade() {
        return Ok(Bytes::from_owner(Text(text)));
    }
    let mut text = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut text)?;
    let text = Arc::new(text);
    *plain = Arc::downgrade(&text);
    Ok(Bytes::from_owner(Text(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operation_ids_are_those_of_the_published_client() {
        assert_eq!(operation_id("post", "/api/sessions/{id}/pause"), "post_api_sessions_id_pause");
        assert_eq!(operation_id("get", "/api/api-keys"), "get_api_api_keys");
        assert_eq!(operation_id("get", "/health"), "get_health");
    }
}
