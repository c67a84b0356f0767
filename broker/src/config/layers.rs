//! Laying the sources over each other, and remembering where each value came from.

use super::raw::Raw;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Origin {
    #[default]
    Default,
    File(PathBuf),
    Env(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Env(name) => write!(f, "environment {name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Values from flags: `("kafka.addr", "--kafka-addr", "127.0.0.1:9092")`.
pub type Overrides = Vec<(&'static str, &'static str, String)>;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: {source}", path.display())]
    Syntax {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    #[error("{origin}: unknown key `{key}`{}", hint(suggestion))]
    Unknown {
        origin: Origin,
        key: String,
        suggestion: Option<String>,
    },
    #[error("{origin}: `{key}` is {found}, expected {expected}")]
    Type {
        origin: Origin,
        key: String,
        found: String,
        expected: String,
    },
    #[error("{0}")]
    Shape(Box<toml::de::Error>),
}

fn hint(suggestion: &Option<String>) -> String {
    suggestion
        .as_ref()
        .map(|s| format!("; did you mean `{s}`?"))
        .unwrap_or_default()
}

/// The merged settings and each value's origin, by dotted key.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub raw: Raw,
    pub origins: BTreeMap<String, Origin>,
}

/// Lays file, environment and flags over the defaults.
///
/// # Errors
/// A file that cannot be read or parsed, a key that does not exist, a value of the wrong type.
pub fn load(
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
    flags: Overrides,
) -> Result<Loaded, LoadError> {
    let mut table = Table::try_from(Raw::default()).unwrap_or_default();
    let mut origins: BTreeMap<String, Origin> = keys(&table)
        .into_iter()
        .map(|k| (k, Origin::Default))
        .collect();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read {
            path: path.to_owned(),
            source,
        })?;
        let over: Table = text.parse().map_err(|e| LoadError::Syntax {
            path: path.to_owned(),
            source: Box::new(e),
        })?;
        for (section, values) in over {
            lay_section(
                &mut table,
                &mut origins,
                &section,
                values,
                &Origin::File(path.to_owned()),
            )?;
        }
    }
    for (name, value) in env.filter(|(name, _)| name.starts_with("LOGD_")) {
        let key = name
            .trim_start_matches("LOGD_")
            .to_lowercase()
            .replace("__", ".");
        lay_text(&mut table, &mut origins, &key, &value, Origin::Env(name))?;
    }
    for (key, flag, value) in flags {
        lay_text(
            &mut table,
            &mut origins,
            key,
            &value,
            Origin::Flag(flag.to_owned()),
        )?;
    }
    let raw = Value::Table(table)
        .try_into()
        .map_err(|e| LoadError::Shape(Box::new(e)))?;
    Ok(Loaded { raw, origins })
}

/// Every dotted key of the defaults.
fn keys(table: &Table) -> Vec<String> {
    let sections = table.iter().filter_map(|(s, v)| Some((s, v.as_table()?)));
    sections
        .flat_map(|(s, t)| t.keys().map(move |k| format!("{s}.{k}")))
        .collect()
}

fn lay_section(
    table: &mut Table,
    origins: &mut BTreeMap<String, Origin>,
    section: &str,
    values: Value,
    origin: &Origin,
) -> Result<(), LoadError> {
    let Value::Table(values) = values else {
        return Err(unknown(origins, section, origin));
    };
    if !table.contains_key(section) {
        let suggestion = nearest(section, table.keys().map(String::as_str));
        return Err(LoadError::Unknown {
            origin: origin.clone(),
            key: section.to_owned(),
            suggestion,
        });
    }
    for (key, value) in values {
        lay(
            table,
            origins,
            &format!("{section}.{key}"),
            value,
            origin.clone(),
        )?;
    }
    Ok(())
}

fn lay(
    table: &mut Table,
    origins: &mut BTreeMap<String, Origin>,
    key: &str,
    value: Value,
    origin: Origin,
) -> Result<(), LoadError> {
    let Some(slot) = slot(table, key) else {
        return Err(unknown(origins, key, &origin));
    };
    if slot.type_str() != value.type_str() {
        let (found, expected) = (
            format!("{} ({})", value, value.type_str()),
            slot.type_str().to_owned(),
        );
        return Err(LoadError::Type {
            origin,
            key: key.to_owned(),
            found,
            expected,
        });
    }
    *slot = value;
    origins.insert(key.to_owned(), origin);
    Ok(())
}

/// A value written as text, as the environment and flags do: it takes the type the key has.
fn lay_text(
    table: &mut Table,
    origins: &mut BTreeMap<String, Origin>,
    key: &str,
    text: &str,
    origin: Origin,
) -> Result<(), LoadError> {
    let Some(slot) = slot(table, key) else {
        return Err(unknown(origins, key, &origin));
    };
    match typed(slot, key, text) {
        Ok(value) => lay(table, origins, key, value, origin),
        Err(expected) => Err(LoadError::Type {
            origin,
            key: key.to_owned(),
            found: format!("`{text}`"),
            expected: expected.to_owned(),
        }),
    }
}

