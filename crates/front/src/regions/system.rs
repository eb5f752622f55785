//! POSIX shared memory, read and written like the files that it is on Linux.
//!
//! A mapping would be faster by nothing that counts (a tensor has to be copied before it is checked, or the client could
//! change it in between) and would end the server with SIGBUS when a client cuts its object. `pread` and `pwrite` answer
//! with a short count or an error instead.

use penstock_schema::{Error, Result, limits};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Where Linux keeps POSIX shared memory (shm_overview(7)).
const FOLDER: &str = "/dev/shm";

/// Objects that are not for clients: those of Triton's Python workers, of our own, named semaphores (sem_overview(7)), which
/// their users take at their word, and what CUDA, NCCL, torch and OpenMP keep there for themselves.
const RESERVED: [&str; 7] =
    ["triton_python_backend_shm_region_", "penstock_", "sem.", "cuda.shm.", "nccl-", "torch_", "__KMP_"];

/// A range of an object.
pub struct SystemMemory {
    pub key: String,
    pub offset: u64,
    byte_size: u64,
    file: Arc<File>,
}

impl SystemMemory {
    /// Into memory that nobody wrote before: zeroing a batch of pictures would take as long as reading it.
    pub fn read(&self, region: &str, offset: u64, length: usize, into: &mut Vec<u8>) -> Result<()> {
        let begin = into.len();
        into.reserve_exact(length);
        while into.len() - begin < length {
            let at = self.offset + offset + (into.len() - begin) as u64;
            match rustix::io::pread(&self.file, spare_capacity(into), at) {
                Ok(0) => return Err(self.cut(region)),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(failed(region, "read", &error.into())),
            }
        }
        // A vector may have more room than was asked for.
        into.truncate(begin + length);
        Ok(())
    }

    /// Writing past the end would make the object grow again, so that is asked first; a client that cuts it between the two
    /// gets back at most the bytes that it registered.
    pub fn write(&self, region: &str, offset: u64, from: &[u8]) -> Result<()> {
        let length = self.file.metadata().map_err(|error| failed(region, "written", &error))?.len();
        if length < self.offset + offset + from.len() as u64 {
            return Err(self.cut(region));
        }
        self.file.write_all_at(from, self.offset + offset).map_err(|error| failed(region, "written", &error))
    }

    fn cut(&self, region: &str) -> Error {
        Error::invalid(format!(
            "shared memory region '{region}': its object no longer holds the {} bytes that were registered; register it again",
            self.byte_size
        ))
    }
}

/// Objects that are open, by what they are rather than by name: many regions of one cost one descriptor.
#[derive(Default)]
pub struct Objects {
    open: Mutex<HashMap<(u64, u64), Weak<File>>>,
}

impl Objects {
    /// Errors: 400 for a key that is none or reserved, for an object that is not there or not an ordinary file, and for a
    /// range beyond it; 503 when too many are open.
    pub fn open(&self, region: &str, key: &str, offset: u64, byte_size: u64) -> Result<SystemMemory> {
        let end = offset.checked_add(byte_size).ok_or_else(|| {
            Error::invalid(format!(
                "shared memory region '{region}': offset {offset} and byte_size {byte_size} add up to more than 2^64"
            ))
        })?;
        let name = object_name(key).ok_or_else(|| {
            Error::invalid(format!(
                "shared memory region '{region}': its key is not allowed; expected a slash and a name, as shm_open takes it"
            ))
        })?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            // A link could lead anywhere, and a pipe would be waited for.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(Path::new(FOLDER).join(name))
            .map_err(|error| refused(region, name, &error))?;
        let about = file.metadata().map_err(|error| refused(region, name, &error))?;
        if !about.is_file() {
            return Err(Error::invalid(format!("shared memory region '{region}': '/{name}' is not shared memory")));
        }
        if about.len() < end {
            return Err(Error::invalid(format!(
                "shared memory region '{region}': expected '/{name}' to hold {byte_size} bytes at offset {offset}, it has {}",
                about.len()
            )));
        }
        let file = self.shared(region, (about.dev(), about.ino()), file)?;
        Ok(SystemMemory { key: key.to_owned(), offset, byte_size, file })
    }

    /// The descriptor that is there for this object already, or this one.
    fn shared(&self, region: &str, identity: (u64, u64), file: File) -> Result<Arc<File>> {
        let mut open = self.open.lock();
        if let Some(earlier) = open.get(&identity).and_then(Weak::upgrade) {
            return Ok(earlier);
        }
        open.retain(|_, file| file.strong_count() > 0);
        if open.len() as u64 >= limits::SHARED_MEMORY_OBJECTS {
            return Err(Error::unavailable(format!(
                "shared memory region '{region}': {} objects are in use, the limit; unregister some, or put regions into one object",
                open.len()
            )));
        }
        let file = Arc::new(file);
        open.insert(identity, Arc::downgrade(&file));
        Ok(file)
    }
}

/// The file name of a key. Like shm_open, with any number of slashes in front and none behind.
fn object_name(key: &str) -> Option<&str> {
    let name = key.trim_start_matches('/');
    let sound = !name.is_empty()
        && name.len() as u64 <= limits::NAME_BYTES
        && !name.contains('/')
        && !name.chars().any(char::is_control)
        && !name.bytes().all(|byte| byte == b'.')
        && !RESERVED.iter().any(|prefix| name.starts_with(prefix));
    sound.then_some(name)
}

/// Why an object can't be opened, without a path of the host.
fn refused(region: &str, name: &str, error: &std::io::Error) -> Error {
    let why = match error.kind() {
        ErrorKind::NotFound => "there is no such object",
        ErrorKind::PermissionDenied => "the server may not read and write it",
        _ => match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => {
                return Error::unavailable(format!(
                    "shared memory region '{region}': the server has no file descriptors left"
                ));
            }
            _ => "it can't be opened",
        },
    };
    Error::invalid(format!("shared memory region '{region}': unable to open '/{name}': {why}"))
}

fn failed(region: &str, what: &str, error: &std::io::Error) -> Error {
    let why = match error.kind() {
        ErrorKind::StorageFull => "there is no memory left for it",
        _ => "the system refused",
    };
    Error::internal(format!("shared memory region '{region}' could not be {what}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_no_names_are_refused() {
        for (key, name) in [
            ("/a", Some("a")),
            ("a", Some("a")),
            ("//a.b-c", Some("a.b-c")),
            ("", None),
            ("/", None),
            ("/.", None),
            ("/..", None),
            ("/../etc/passwd", None),
            ("a/b", None),
            ("/a/", None),
            ("/a\0b", None),
            ("/a\nb", None),
            ("/sem.lock", None),
            ("/penstock_worker", None),
            ("/triton_python_backend_shm_region_1", None),
        ] {
            assert_eq!(object_name(key), name, "{key:?}");
        }
        assert_eq!(object_name(&"x".repeat(256)), None);
    }
}
