//! Values without an SQLite type: ids and JSON are stored as text, unsigned numbers as integers.

use serde_json::Value;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::StoreError;
use ash_model::{Limits, RawJson, TenantId};

pub(super) fn unreadable(what: &'static str, why: impl std::fmt::Display) -> StoreError {
    StoreError::Unreadable { what, why: why.to_string() }
}

pub(super) fn id_of(row: &SqliteRow, column: &'static str) -> Result<Uuid, StoreError> {
    row.try_get::<&str, _>(column)?.parse().map_err(|why| unreadable(column, why))
}

pub(super) fn id_or_none(row: &SqliteRow, column: &'static str) -> Result<Option<Uuid>, StoreError> {
    let text: Option<&str> = row.try_get(column)?;
    text.map(str::parse).transpose().map_err(|why| unreadable(column, why))
}

pub(super) fn tenant_of(row: &SqliteRow) -> Result<TenantId, StoreError> {
    row.try_get::<String, _>("tenant")?.try_into().map_err(|why| unreadable("tenant", why))
}

/// A count or offset. SQLite's integers are signed; values below 2^63 are read back unchanged.
pub(super) fn count_of(row: &SqliteRow, column: &'static str) -> Result<u64, StoreError> {
    row.try_get::<i64, _>(column)?.try_into().map_err(|why| unreadable(column, why))
}

/// The stored form for [`count_of`]; numbers of 2^63 and above become the maximum.
pub(super) fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn json_or_none(row: &SqliteRow, column: &'static str) -> Result<Option<RawJson>, StoreError> {
    let text: Option<String> = row.try_get(column)?;
    text.map(RawJson::parse).transpose().map_err(|why| unreadable(column, why))
}

/// Stored limits, with the default for every field that did not exist when they were stored.
pub(super) fn limits_of(row: &SqliteRow) -> Result<Limits, StoreError> {
    let stored: serde_json::Map<String, Value> =
        serde_json::from_str(row.try_get("limits")?).map_err(|why| unreadable("limits", why))?;
    let mut whole = serde_json::to_value(Limits::default()).map_err(|why| unreadable("limits", why))?;
    if let Some(fields) = whole.as_object_mut() {
        fields.extend(stored);
    }
    serde_json::from_value(whole).map_err(|why| unreadable("limits", why))
}

pub(super) fn limits_text(limits: &Limits) -> String {
    serde_json::to_string(limits).expect("a struct of integers has a JSON form")
}