/// A text as a value of the type that a key has, or what it would have to be.
fn typed(slot: &Value, key: &str, text: &str) -> Result<Value, &'static str> {
    match slot {
        Value::String(_) => Ok(Value::String(text.to_owned())),
        Value::Integer(_) => text.parse().map(Value::Integer).map_err(|_| "an integer"),
        Value::Boolean(_) => text
            .parse()
            .map(Value::Boolean)
            .map_err(|_| "true or false"),
        Value::Array(_) => {
            let items = text.split(',').map(str::trim).filter(|s| !s.is_empty());
            let item = |s: &str| match key {
                "kafka.listeners" => listener(s).ok_or(LISTENERS),
                _ => Ok(Value::String(s.to_owned())),
            };
            items.map(item).collect::<Result<_, _>>().map(Value::Array)
        }
        other => Err(other.type_str()),
    }
}

/// Why a value cannot be laid over settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverlayError {
    #[error("there is no key `{0}`")]
    Unknown(String),
    #[error("`{key}` is `{text}`, expected {expected}")]
    Type {
        key: String,
        text: String,
        expected: String,
    },
}

/// Lays values written as text over settings, by dotted key.
///
/// # Errors
/// A key that does not exist, or a value that is not of its type.
pub fn overlay<'a>(
    base: &Raw,
    values: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Raw, OverlayError> {
    let table = Table::try_from(base);
    let mut table = table.map_err(|e| misfit("settings", "what is there", &e.to_string()))?;
    let mut last = "";
    for (key, text) in values {
        last = key;
        let place = slot(&mut table, key).ok_or_else(|| OverlayError::Unknown(key.to_owned()))?;
        *place = typed(place, key, text).map_err(|expected| misfit(key, text, expected))?;
    }
    // What is of its type may still not fit: -1 where nothing can be below zero.
    let raw = Value::Table(table).try_into();
    raw.map_err(|e: toml::de::Error| misfit(last, "what was given", e.message()))
}

fn misfit(key: &str, text: &str, expected: &str) -> OverlayError {
    OverlayError::Type {
        key: key.to_owned(),
        text: text.to_owned(),
        expected: expected.to_owned(),
    }
}

/// Every value as text, by dotted key: what [`overlay`] would take.
pub fn texts(raw: &Raw) -> BTreeMap<String, String> {
    let table = Table::try_from(raw).unwrap_or_default();
    let sections = table.iter().filter_map(|(s, v)| Some((s, v.as_table()?)));
    let each = |(section, values): (&String, &Table)| {
        let text = |(key, value): (&String, &Value)| (format!("{section}.{key}"), text(value));
        values.iter().map(text).collect::<Vec<_>>()
    };
    sections.flat_map(each).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Table(listener) => {
            let field = |key: &str| listener.get(key).map(text).unwrap_or_default();
            match (field("name"), field("addr"), field("advertise")) {
                (name, addr, advertise) if advertise.is_empty() => format!("{name}={addr}"),
                (name, addr, advertise) => format!("{name}={addr}/{advertise}"),
            }
        }
        other => other.to_string(),
    }
}

const LISTENERS: &str =
    "listeners separated by commas, each NAME=HOST:PORT or NAME=HOST:PORT/ADVERTISED_HOST:PORT";

/// A listener as text: `inside=0.0.0.0:9092/kafka-1:9092`.
fn listener(text: &str) -> Option<Value> {
    let (name, addresses) = text.split_once('=')?;
    let (addr, advertise) = addresses.split_once('/').unwrap_or((addresses, ""));
    if name.trim().is_empty() || addr.trim().is_empty() {
        return None;
    }
    let fields = [("name", name), ("addr", addr), ("advertise", advertise)];
    let fields = fields.map(|(key, value)| (key.to_owned(), value.trim().into()));
    Some(Value::Table(Table::from_iter(fields)))
}

fn slot<'t>(table: &'t mut Table, key: &str) -> Option<&'t mut Value> {
    let (section, name) = key.split_once('.')?;
    table.get_mut(section)?.as_table_mut()?.get_mut(name)
}

fn unknown(origins: &BTreeMap<String, Origin>, key: &str, origin: &Origin) -> LoadError {
    LoadError::Unknown {
        origin: origin.clone(),
        key: key.to_owned(),
        suggestion: nearest(key, origins.keys().map(String::as_str)),
    }
}

