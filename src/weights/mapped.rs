//! Read-only mapped files whose pages are given back when done with.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::{Result, WeightsError};

/// Pages are released in units of this many bytes.
///
/// A fault maps the neighbours of a page that are in the page cache, up to an
/// aligned 64 KiB; releasing in the same unit takes them back too.
const RELEASE_UNIT: u64 = 64 * 1024;

/// A file mapped read-only, shared by reference.
///
/// Mapping costs address space only: a sparse file of any apparent size is
/// fine. The file must not be changed while mapped; one that was truncated is
/// noticed by [`MappedFile::slice`], save for a race of a few instructions.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    file: File,
    map: Mmap,
}

impl MappedFile {
    /// Maps the regular file at `path`.
    ///
    /// # Errors
    /// [`WeightsError::Io`] where it is missing, unreadable, or no regular file.
    pub fn open(path: &Path) -> Result<Arc<MappedFile>> {
        // A FIFO would block in open, a directory fail only in mmap.
        let kind = std::fs::metadata(path).map_err(|e| WeightsError::io("open", path, e))?;
        if !kind.is_file() {
            let error = std::io::Error::other("it is no regular file");
            return Err(WeightsError::io("map", path, error));
        }
        let file = File::open(path).map_err(|e| WeightsError::io("open", path, e))?;
        // SAFETY: the mapping is read-only and private to this value. A file
        // that another process truncates could raise SIGBUS; `slice` checks the
        // length again before it hands out bytes, and the documentation
        // requires that inputs stay unchanged.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| WeightsError::io("map", path, e))?;
        Ok(Arc::new(MappedFile {
            path: path.to_path_buf(),
            file,
            map,
        }))
    }

    /// Maps the file and checks that it has at least `bytes` bytes.
    ///
    /// # Errors
    /// As [`MappedFile::open`], and [`WeightsError::OutOfBounds`] if shorter.
    pub fn open_expecting(path: &Path, bytes: u64) -> Result<Arc<MappedFile>> {
        let file = MappedFile::open(path)?;
        file.check(0, bytes)?;
        Ok(file)
    }

    /// Path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file when it was mapped.
    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// True for an empty file.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Bytes `offset..offset + len`, read on first touch.
    ///
    /// Costs one `fstat`, so take tiles, not elements.
    ///
    /// # Errors
    /// [`WeightsError::OutOfBounds`] where the file has no such bytes, or no
    /// longer has them.
    pub fn slice(&self, offset: u64, len: u64) -> Result<&[u8]> {
        self.check(offset, len)?;
        self.check_file(offset, len)?;
        self.mapped(offset, len)
    }

    /// Checks that the file still has all bytes that were mapped.
    ///
    /// # Errors
    /// [`WeightsError::OutOfBounds`] where it was truncated.
    pub fn check_whole(&self) -> Result<()> {
        self.check_file(0, self.len())
    }

    fn check_file(&self, offset: u64, len: u64) -> Result<()> {
        let meta = self.file.metadata();
        let meta = meta.map_err(|e| WeightsError::io("inspect", &self.path, e))?;
        match meta.len() < offset.saturating_add(len) {
            true => Err(self.out_of_bounds(offset, len, meta.len())),
            false => Ok(()),
        }
    }

    /// [`Self::slice`] without a look at the file: for many small ranges between two calls of
    /// [`Self::check_whole`].
    ///
    /// # Errors
    /// [`WeightsError::OutOfBounds`] where the mapping has no such bytes.
    pub fn mapped(&self, offset: u64, len: u64) -> Result<&[u8]> {
        self.check(offset, len)?;
        // `check` bounds both by the mapping's length, a usize.
        let range = offset as usize..(offset + len) as usize;
        self.map
            .get(range)
            .ok_or_else(|| self.out_of_bounds(offset, len, self.len()))
    }

    /// The whole file.
    ///
    /// # Errors
    /// As [`MappedFile::slice`].
    pub fn bytes(&self) -> Result<&[u8]> {
        self.slice(0, self.len())
    }

    /// Checks that the mapping has these bytes, without touching the file.
    ///
    /// # Errors
    /// [`WeightsError::OutOfBounds`].
    pub fn check(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(self.out_of_bounds(offset, len, self.len())),
        }
    }

    /// Drops the pages of a range from this process's memory.
    ///
    /// The contents stay valid and are mapped again when touched, so the range
    /// is widened to [64 KiB units](RELEASE_UNIT): otherwise every boundary
    /// between two tiles would leave pages behind. Ranges outside the file are
    /// ignored, as is a system that declines.
    pub fn release(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).div_ceil(RELEASE_UNIT);
        let end = end.saturating_mul(RELEASE_UNIT).min(self.len());
        let begin = offset - offset % RELEASE_UNIT;
        if len == 0 || begin >= end {
            return;
        }
        let (begin, len) = (begin as usize, (end - begin) as usize);
        // SAFETY: DONTNEED on a shared, read-only, file-backed mapping discards
        // no data: a later access reads the same bytes from the file.
        let _ = unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, begin, len)
        };
    }

    /// Asks the system to read a range ahead of its use.
    pub fn will_need(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.len());
        if offset < end {
            let (begin, len) = (offset as usize, (end - offset) as usize);
            // Advice only: a refusal costs time, not correctness.
            let _ = self.map.advise_range(Advice::WillNeed, begin, len);
        }
    }

    fn out_of_bounds(&self, offset: u64, len: u64, size: u64) -> WeightsError {
        WeightsError::OutOfBounds {
            path: self.path.clone(),
            offset,
            len,
            size,
        }
    }
}

