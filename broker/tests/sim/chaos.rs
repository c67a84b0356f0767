//! Carries faults out, and lets them pass.

use crate::broker::{Inbound, QUICK_DISK};
use crate::faults::{Fault, down_ms};
use crate::net::{BROKERS, Weather};
use crate::world::{Event, World};
use logd_storage::OpenError;
use logd_storage::vfs::Fault as DiskFault;

/// Space that a disk has on good days.
const PLENTY: u64 = 1 << 40;

impl World {
    pub fn begin(&mut self) -> Result<(), String> {
        for broker in 0..BROKERS {
            self.restart(broker)?;
            let first = self.dice.range(500..2_500);
            self.schedule(first, Event::Housekeeping { broker });
        }
        self.schedule(2_000, Event::Fault);
        Ok(())
    }

    pub fn next_fault(&mut self) {
        if self.fair_weather {
            return;
        }
        let wait = self.dice.range(200..3_000);
        self.schedule(wait, Event::Fault);
        let fault = Fault::draw(&mut self.dice);
        self.strike(fault);
    }

    fn strike(&mut self, fault: Fault) {
        self.trace.say(format_args!("-- {fault:?}"));
        match fault {
            Fault::PowerCut { broker } => self.power_cut(broker),
            Fault::PowerAfter { broker, operations } => {
                let fs = &self.brokers[broker].fs;
                fs.inject(DiskFault::PowerAfter(operations));
            }
            Fault::PowerCutEverywhere => (0..BROKERS).for_each(|b| self.power_cut(b)),
            Fault::Kill { broker } => self.down(broker, true),
            Fault::HandOver { broker } => self.hand_over(broker),
            Fault::Damage { broker, partition } => {
                if self.damage(broker, partition) {
                    self.down(broker, true);
                }
            }
            Fault::Stop { broker } => {
                self.hand_over(broker);
                let wait = self.dice.range(200..3_000);
                self.schedule(wait, Event::Stop { broker });
            }
            Fault::SyncFails { broker, syncs } => {
                let fs = &self.brokers[broker].fs;
                fs.inject(DiskFault::SyncErrorOnce(syncs));
            }
            passing => {
                let lasts = fault.lasts_ms(&mut self.dice);
                self.strike_for(passing, lasts);
                self.schedule(lasts, Event::Passes(fault));
            }
        }
        self.note_isolation();
    }

    fn strike_for(&mut self, fault: Fault, lasts_ms: u64) {
        match fault {
            Fault::Pause { broker } => self.brokers[broker].paused_until = self.now + lasts_ms,
            Fault::Storm => {
                self.net.weather = Weather {
                    lost_per_mille: self.dice.range(20..300),
                    slow_ms: self.dice.range(50..1_000),
                };
            }
            Fault::SlowDisk { broker } => {
                let slow = self.dice.range(20..400);
                self.brokers[broker].pace_ms = slow..slow * 2;
            }
            Fault::FullDisk { broker } => {
                let used = self.used(broker);
                let left = self.dice.range(0..200_000);
                self.brokers[broker]
                    .fs
                    .inject(DiskFault::Space(used + left));
            }
            cut => self.cut(cut, true),
        }
    }

    fn cut(&mut self, fault: Fault, is_cut: bool) {
        let cut = &mut self.net.cut;
        for other in 0..BROKERS {
            match fault {
                Fault::Isolate { broker } if other != broker => {
                    (cut[broker][other], cut[other][broker]) = (is_cut, is_cut);
                }
                Fault::Deaf { broker } if other != broker => cut[other][broker] = is_cut,
                Fault::Mute { broker } if other != broker => cut[broker][other] = is_cut,
                Fault::Split { a, b } => (cut[a][b], cut[b][a]) = (is_cut, is_cut),
                _ => {}
            }
        }
    }

    /// What it was comes to an end. Two of a kind end with the first.
    pub fn passes(&mut self, fault: Fault) {
        self.trace.say(format_args!("-- over: {fault:?}"));
        match fault {
            Fault::Storm => self.net.weather = crate::net::FAIR,
            Fault::SlowDisk { broker } => self.brokers[broker].pace_ms = QUICK_DISK,
            Fault::FullDisk { broker } => {
                self.brokers[broker].fs.inject(DiskFault::Space(PLENTY));
            }
            cut => self.cut(cut, false),
        }
        self.note_isolation();
    }

    fn note_isolation(&mut self) {
        for broker in 0..BROKERS {
            let since = &mut self.cut_off_since[broker];
            *since = match (self.net.is_isolated(broker), *since) {
                (true, None) => Some(self.now),
                (true, since) => since,
                (false, _) => None,
            };
        }
    }

