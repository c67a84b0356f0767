//! Structured logs on stderr, as text or JSON. `RUST_LOG` wins over the level that the process was started with, and
//! what is set while it runs over both.

use crate::config::{Config, LogFormat};
use std::io::IsTerminal;
use std::sync::OnceLock;
use tracing::warn;
use tracing_subscriber::EnvFilter;

/// A level that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("`log.level` is `{level}`: {why}; write a level such as info, or info,logd::server=debug")]
pub struct LevelError {
    level: String,
    why: String,
}

/// How much is logged, to be changed. The process has one log, however many brokers it has.
struct Level {
    /// As the settings had it at the start.
    configured: String,
    /// As it was at the start.
    begun: String,
    change: Box<dyn Fn(EnvFilter) -> Result<(), tracing_subscriber::reload::Error> + Send + Sync>,
}

static LEVEL: OnceLock<Level> = OnceLock::new();

fn filter(level: &str) -> Result<EnvFilter, LevelError> {
    EnvFilter::try_new(level).map_err(|e| LevelError {
        level: level.to_owned(),
        why: e.to_string(),
    })
}

/// Starts logging for the whole process.
///
/// # Errors
/// If the level is not a filter.
pub fn start(config: &Config) -> Result<(), LevelError> {
    let begun = std::env::var("RUST_LOG").unwrap_or_else(|_| config.log_level.clone());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter(&begun)?)
        .with_writer(std::io::stderr);
    let change: Box<dyn Fn(EnvFilter) -> _ + Send + Sync> = match config.log_format {
        LogFormat::Text => {
            let lines = lines.with_ansi(std::io::stderr().is_terminal());
            let lines = lines.with_filter_reloading();
            let handle = lines.reload_handle();
            lines.init();
            Box::new(move |next| handle.reload(next))
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_filter_reloading();
            let handle = lines.reload_handle();
            lines.init();
            Box::new(move |next| handle.reload(next))
        }
    };
    let level = Level {
        configured: config.log_level.clone(),
        begun,
        change,
    };
    // There is one start.
    drop(LEVEL.set(level));
    Ok(())
}

/// Logs as much as the settings say from now on; nothing happens in a process that does not log.
pub fn change(level: &str) {
    let Some(now) = LEVEL.get() else { return };
    let wanted = if level == now.configured {
        &now.begun
    } else {
        level
    };
    let changed = filter(wanted).map_err(|e| e.to_string());
    let changed = changed.and_then(|f| (now.change)(f).map_err(|e| e.to_string()));
    if let Err(why) = changed {
        warn!(level, why, "the level of the log stays");
    }
}