/// Maps each file once, however many tensors refer to it.
#[derive(Debug, Default)]
pub struct FileCache {
    files: Mutex<HashMap<PathBuf, Arc<MappedFile>>>,
}

impl FileCache {
    /// A cache without files.
    pub fn new() -> FileCache {
        FileCache::default()
    }

    /// The mapping of `path`, made on first use.
    ///
    /// Paths that lead to the same file share a mapping.
    ///
    /// # Errors
    /// As [`MappedFile::open`].
    pub fn open(&self, path: &Path) -> Result<Arc<MappedFile>> {
        let key = path.canonicalize();
        let key = key.map_err(|e| WeightsError::io("open", path, e))?;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&key) {
            return Ok(Arc::clone(file));
        }
        let file = MappedFile::open(path)?;
        files.insert(key, Arc::clone(&file));
        Ok(file)
    }

    /// All files that are mapped so far, in no order.
    pub fn mapped(&self) -> Vec<Arc<MappedFile>> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn scratch(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("scratch file");
        file.write_all(bytes).expect("write");
        file
    }

    fn resident_file_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
        let line = status.lines().find(|l| l.starts_with("Rss:"));
        line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or(0)
    }

    #[test]
    fn slices_are_bounds_checked() {
        let file = scratch(b"0123456789");
        let map = MappedFile::open(file.path()).expect("open");
        assert_eq!(map.slice(2, 3).expect("inside"), b"234");
        assert_eq!(map.slice(10, 0).expect("empty at the end"), b"");
        for (offset, len) in [(8, 3), (11, 0), (u64::MAX, 1), (1, u64::MAX)] {
            let error = map.slice(offset, len).expect_err("outside");
            assert!(
                matches!(error, WeightsError::OutOfBounds { size: 10, .. }),
                "{error}"
            );
        }
        assert!(MappedFile::open_expecting(file.path(), 10).is_ok());
        assert!(MappedFile::open_expecting(file.path(), 11).is_err());
    }

    #[test]
    fn odd_files_are_typed_errors() {
        let empty = scratch(b"");
        let map = MappedFile::open(empty.path()).expect("empty files map");
        assert!(map.is_empty() && map.slice(0, 1).is_err());
        map.release(0, 100);
        map.will_need(0, 100);
        let dir = tempfile::tempdir().expect("dir");
        for path in [dir.path().to_path_buf(), dir.path().join("absent")] {
            let error = MappedFile::open(&path).expect_err("no file");
            assert!(error.to_string().contains(&path.display().to_string()));
        }
    }

    #[test]
    fn truncation_after_mapping_is_noticed() {
        let file = scratch(&[7; 10_000]);
        let map = MappedFile::open(file.path()).expect("open");
        file.as_file().set_len(100).expect("truncate");
        assert!(matches!(
            map.slice(0, 10_000),
            Err(WeightsError::OutOfBounds { size: 100, .. })
        ));
        assert_eq!(map.slice(0, 100).expect("still there").len(), 100);
    }

    #[test]
    fn huge_sparse_files_map_and_release() {
        let file = scratch(b"");
        let size = 200 << 30;
        if file.as_file().set_len(size).is_err() {
            eprintln!("skipped: the file system has no sparse files of 200 GiB");
            return;
        }
        let map = MappedFile::open(file.path()).expect("open");
        assert_eq!(map.len(), size);
        let (at, len) = (150 << 30, 256 << 20);
        let before = resident_file_kib();
        let sum: u64 = map
            .slice(at, len)
            .expect("hole")
            .iter()
            .map(|&b| u64::from(b))
            .sum();
        assert_eq!(sum, 0);
        map.release(at, len);
        let grown = resident_file_kib().saturating_sub(before);
        assert!(grown < 128 << 10, "{grown} KiB stayed resident");
    }

    #[test]
    fn cache_shares_mappings() {
        let file = scratch(b"abc");
        let cache = FileCache::new();
        let one = cache.open(file.path()).expect("open");
        let name = file.path().file_name().expect("name");
        let dotted = file.path().parent().expect("parent").join(".").join(name);
        assert!(Arc::ptr_eq(&one, &cache.open(&dotted).expect("open again")));
    }
}
