//! Tables for people, JSON for programs.

use std::io::Write;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use super::CtlError;
use super::cli::Format;

#[derive(Debug)]
pub struct Output {
    format: Format,
}

impl Output {
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    pub fn json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes bytes unchanged.
    pub fn raw(&self, bytes: &[u8]) -> Result<(), CtlError> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(CtlError::Stdout)
    }

    /// Writes bytes to standard error. Ignores failures.
    pub fn aside(&self, bytes: &[u8]) {
        let _ = std::io::stderr().lock().write_all(bytes);
    }

    pub fn line(&self, text: &str) -> Result<(), CtlError> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Writes one indented JSON document.
    pub fn value(&self, value: &Value) -> Result<(), CtlError> {
        self.line(&format!("{value:#}"))
    }

    /// Writes names and values, one per line.
    pub fn fields(&self, fields: &[(&str, String)]) -> Result<(), CtlError> {
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines: Vec<String> = fields
            .iter()
            .filter(|(_, v)| !v.is_empty())
            .map(|(name, value)| format!("{name:width$}  {value}"))
            .collect();
        self.line(&lines.join("\n"))
    }

    /// Writes the objects of `rows` as a table with these columns (heading, field), or as JSON.
    pub fn rows(&self, document: &Value, list: &str, columns: &[(&str, &str)]) -> Result<(), CtlError> {
        if self.json() {
            return self.value(document);
        }
        let rows = document[list].as_array().ok_or_else(|| CtlError::Answer(format!("no list \"{list}\" in it")))?;
        if rows.is_empty() {
            return self.line(&format!("no {list}"));
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(columns.iter().map(|(heading, _)| heading.to_uppercase()));
        for row in rows {
            table.add_row(columns.iter().map(|(_, field)| cell(&row[*field])));
        }
        let text: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        self.line(&text.join("\n"))
    }
}

/// A value for a table, safe for a terminal.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => super::render::printable(text),
        other => super::render::printable(&other.to_string()),
    }
}