/// The candidate within two fifths of its length in edits, if there is one.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    let scored = candidates.map(|c| (edits(word, c), c));
    let (distance, best) = scored.min()?;
    (distance <= (best.len() * 2 / 5).max(1)).then(|| best.to_owned())
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect::<Vec<_>>()
            .into_iter()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let f = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(f.path(), text).unwrap();
        f
    }

    #[test]
    fn flags_beat_the_environment_beats_the_file_beats_the_default() {
        let f = file(
            "[kafka]\naddr = \"1.1.1.1:1\"\nfetch_max_bytes = 3000\n[admin]\naddr = \"1.1.1.1:2\"\n",
        );
        let flags = vec![("kafka.addr", "--kafka-addr", "3.3.3.3:3".to_owned())];
        let loaded = load(
            Some(f.path()),
            env(&[
                ("LOGD_KAFKA__ADDR", "2.2.2.2:2"),
                ("LOGD_ADMIN__ADDR", "2.2.2.2:9"),
            ]),
            flags,
        )
        .unwrap();
        assert_eq!(loaded.raw.kafka.addr, "3.3.3.3:3");
        assert_eq!(loaded.raw.admin.addr, "2.2.2.2:9");
        assert_eq!(loaded.raw.kafka.fetch_max_bytes, 3000);
        assert_eq!(
            loaded.origins["kafka.addr"],
            Origin::Flag("--kafka-addr".into())
        );
        assert_eq!(
            loaded.origins["admin.addr"],
            Origin::Env("LOGD_ADMIN__ADDR".into())
        );
        assert_eq!(loaded.origins["rpc.addr"], Origin::Default);
    }

    #[test]
    fn an_unknown_key_is_an_error_with_a_suggestion() {
        let f = file("[kafka]\nadress = \"x\"\n");
        let error = load(Some(f.path()), env(&[]), vec![])
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with("unknown key `kafka.adress`; did you mean `kafka.addr`?"),
            "{error}"
        );
        let error = load(None, env(&[("LOGD_STORAGE__RESERVE_BYTE", "1")]), vec![])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("did you mean `storage.reserve_bytes`?"),
            "{error}"
        );
        let f = file("[storag]\nreserve_bytes = 1\n");
        let error = load(Some(f.path()), env(&[]), vec![])
            .unwrap_err()
            .to_string();
        assert!(error.contains("did you mean `storage`?"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_type_says_what_was_expected() {
        let error = load(
            None,
            env(&[("LOGD_TOPICS__DEFAULT_PARTITIONS", "many")]),
            vec![],
        )
        .unwrap_err()
        .to_string();
        assert_eq!(
            error,
            "environment LOGD_TOPICS__DEFAULT_PARTITIONS: `topics.default_partitions` is `many`, expected an integer"
        );
    }

    #[test]
    fn every_value_has_a_text_that_is_taken_back() {
        let raw = Raw::default();
        let all = texts(&raw);
        assert_eq!(all["kafka.fetch_max_bytes"], "57671680");
        assert_eq!(all["topics.auto_create"], "true");
        let pairs = all.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        assert_eq!(overlay(&raw, pairs).unwrap(), raw);
        let text = "in=127.0.0.1:1,out=127.0.0.1:2/example.org:9";
        let listeners = overlay(&raw, [("kafka.listeners", text)]).unwrap();
        assert_eq!(texts(&listeners)["kafka.listeners"], text);
    }

    #[test]
    fn what_is_laid_over_must_be_a_key_and_of_its_type() {
        let refused = |key, text| overlay(&Raw::default(), [(key, text)]).unwrap_err();
        assert!(matches!(refused("no.key", "1"), OverlayError::Unknown(_)));
        for (key, text) in [
            ("limits.max_connections", "many"),
            ("limits.max_connections", "-1"),
            ("topics.default_replication_factor", "70000"),
            ("topics.auto_create", "yes"),
        ] {
            let error = refused(key, text);
            assert!(matches!(error, OverlayError::Type { .. }), "{error}");
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn several_listeners_have_names() {
        let f = file(
            "[[kafka.listeners]]\nname = \"in\"\naddr = \"127.0.0.1:1\"\n[[kafka.listeners]]\nname = \"out\"\naddr = \"127.0.0.1:2\"\nadvertise = \"example.org:9\"\n",
        );
        let loaded = load(Some(f.path()), env(&[]), vec![]).unwrap();
        assert_eq!(loaded.raw.kafka.listeners.len(), 2);
        // The same by environment, which containers are configured with.
        let text = "in=127.0.0.1:1, out=127.0.0.1:2/example.org:9";
        let by_env = load(None, env(&[("LOGD_KAFKA__LISTENERS", text)]), vec![]).unwrap();
        assert_eq!(by_env.raw.kafka, loaded.raw.kafka);
        for wrong in ["127.0.0.1:1", "=127.0.0.1:1", "in=", "in=/x:1"] {
            let error = load(None, env(&[("LOGD_KAFKA__LISTENERS", wrong)]), vec![]);
            let error = error.unwrap_err().to_string();
            assert!(error.contains("each NAME=HOST:PORT"), "{wrong}: {error}");
        }
    }
}
