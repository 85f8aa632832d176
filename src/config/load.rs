//! Loads a [`Config`] from files and environment.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{self, Draft, Given};
use super::reload::Source;
use super::{Config, Upstream, check};

/// The default file. It need not exist.
pub const DEFAULT_FILE: &str = "/etc/ashd/ashd.toml";

const ANTHROPIC: &str = "https://api.anthropic.com";

/// All errors of the configuration, one line each.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// One file: its name for errors, and its text.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub name: String,
    pub text: String,
}

impl Config {
    /// Reads `path` (which must then exist) or `/etc/ashd/ashd.toml` (which need not), then the
    /// drop-ins `<file>.d/*.toml` by name, then the environment. Later values replace earlier ones,
    /// key by key.
    ///
    /// # Errors
    /// All errors at once: each with file, line and key (or the variable), what was expected, and
    /// the nearest valid name of an unknown key.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigErrors> {
        Source::here(path)?.read()
    }
}

/// The environment variables that [`keys`] contains.
pub(super) fn environment() -> Result<BTreeMap<String, String>, ConfigErrors> {
    let mut wrong = Vec::new();
    let mut environment = BTreeMap::new();
    for name in keys::all().filter_map(|key| key.env) {
        match std::env::var(name) {
            Ok(value) => drop(environment.insert(name.to_owned(), value)),
            Err(std::env::VarError::NotPresent) => {}
            Err(std::env::VarError::NotUnicode(_)) => wrong.push(format!("variable {name}: not UTF-8")),
        }
    }
    if wrong.is_empty() { Ok(environment) } else { Err(ConfigErrors(wrong)) }
}

pub(super) fn read(file: &Path, required: bool) -> Result<Vec<Layer>, String> {
    let mut files = Vec::new();
    let there = file.try_exists().map_err(|error| format!("{}: {error}", file.display()))?;
    if there || required {
        files.push(file.to_owned());
    }
    let drop_ins = PathBuf::from(format!("{}.d", file.display()));
    match std::fs::read_dir(&drop_ins) {
        Ok(entries) => {
            let mut found: Vec<PathBuf> = entries
                .map(|entry| entry.map(|e| e.path()))
                .collect::<Result<_, _>>()
                .map_err(|error| format!("{}: {error}", drop_ins.display()))?;
            found.retain(|path| path.extension().is_some_and(|e| e == "toml"));
            found.sort();
            files.extend(found);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("{}: {error}", drop_ins.display())),
    }
    let layer = |path: PathBuf| match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Layer { name: path.display().to_string(), text }),
        Err(error) => Err(format!("{}: {error}", path.display())),
    };
    files.into_iter().map(layer).collect()
}

/// Syntax errors shown per file; the rest are counted.
const SYNTAX_ERRORS: usize = 20;
/// Longest unknown name that is compared with the known ones and shown in full, in bytes.
const LONG_NAME: usize = 100;

/// Merges all layers; reads nothing. An empty variable counts as unset.
pub(super) fn merge(layers: &[Layer], environment: &BTreeMap<String, String>) -> Result<Config, ConfigErrors> {
    let mut draft = Draft::default();
    let mut wrong = Vec::new();
    for layer in layers {
        let (table, errors) = DeTable::parse_recoverable(&layer.text);
        for error in errors.iter().take(SYNTAX_ERRORS) {
            wrong.push(at(layer, error.span().unwrap_or(0..0), error.message().trim()));
        }
        if errors.len() > SYNTAX_ERRORS {
            wrong.push(format!("{}: {} more errors of syntax", layer.name, errors.len() - SYNTAX_ERRORS));
        }
        if errors.is_empty() {
            walk(layer, "", table.get_ref(), &mut draft, &mut wrong);
        }
    }
    for key in keys::all() {
        let Some((name, value)) = key.env.and_then(|name| Some((name, environment.get(name)?))) else { continue };
        let given = Given::Variable(value);
        if !value.trim().is_empty() && key.apply(&mut draft, &given).is_none() {
            wrong.push(format!("variable {name}: expected {}, found {}", key.expects, given.shown(key.secret)));
        }
    }
    let mut config = draft.config;
    config.gateway.upstream = match (draft.upstream, draft.base_url) {
        (Some(said), _) => said,
        (None, Some(url)) => Upstream::Url(url),
        (None, None) if config.gateway.api_key.is_some() => Upstream::Url(ANTHROPIC.to_owned()),
        (None, None) => Upstream::Offline,
    };
    wrong.extend(check::check(&config));
    if wrong.is_empty() { Ok(config) } else { Err(ConfigErrors(wrong)) }
}

fn walk(layer: &Layer, prefix: &str, table: &DeTable<'_>, draft: &mut Draft, wrong: &mut Vec<String>) {
    for (word, value) in table {
        let name = if prefix.is_empty() { word.get_ref().to_string() } else { format!("{prefix}.{}", word.get_ref()) };
        let section = format!("{name}.");
        if let Some(key) = keys::all().find(|key| key.name == name) {
            let given = Given::Toml(value.get_ref());
            if key.apply(draft, &given).is_none() {
                let text = format!("{name}: expected {}, found {}", key.expects, given.shown(key.secret));
                wrong.push(at(layer, value.span(), &text));
            }
        } else if keys::all().any(|key| key.name.starts_with(&section)) {
            match value.get_ref() {
                DeValue::Table(inner) => walk(layer, &name, inner, draft, wrong),
                other => {
                    let text =
                        format!("{name}: expected a section [{name}], found a value of type {}", other.type_str());
                    wrong.push(at(layer, value.span(), &text));
                }
            }
        } else {
            wrong.push(at(layer, word.span(), &unknown(prefix, &name)));
        }
    }
}

fn at(layer: &Layer, span: Range<usize>, text: &str) -> String {
    let before = layer.text.get(..span.start.min(layer.text.len())).unwrap_or(&layer.text);
    format!("{}:{}: {text}", layer.name, before.matches('\n').count() + 1)
}

/// Suggests the nearest name if it is close enough, else lists the names of the section.
fn unknown(prefix: &str, name: &str) -> String {
    if name.len() > LONG_NAME {
        let beginning = &name[..name.floor_char_boundary(LONG_NAME)];
        return format!("unknown key \"{beginning}...\"; see ashd.toml(5) for the valid ones");
    }
    let sections = keys::all().filter_map(|key| key.name.rsplit_once('.').map(|(section, _)| section));
    let last = name.rsplit('.').next().unwrap_or(name);
    let nearest = keys::all()
        .map(|key| key.name)
        .chain(sections)
        .map(|known| {
            let same_word = known.rsplit('.').next() == Some(last);
            let distance = strsim::damerau_levenshtein(known, name);
            (if same_word { distance.min(1) } else { distance }, known)
        })
        .min();
    if let Some((distance, known)) = nearest
        && distance <= name.len().div_ceil(3).min(4)
    {
        return format!("unknown key \"{name}\"; the nearest valid key is \"{known}\"");
    }
    let depth = |key: &str| key.rsplit_once('.').map_or("", |(section, _)| section).to_owned();
    let known: Vec<&str> = keys::all().map(|key| key.name).filter(|key| depth(key) == prefix).collect();
    match prefix {
        "" => format!("unknown key \"{name}\"; see `ashd --help` or ashd.toml(5) for the valid ones"),
        _ => format!("unknown key \"{name}\"; [{prefix}] knows {}", known.join(", ")),
    }
}
