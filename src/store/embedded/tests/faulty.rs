//! A disk that fails on demand, under the real redb.

use std::{
    fs::OpenOptions,
    io::{self, ErrorKind},
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use redb::{BackendError, StorageBackend, backends::FileBackend};

use super::super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// Every access fails until another fault is set.
    All(ErrorKind),
    /// The file cannot grow until another fault is set.
    Growth(ErrorKind),
    /// One write, sync or change of length fails, after so many.
    Once(usize, ErrorKind),
    /// The next read fails.
    Read(ErrorKind),
    /// The next write panics, as redb may.
    Panic,
    /// The next sync waits until another fault is set.
    Hold,
    /// A sync waits.
    Held,
}

#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    cache: usize,
    fault: Mutex<Fault>,
    changed: Condvar,
    /// Whether the disk reports that it is full. With a quota it does not.
    reports_free: bool,
    /// The number of times that the file was opened.
    opened: AtomicUsize,
}

impl Disk {
    /// Returns a store on a disk that works, with a cache of so many bytes.
    pub(super) fn store(path: &Path, cache: usize) -> (Embedded, Arc<Self>) {
        Self::make(path, cache, true)
    }

    /// The same with a quota that the disk does not report.
    pub(super) fn with_quota(path: &Path, cache: usize) -> (Embedded, Arc<Self>) {
        Self::make(path, cache, false)
    }

    fn make(path: &Path, cache: usize, reports_free: bool) -> (Embedded, Arc<Self>) {
        file::create(path).unwrap();
        let (path, fault, changed) = (path.to_owned(), Mutex::new(Fault::None), Condvar::new());
        let opened = AtomicUsize::new(0);
        let disk = Arc::new(Self { path, cache, fault, changed, reports_free, opened });
        let (opener, free) = (Arc::clone(&disk), Arc::clone(&disk));
        let medium = Medium {
            open: Box::new(move || opener.open()),
            free: Box::new(move || Ok(free.free())),
        };
        (Embedded::open_with(&disk.path, super::KEEP, medium).unwrap(), disk)
    }

    pub(super) fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    fn free(&self) -> u64 {
        match self.fault() {
            Fault::Growth(_) if self.reports_free => 0,
            _ => 1 << 40,
        }
    }

    pub(super) fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
        self.changed.notify_all();
    }

    pub(super) fn fault(&self) -> Fault {
        *self.fault.lock().unwrap()
    }

    fn open(self: &Arc<Self>) -> Result<Database, redb::Error> {
        if let Fault::All(kind) = self.fault() {
            return Err(io::Error::from(kind).into());
        }
        self.opened.fetch_add(1, Ordering::Relaxed);
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        let backend = Faulty { file: FileBackend::new(file)?, disk: Arc::clone(self) };
        Ok(Database::builder().set_cache_size(self.cache).create_with_backend(backend)?)
    }

    fn on_read(&self) -> io::Result<()> {
        let mut fault = self.fault.lock().unwrap();
        match *fault {
            Fault::All(kind) => Err(kind.into()),
            Fault::Read(kind) => {
                *fault = Fault::None;
                Err(kind.into())
            }
            _ => Ok(()),
        }
    }

    fn on_change(&self, writes: bool) -> io::Result<()> {
        let mut fault = self.fault.lock().unwrap();
        match *fault {
            Fault::All(kind) => Err(kind.into()),
            Fault::Once(0, kind) => {
                *fault = Fault::None;
                Err(kind.into())
            }
            Fault::Once(left, kind) => {
                *fault = Fault::Once(left - 1, kind);
                Ok(())
            }
            Fault::Panic if writes => {
                *fault = Fault::None;
                drop(fault);
                panic!("a panic that this test caused");
            }
            Fault::Hold if !writes => {
                *fault = Fault::Held;
                drop(self.changed.wait_while(fault, |fault| *fault == Fault::Held).unwrap());
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Faulty {
    file: FileBackend,
    disk: Arc<Disk>,
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.on_read()?;
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if let Fault::Growth(kind) = self.disk.fault()
            && len > self.file.len()?
        {
            return Err(kind.into());
        }
        self.disk.on_change(true)?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.on_change(false)?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.on_change(true)?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
