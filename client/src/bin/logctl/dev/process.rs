//! A process that outlives the command that started it, found again by the next one.
//!
//! Promise: a process is its number *and* the moment of its start, so that a number the system has given to
//! somebody else is never signalled. Linux only, as the broker.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// How often to look whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Which run of the machine, since its clock begins again with each.
    boot: String,
    /// Ticks of that clock at the process's start.
    started_ticks: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Runs,
    /// By a signal, until another one.
    Paused,
    Gone,
}

/// What `/proc/PID/stat` says.
struct Stat {
    state: char,
    started_ticks: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The program's name stands in brackets and may itself contain some; behind it are the third field and on.
fn parse_stat(line: &str) -> Option<Stat> {
    let (_, rest) = line.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        started_ticks: fields.nth(18)?.parse().ok()?,
    })
}

fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

impl Process {
    /// One that was just started, and that nobody has waited for yet.
    pub fn of(pid: u32) -> Option<Process> {
        let pid = i32::try_from(pid).ok()?;
        Some(Process {
            pid,
            boot: boot()?,
            started_ticks: stat(pid)?.started_ticks,
        })
    }

    pub fn life(&self) -> Life {
        let stat = stat(self.pid).filter(|now| now.started_ticks == self.started_ticks);
        match stat.filter(|_| boot().as_ref() == Some(&self.boot)) {
            None => Life::Gone,
            Some(stat) => match stat.state {
                // Ended, and nobody has asked how: in a container without an init, nobody ever does.
                'Z' | 'X' | 'x' => Life::Gone,
                'T' | 't' => Life::Paused,
                _ => Life::Runs,
            },
        }
    }

    pub fn is_gone(&self) -> bool {
        self.life() == Life::Gone
    }

    /// `None` if it cannot be told.
    pub fn uptime(&self) -> Option<Duration> {
        let since_boot = fs::read_to_string("/proc/uptime").ok()?;
        let since_boot: f64 = since_boot.split_whitespace().next()?.parse().ok()?;
        let started = self.started_ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        Duration::try_from_secs_f64((since_boot - started).max(0.0)).ok()
    }

    /// To it or to nobody. One that is gone needs no signal.
    ///
    /// # Errors
    /// If it is somebody else's.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(());
        };
        let sent = pidfd_open(pid, PidfdFlags::empty()).and_then(|handle| {
            // The handle stays with whom it was opened for: looked at after opening, it cannot be another.
            match self.is_gone() {
                true => Ok(()),
                false => pidfd_send_signal(&handle, signal),
            }
        });
        match sent {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Whether it ends within the time.
    pub async fn ends_within(&self, time: Duration) -> bool {
        let begun = Instant::now();
        while !self.is_gone() {
            if begun.elapsed() >= time {
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_name_full_of_brackets_does_not_shift_the_fields() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        let stat = parse_stat(&format!("42 (a) S (b)) {fields}")).unwrap();
        assert_eq!((stat.state, stat.started_ticks), ('S', 4711));
        assert!(parse_stat("42 (cut").is_none() && parse_stat("42 (cut) S 1 2").is_none());
    }

    #[tokio::test]
    async fn a_process_is_paused_goes_on_and_ends() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert_eq!(process.life(), Life::Runs);
        assert!(process.uptime().unwrap() < Duration::from_secs(600));
        process.signal(Signal::STOP).unwrap();
        while process.life() != Life::Paused {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        process.signal(Signal::KILL).unwrap();
        assert!(process.ends_within(Duration::from_secs(60)).await);
        // Nobody has waited for it: it has ended all the same, and a signal to it is no error.
        process.signal(Signal::TERM).unwrap();
        child.wait().unwrap();
        process.signal(Signal::TERM).unwrap();
    }

    #[test]
    fn a_number_that_somebody_else_has_now_is_not_touched() {
        let us = Process::of(std::process::id()).unwrap();
        let before = Process {
            started_ticks: us.started_ticks - 1,
            ..us.clone()
        };
        let earlier = Process {
            boot: "another run of this machine".to_owned(),
            ..us
        };
        for gone in [before, earlier] {
            assert!(gone.is_gone());
            // It would end this test.
            gone.signal(Signal::KILL).unwrap();
        }
    }
}
