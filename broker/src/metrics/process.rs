//! What the operating system says of this process, read when somebody asks.
//!
//! Promise: a value that cannot be read is absent, not zero.
//! Not here: metrics' names.

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    pub resident: u64,
    /// Resident and not a page of a mapped file.
    pub anonymous: u64,
}

pub fn memory() -> Option<Memory> {
    parse_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_status(status: &str) -> Option<Memory> {
    let kib = |field: &str| -> Option<u64> {
        let line = status.lines().find_map(|l| l.strip_prefix(field))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(Memory {
        resident: kib("VmRSS:")? * 1024,
        anonymous: kib("RssAnon:")? * 1024,
    })
}

pub fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

pub fn open_fds() -> Option<u64> {
    // The listing itself holds one of them open.
    Some((std::fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

/// `None`: without limit.
pub fn max_fds() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_status_file() {
        let status =
            "Name:\tlogd\nVmRSS:\t    2048 kB\nRssAnon:\t     512 kB\nRssFile:\t 1536 kB\n";
        let memory = parse_status(status).unwrap();
        assert_eq!((memory.resident, memory.anonymous), (2 << 20, 512 << 10));
        assert_eq!(parse_status("Name:\tlogd\n"), None);
    }

    #[test]
    fn this_process_uses_some_of_everything() {
        assert!(cpu_seconds() > 0.0);
        if cfg!(target_os = "linux") {
            assert!(memory().unwrap().resident > 1 << 20);
            assert!(open_fds().unwrap() >= 3);
        }
    }
}
