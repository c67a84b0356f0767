//! Structured logs on stderr, as text or JSON. `RUST_LOG` wins over the configured level.

use crate::config::{Config, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// A level that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("`log.level` is `{level}`: {why}; write a level such as info, or info,logd::server=debug")]
pub struct LevelError {
    level: String,
    why: String,
}

/// Starts logging for the whole process.
///
/// # Errors
/// If the level is not a filter.
pub fn start(config: &Config) -> Result<(), LevelError> {
    let level = std::env::var("RUST_LOG").unwrap_or_else(|_| config.log_level.clone());
    let filter = EnvFilter::try_new(&level).map_err(|e| LevelError {
        level,
        why: e.to_string(),
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}
