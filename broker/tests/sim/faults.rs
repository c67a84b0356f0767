//! Bad days: what goes wrong, how often, and for how long.

use crate::PARTITIONS;
use crate::dice::Dice;
use crate::net::BROKERS;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Power goes: what was not synced may be lost, torn by sector.
    PowerCut {
        broker: usize,
    },
    /// Power goes in the middle of some operation to come.
    PowerAfter {
        broker: usize,
        operations: u64,
    },
    PowerCutEverywhere,
    /// The process is killed; the machine goes on.
    Kill {
        broker: usize,
    },
    /// It hands over what it leads.
    HandOver {
        broker: usize,
    },
    /// The process is told to end: it hands over first.
    Stop {
        broker: usize,
    },
    /// Nothing of it is polled for a while.
    Pause {
        broker: usize,
    },
    Isolate {
        broker: usize,
    },
    /// It is heard and hears nobody, or hears and is heard by nobody.
    Deaf {
        broker: usize,
    },
    Mute {
        broker: usize,
    },
    /// Two do not hear each other; the third hears both.
    Split {
        a: usize,
        b: usize,
    },
    /// Loss and delay everywhere.
    Storm,
    SlowDisk {
        broker: usize,
    },
    FullDisk {
        broker: usize,
    },
    /// A replica's files turn out to be damaged: it is thrown away, and the leader writes it again.
    Damage {
        broker: usize,
        partition: u32,
    },
    /// A sync fails, and the next one says that all is well.
    SyncFails {
        broker: usize,
        syncs: u64,
    },
}

impl Fault {
    pub fn draw(dice: &mut Dice) -> Self {
        let broker = dice.index(BROKERS);
        match dice.range(0..24) {
            0..=2 => Fault::PowerCut { broker },
            3..=4 => Fault::PowerAfter {
                broker,
                operations: dice.range(1..60),
            },
            5 => Fault::PowerCutEverywhere,
            6 => Fault::Kill { broker },
            7 => Fault::Stop { broker },
            8..=9 => Fault::Pause { broker },
            10..=11 => Fault::Isolate { broker },
            12 => Fault::Deaf { broker },
            13 => Fault::Mute { broker },
            14 => Fault::Split {
                a: broker,
                b: (broker + 1) % BROKERS,
            },
            15..=16 => Fault::Storm,
            17 => Fault::SlowDisk { broker },
            18 => Fault::FullDisk { broker },
            19 => Fault::HandOver { broker },
            20..=22 => Fault::Damage {
                broker,
                partition: dice.index(PARTITIONS as usize) as u32,
            },
            _ => Fault::SyncFails {
                broker,
                syncs: dice.range(1..10),
            },
        }
    }

    /// For how long, if it is something that passes.
    pub fn lasts_ms(self, dice: &mut Dice) -> u64 {
        match self {
            Fault::Pause { .. } => dice.range(500..20_000),
            Fault::Isolate { .. }
            | Fault::Deaf { .. }
            | Fault::Mute { .. }
            | Fault::Split { .. } => dice.range(500..12_000),
            Fault::Storm | Fault::SlowDisk { .. } | Fault::FullDisk { .. } => {
                dice.range(1_000..8_000)
            }
            _ => 0,
        }
    }
}

/// How long a broker that went down stays down.
pub fn down_ms(dice: &mut Dice) -> u64 {
    if dice.chance(700) {
        dice.range(50..2_000)
    } else {
        dice.range(2_000..10_000)
    }
}
