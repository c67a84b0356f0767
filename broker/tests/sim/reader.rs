//! A reader: follows one partition and asks any broker who leads it. One half say which epoch they know, so
//! that no leader of the past answers them; the others are old clients, which only the leader protects. Now and then
//! it begins anew at the start; a compacted partition it reads from there to its end.

use crate::client::{Ask, Reply};
use crate::dice::Dice;
use crate::invariants::{Invariants, Seen, one_piece, parse};
use crate::may_lack_records;
use crate::net::BROKERS;
use crate::scans::Scanning;
use logd::partition::{ReadError, ReadFrom, ReadOutcome, ReadRequest};

pub struct Reader {
    number: usize,
    partition: u32,
    dice: Dice,
    offset: i64,
    epoch: i32,
    says_epoch: bool,
    leader: Option<usize>,
    waits_for: Option<u64>,
    next_at: u64,
    max_bytes: usize,
    /// What it has seen since it was at the start.
    scanning: Option<Scanning>,
}

/// How much it takes at once: a piece, or all there is.
const AT_ONCE_BYTES: usize = 8 << 10;
const SCANS_AT_ONCE_BYTES: [usize; 3] = [AT_ONCE_BYTES, 64 << 10, 8 << 20];

impl Reader {
    pub fn new(number: usize, partition: u32, dice: Dice) -> Self {
        Self {
            number,
            partition,
            dice,
            offset: 0,
            epoch: -1,
            says_epoch: number.is_multiple_of(2),
            leader: None,
            waits_for: None,
            next_at: 0,
            max_bytes: AT_ONCE_BYTES,
            scanning: None,
        }
    }

    pub fn tick(&mut self, now: u64, send: &mut dyn FnMut(usize, Ask) -> u64) {
        if self.waits_for.is_some() || now < self.next_at {
            return;
        }
        let partition = self.partition;
        let (to, ask) = match self.leader {
            Some(leader) => {
                self.begin_anew();
                let request = ReadRequest {
                    offset: self.offset,
                    max_bytes: self.max_bytes,
                    at_least_one: true,
                    current_leader_epoch: if self.says_epoch { self.epoch } else { -1 },
                    from: ReadFrom::Leader,
                };
                (leader, Ask::Read { partition, request })
            }
            None => (self.dice.index(BROKERS), Ask::Leadership { partition }),
        };
        self.waits_for = Some(send(to, ask));
    }

    fn begin_anew(&mut self) {
        let scans = may_lack_records(self.partition);
        let anew = if scans { 100 } else { 10 };
        if self.dice.chance(anew) {
            self.offset = 0;
            if scans {
                self.max_bytes = self.dice.pick(&SCANS_AT_ONCE_BYTES);
                self.scanning = Some(Scanning::default());
            }
        }
    }

    /// `None`: no answer came in time.
    ///
    /// # Errors
    /// If what was read breaks an invariant.
    pub fn answered(
        &mut self,
        now: u64,
        op: u64,
        reply: Option<&Reply>,
        invariants: &mut Invariants,
    ) -> Result<(), String> {
        if self.waits_for != Some(op) {
            return Ok(());
        }
        self.waits_for = None;
        self.next_at = now + self.dice.range(40..300);
        match reply {
            Some(Reply::Leadership(l)) if l.epoch >= self.epoch && l.leader.is_some() => {
                self.epoch = l.epoch;
                self.leader = l.leader.map(|l| l as usize - 1);
                Ok(())
            }
            Some(Reply::Read(Ok(read))) => self.read(read, invariants),
            Some(Reply::Read(Err(ReadError::OffsetOutOfRange {
                log_start, log_end, ..
            }))) => {
                if self.offset > *log_end {
                    let (who, at) = (self.number, self.offset);
                    return Err(format!(
                        "reader {who} was at {at} of p{}, which now ends at {log_end}",
                        self.partition
                    ));
                }
                self.offset = *log_start;
                Ok(())
            }
            _ => {
                self.leader = None;
                Ok(())
            }
        }
    }

    fn read(&mut self, read: &ReadOutcome, invariants: &mut Invariants) -> Result<(), String> {
        let bytes = one_piece(read.slices.clone());
        let batches = parse(self.partition, &bytes)?;
        let end = batches.last().map_or(self.offset, |b| b.end());
        if end > read.offsets.high_watermark {
            return Err(format!(
                "reader {} was given p{} up to {end}, beyond the high watermark {}",
                self.number, self.partition, read.offsets.high_watermark
            ));
        }
        let from = self.offset;
        self.offset = end;
        let o = &read.offsets;
        invariants.see(&Seen::Read {
            reader: self.number,
            partition: self.partition,
            log_start: read.offsets.log_start,
            high_watermark: read.offsets.high_watermark,
            from,
            batches: &batches,
        })?;
        let Some(scanning) = &mut self.scanning else {
            return Ok(());
        };
        let at_end_of = (end == o.high_watermark).then_some((o.log_start, o.high_watermark));
        scanning.read(self.number, &bytes, at_end_of, invariants)
    }
}
