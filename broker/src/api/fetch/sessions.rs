//! The broker's fetch sessions: what a request means for its session before it is read for, and after.
//!
//! Invariant: the cache's lock is never taken while a session's is held by the same task the other way
//! round: a session is taken out of the cache first, used, and then told to the cache.
//! Not here: reading.

use super::cache::{Cache, CacheLimits, Privilege};
use super::session::{Found, Naming, Session, Wanted, wanted};
use logd_proto::ErrorCode;
use logd_proto::fetch::FetchRequest;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Instant;

/// Outside of sessions, or the end of one.
const NO_EPOCH: i32 = -1;
/// Whoever sends it wants a new session.
const FIRST_EPOCH: i32 = 0;
pub const NO_SESSION: i32 = 0;

type Shared = Arc<Mutex<Session>>;

/// What a request has to do with sessions.
enum Part {
    None,
    Opens(Naming, Privilege),
    Goes {
        id: i32,
        epoch: i32,
        session: Shared,
    },
}

/// A request that is being answered.
pub struct Asked {
    /// What to read, in order.
    pub wanted: Vec<Wanted>,
    part: Part,
}

/// Counted for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionCounts {
    pub sessions: usize,
    pub partitions: usize,
    pub evictions: u64,
}

#[derive(Debug)]
pub struct Sessions {
    cache: Mutex<Cache<Shared>>,
}

impl Sessions {
    pub fn new(limits: CacheLimits) -> Self {
        Self {
            cache: Mutex::new(Cache::new(limits)),
        }
    }

    pub fn set_limits(&self, limits: CacheLimits) {
        self.cache.lock().set_limits(limits);
    }

    pub fn counts(&self) -> SessionCounts {
        let cache = self.cache.lock();
        SessionCounts {
            sessions: cache.len(),
            partitions: cache.partitions(),
            evictions: cache.evictions(),
        }
    }

    /// Finds out what a request wants to be read.
    ///
    /// # Errors
    /// It goes on with a session that there is not, or not as the session's next request.
    pub fn begin(
        &self,
        now: Instant,
        naming: Naming,
        request: &FetchRequest,
    ) -> Result<Asked, ErrorCode> {
        let (id, epoch) = (request.session_id, request.session_epoch);
        if epoch == FIRST_EPOCH || epoch == NO_EPOCH {
            if id != NO_SESSION {
                self.cache.lock().remove(id);
            }
            let opens = epoch == FIRST_EPOCH;
            return Ok(Asked {
                wanted: wanted(request, naming),
                part: if opens {
                    Part::Opens(naming, privilege(request))
                } else {
                    Part::None
                },
            });
        }
        self.go_on(now, naming, request)
    }

    fn go_on(
        &self,
        now: Instant,
        naming: Naming,
        request: &FetchRequest,
    ) -> Result<Asked, ErrorCode> {
        let (id, epoch) = (request.session_id, request.session_epoch);
        let unknown = ErrorCode::FetchSessionIdNotFound;
        let session = self.cache.lock().get(id).cloned().ok_or(unknown)?;
        let (wanted, size) = {
            let mut session = session.lock();
            (session.advance(epoch, naming, request)?, session.len())
        };
        if size == 0 {
            self.cache.lock().remove(id);
            let part = Part::None;
            return Ok(Asked { wanted, part });
        }
        if !self.cache.lock().touch(id, now, size) {
            return Err(unknown);
        }
        let part = Part::Goes { id, epoch, session };
        Ok(Asked { wanted, part })
    }

    /// What of the findings goes into the answer, and the session's number.
    ///
    /// # Errors
    /// If another request of the session has come meanwhile.
    pub fn finish(
        &self,
        now: Instant,
        asked: Asked,
        found: Vec<Found>,
    ) -> Result<(i32, Vec<Found>), ErrorCode> {
        match asked.part {
            Part::None => Ok((NO_SESSION, found)),
            Part::Opens(_, _) if asked.wanted.is_empty() => Ok((NO_SESSION, found)),
            Part::Opens(naming, privilege) => {
                let session = Session::open(naming, &asked.wanted, &found);
                let (size, session) = (session.len(), Arc::new(Mutex::new(session)));
                let mut cache = self.cache.lock();
                let id = cache.insert(now, privilege, size, session, rand::random::<i32>);
                Ok((id.unwrap_or(NO_SESSION), found))
            }
            Part::Goes { id, epoch, session } => {
                let news = session.lock().answer(epoch, found)?;
                Ok((id, news))
            }
        }
    }
}

fn privilege(request: &FetchRequest) -> Privilege {
    if request.replica_id >= 0 {
        Privilege::Replica
    } else {
        Privilege::Consumer
    }
}
