//! Hurts the processes of a cluster and brings them back as they were started: same command line, environment and
//! folder, so that a broker needs no script of its own to be measured.

use crate::broker::Target;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A stop that takes longer than this is no graceful stop.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Kill,
    Terminate,
    Stop,
    Continue,
}

impl Signal {
    fn flag(self) -> &'static str {
        match self {
            Signal::Kill => "-KILL",
            Signal::Terminate => "-TERM",
            Signal::Stop => "-STOP",
            Signal::Continue => "-CONT",
        }
    }
}

/// How a process was started.
struct Recipe {
    command: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: PathBuf,
}

/// The processes of one target. Those started here end with it.
pub(crate) struct Processes {
    recipes: Vec<Recipe>,
    children: BTreeMap<usize, Child>,
}

impl Processes {
    pub fn of(target: &Target) -> Result<Processes> {
        let recipes = target.pids.iter().map(|pid| recipe(*pid));
        Ok(Processes {
            recipes: recipes.collect::<Result<_>>()?,
            children: BTreeMap::new(),
        })
    }

    pub fn signal(&self, target: &Target, nth: usize, signal: Signal) -> Result<()> {
        let pid = target.pids[nth].to_string();
        let status = Command::new("kill").args([signal.flag(), &pid]).status()?;
        if !status.success() {
            bail!("{}: kill {} {pid}: {status}", target.name, signal.flag());
        }
        Ok(())
    }

    /// Waits until a process that was told to end is gone.
    pub fn gone(&mut self, target: &Target, nth: usize) -> Result<()> {
        if let Some(mut child) = self.children.remove(&nth) {
            child.wait()?;
            return Ok(());
        }
        let begun = Instant::now();
        while is_alive(target.pids[nth]) {
            if begun.elapsed() > STOP_DEADLINE {
                bail!("{}: {} does not end", target.name, target.pids[nth]);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Starts a process that is gone as it was started before.
    pub fn revive(&mut self, target: &mut Target, nth: usize) -> Result<()> {
        let recipe = &self.recipes[nth];
        let [program, arguments @ ..] = recipe.command.as_slice() else {
            bail!("{}: an empty command line", target.name)
        };
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(recipe.environment.iter().map(|(k, v)| (k, v)))
            .current_dir(&recipe.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| program.display().to_string())?;
        target.pids[nth] = child.id();
        self.children.insert(nth, child);
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for (nth, child) in std::mem::take(&mut self.children) {
            eprintln!("broker {nth} runs on as process {}", child.id());
        }
    }
}

fn recipe(pid: u32) -> Result<Recipe> {
    let read = |what: &str| {
        let path = format!("/proc/{pid}/{what}");
        std::fs::read(&path).with_context(|| path.clone())
    };
    let words = |bytes: Vec<u8>| -> Vec<OsString> {
        let words = bytes.split(|b| *b == 0).filter(|word| !word.is_empty());
        words.map(|w| OsString::from_vec(w.to_vec())).collect()
    };
    let pair = |word: OsString| {
        let bytes = word.into_vec();
        let at = bytes.iter().position(|b| *b == b'=')?;
        let (name, value) = (bytes[..at].to_vec(), bytes[at + 1..].to_vec());
        Some((OsString::from_vec(name), OsString::from_vec(value)))
    };
    let environment = words(read("environ")?).into_iter().filter_map(pair);
    Ok(Recipe {
        command: words(read("cmdline")?),
        environment: environment.collect(),
        folder: std::fs::read_link(format!("/proc/{pid}/cwd"))?,
    })
}

/// A process that ended and that nobody has waited for is dead too.
fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    stat.rsplit(')')
        .next()
        .map(str::trim_start)
        .and_then(|s| s.chars().next())
        != Some('Z')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Until exec the child is still this program; during it, it has no words at all.
    fn until_it_sleeps(pid: u32) {
        let sleeps = |r: Recipe| r.command.first().is_some_and(|word| word == "sleep");
        while !recipe(pid).is_ok_and(sleeps) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_process_that_was_killed_comes_back_as_it_was() {
        let first = Command::new("sleep").arg("600").env("MARK", "a=b").spawn();
        let mut first = first.expect("sleep starts");
        let mut target = Target {
            name: "sleep".into(),
            address: "a:1".into(),
            pids: vec![first.id()],
        };
        until_it_sleeps(first.id());
        let mut processes = Processes::of(&target).expect("readable");
        processes.signal(&target, 0, Signal::Kill).expect("killed");
        processes.gone(&target, 0).expect("gone");
        first.wait().expect("it ended");
        processes.revive(&mut target, 0).expect("it starts");
        assert_ne!(target.pids[0], first.id());
        until_it_sleeps(target.pids[0]);
        let again = recipe(target.pids[0]).expect("readable");
        assert_eq!(again.command, ["sleep", "600"]);
        assert!(again.environment.contains(&("MARK".into(), "a=b".into())));
        processes.signal(&target, 0, Signal::Kill).expect("killed");
        processes.gone(&target, 0).expect("gone");
    }
}
