//! Who a data directory is: a number drawn at its birth, how often it was started, how it was left.
//!
//! Promise: the number of starts rises by one per start and never falls, so whoever remembers it can tell
//! yesterday's files put back.

use crate::codec::{Put, Take, crc};
use crate::error::OpenError;
use crate::vfs::{Open, Vfs};
use bytes::Bytes;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

pub(crate) const FILE: &str = "disk";
pub(crate) const FORMAT_FILE: &str = "format";
pub(crate) const FORMAT: &str = "logd data directory, format ";
pub(crate) const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"logd.dsk";
/// The format and the identity take less than a hundred.
pub(crate) const SMALL_FILE_BYTES_MAX: u64 = 64 << 10;

/// Names that may lie in an otherwise empty directory.
const HARMLESS: [&str; 2] = ["LOCK", "lost+found"];

/// A disk's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskIdentity {
    /// The disk's incarnation: another one after a wipe.
    pub id: u128,
    /// 1 at the first start.
    pub start: u64,
    /// The run before this one ended in order.
    pub clean_shutdown: bool,
}

/// Replaces a small file as a whole.
pub(crate) fn replace(fs: &Arc<dyn Vfs>, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (temporary, path) = (dir.join(format!("{name}.tmp")), dir.join(name));
    let how = Open {
        read: true,
        write: true,
        create: true,
        truncate: true,
        ..Open::default()
    };
    let file = fs.open(&temporary, how)?;
    file.write_all_at(&[IoSlice::new(bytes)], 0)?;
    file.sync_data()?;
    fs.rename(&temporary, &path)?;
    fs.sync_dir(dir)
}

/// The bytes of a file that is read as a whole, if it is there.
///
/// # Errors
/// `FileTooLarge` beyond `bytes_max`: a length is no proof of bytes, and a hole must not take all memory.
pub(crate) fn read_file(
    fs: &Arc<dyn Vfs>,
    path: &Path,
    bytes_max: u64,
) -> io::Result<Option<Bytes>> {
    let how = Open {
        read: true,
        ..Open::default()
    };
    let file = match fs.open(path, how) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let len = file.len()?;
    if len > bytes_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len as usize)?;
    bytes.resize(len as usize, 0);
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Some(Bytes::from(bytes)))
}

fn encode(identity: &DiskIdentity) -> Vec<u8> {
    let mut put = Put::default();
    put.0.extend_from_slice(&MAGIC);
    put.u128(identity.id);
    put.u64(identity.start);
    put.u8(u8::from(identity.clean_shutdown));
    let sum = crc(0, &put.0);
    put.u32(sum);
    put.0
}

pub(crate) fn decode(bytes: &Bytes) -> Option<DiskIdentity> {
    let body = bytes.len().checked_sub(4)?;
    let mut take = Take(bytes.slice(body..));
    if take.u32()? != crc(0, &bytes[..body]) {
        return None;
    }
    let mut take = Take(bytes.slice(..body));
    (take.array::<8>()? == MAGIC).then_some(())?;
    Some(DiskIdentity {
        id: take.u128()?,
        start: take.u64()?,
        clean_shutdown: take.u8()? != 0,
    })
}

/// Reads who the disk was and makes it durable that it starts once more; gives birth to it if it is new.
pub(crate) fn start(
    fs: &Arc<dyn Vfs>,
    root: &Path,
    fresh_id: u128,
) -> Result<DiskIdentity, OpenError> {
    let io = |what: &'static str| {
        move |source| OpenError::Io {
            what,
            path: root.to_owned(),
            source,
        }
    };
    check_format(fs, root)?;
    let path = root.join(FILE);
    let before =
        match read_file(fs, &path, SMALL_FILE_BYTES_MAX).map_err(io("read the identity in"))? {
            // The identity is durable before anything else is made.
            None if ["checkpoint", "wal", "logs"]
                .iter()
                .any(|name| fs.exists(&root.join(name))) =>
            {
                return Err(OpenError::Corrupt {
                    path,
                    position: 0,
                    what: "the identity is missing, and there is data that belongs to one".into(),
                });
            }
            None => DiskIdentity {
                id: fresh_id,
                start: 0,
                clean_shutdown: true,
            },
            Some(bytes) => decode(&bytes).ok_or(OpenError::Corrupt {
                path,
                position: 0,
                what: "the identity does not match its checksum".into(),
            })?,
        };
    let now = DiskIdentity {
        start: before.start + 1,
        clean_shutdown: false,
        ..before
    };
    replace(fs, root, FILE, &encode(&now)).map_err(io("write the identity in"))?;
    Ok(DiskIdentity {
        clean_shutdown: before.clean_shutdown,
        ..now
    })
}

/// Makes it durable that everything was synced before the end.
pub(crate) fn mark_clean(
    fs: &Arc<dyn Vfs>,
    root: &Path,
    identity: &DiskIdentity,
) -> io::Result<()> {
    replace(
        fs,
        root,
        FILE,
        &encode(&DiskIdentity {
            clean_shutdown: true,
            ..*identity
        }),
    )
}

fn check_format(fs: &Arc<dyn Vfs>, root: &Path) -> Result<(), OpenError> {
    let io = |what: &'static str| {
        move |source| OpenError::Io {
            what,
            path: root.to_owned(),
            source,
        }
    };
    let path = root.join(FORMAT_FILE);
    if let Some(bytes) =
        read_file(fs, &path, SMALL_FILE_BYTES_MAX).map_err(io("read the format in"))?
    {
        let text = String::from_utf8_lossy(&bytes);
        let Some(found) = text.strip_prefix(FORMAT).map(str::trim) else {
            return Err(OpenError::Foreign {
                path: root.to_owned(),
                what: "its file `format` is not ours".into(),
            });
        };
        return match found.parse() {
            Ok(FORMAT_VERSION) => Ok(()),
            _ => Err(OpenError::Version {
                path,
                found: found.to_owned(),
                known: FORMAT_VERSION,
            }),
        };
    }
    let names = fs.read_dir(root).map_err(io("list"))?;
    // A crash at birth leaves a temporary file behind; that is ours.
    let stranger = names
        .iter()
        .find(|n| !HARMLESS.contains(&n.as_str()) && !n.ends_with(".tmp"));
    if let Some(name) = stranger {
        return Err(OpenError::Foreign {
            path: root.to_owned(),
            what: format!("it holds `{name}` and no file `format`"),
        });
    }
    replace(
        fs,
        root,
        FORMAT_FILE,
        format!("{FORMAT}{FORMAT_VERSION}\n").as_bytes(),
    )
    .map_err(io("write the format in"))
}