    fn used(&self, broker: usize) -> u64 {
        use logd_storage::vfs::Vfs;
        let fs = &self.brokers[broker].fs;
        fs.inject(DiskFault::Space(PLENTY));
        let space = fs.free_space(std::path::Path::new("/data"));
        space.map_or(0, |(free, total)| total - free)
    }

    fn power_cut(&mut self, broker: usize) {
        self.brokers[broker].fs.reboot();
        self.brokers[broker].dark = true;
        self.down(broker, false);
    }

    fn hand_over(&mut self, broker: usize) {
        if self.brokers[broker].up.is_some() {
            self.brokers[broker].inbox.push_back(Inbound::HandOver);
        }
    }

    pub fn stop(&mut self, broker: usize) {
        if self.brokers[broker].is_paused(self.now) || self.brokers[broker].up.is_none() {
            return;
        }
        let ended = self.brokers[broker].stop();
        self.trace
            .say(format_args!("-- {broker} stopped: {ended:?}"));
        self.down(broker, true);
    }

    /// The process is gone; it comes back in a while.
    fn down(&mut self, broker: usize, says_so: bool) {
        if self.brokers[broker].up.is_none() && self.brokers[broker].comes_back {
            return;
        }
        self.brokers[broker].switch_off();
        self.lie.went_down(&mut self.brokers[broker]);
        self.break_calls(broker, says_so);
        let wait = if self.fair_weather {
            100
        } else {
            down_ms(&mut self.dice)
        };
        self.brokers[broker].comes_back = true;
        self.schedule(wait, Event::Restart { broker });
    }

    /// A broker whose disk has failed ends; some of them because the power went. Without power it is gone, whatever
    /// it was doing: not every write that fails is the end of a disk.
    pub fn bury_the_dead(&mut self) {
        for broker in 0..BROKERS {
            let Some(up) = &self.brokers[broker].up else {
                continue;
            };
            let fatal = up.fatal.lock().clone();
            let has_power = self.brokers[broker].fs.has_power();
            let Some(why) = fatal.or_else(|| (!has_power).then(|| "no power".to_owned())) else {
                continue;
            };
            self.trace.say(format_args!("-- {broker} ends: {why}"));
            if self.brokers[broker].fs.has_failed_a_sync() && self.dice.chance(500) {
                self.down(broker, true);
            } else {
                self.power_cut(broker);
            }
        }
    }

    /// # Errors
    /// If the disk says that it is damaged: nothing here damages what was synced.
    pub fn restart(&mut self, broker: usize) -> Result<(), String> {
        if self.brokers[broker].up.is_some() {
            return Ok(());
        }
        // What a process that has no power any more still does, it does to nothing.
        let fs = self.brokers[broker].fs.process();
        self.brokers[broker].seen_fs = self.lie.file_system(&fs, broker);
        let opened = self.brokers[broker].switch_on();
        self.trace
            .say(format_args!("-- {broker} starts: {}", opened.is_ok()));
        self.brokers[broker].comes_back = false;
        self.brokers[broker].dark = false;
        self.looked.retain(|(b, _), _| *b != broker);
        match opened {
            Ok(()) => Ok(()),
            Err(OpenError::Io { what, source, .. }) => {
                self.trace
                    .say(format_args!("-- it cannot {what}: {source}"));
                // Power may have gone while it started; a full disk needs room.
                self.power_cut(broker);
                Ok(())
            }
            Err(other) => Err(format!("broker {broker} does not open its disk: {other}")),
        }
    }

    pub fn housekeeping(&mut self, broker: usize) {
        let wait = self.dice.range(400..2_500);
        self.schedule(wait, Event::Housekeeping { broker });
        if self.brokers[broker].up.is_some() {
            self.note_whole(broker);
            let inbox = &mut self.brokers[broker].inbox;
            inbox.push_back(Inbound::Retain);
            if self.dice.chance(500) {
                inbox.push_back(Inbound::Checkpoint);
            }
        }
    }

    /// Everything is well again, and stays so.
    pub fn heal(&mut self) {
        self.trace.say(format_args!("-- all is well"));
        self.fair_weather = true;
        self.net.heal();
        self.note_isolation();
        for broker in &mut self.brokers {
            broker.fs.inject(DiskFault::Space(PLENTY));
            broker.fs.inject(DiskFault::PowerAfter(u64::MAX / 4));
            broker.fs.inject(DiskFault::SyncErrorOnce(u64::MAX / 4));
            broker.pace_ms = QUICK_DISK;
            broker.paused_until = broker.paused_until.min(self.now);
        }
    }
}
