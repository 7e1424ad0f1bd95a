//! A look at a library's header before the system's loader gets it: a loader maps what the header promises,
//! and a file that is cut off then ends the process.

use std::io::Read;
use std::path::Path;

use super::LoadError;

/// What `e_machine` says of the machines that this may run on.
const MACHINES: [(u16, &str); 7] = [
    (3, "x86"),
    (40, "arm"),
    (62, "x86_64"),
    (183, "aarch64"),
    (21, "powerpc64"),
    (22, "s390x"),
    (243, "riscv64"),
];

/// Refuses what is no whole library for this machine. Systems without ELF leave that to their loader.
///
/// # Errors
/// [`LoadError`] with what the file is.
pub(super) fn check(path: &Path) -> Result<(), LoadError> {
    if !cfg!(all(
        unix,
        not(target_vendor = "apple"),
        target_pointer_width = "64",
        target_endian = "little"
    )) {
        return Ok(());
    }
    let read = |source| LoadError::Read {
        path: path.to_path_buf(),
        source,
    };
    let not_library = |what: &str| LoadError::NotLibrary {
        path: path.to_path_buf(),
        what: what.to_string(),
    };
    // Before it is opened: a pipe would wait for somebody to write.
    let meta = std::fs::metadata(path).map_err(read)?;
    if meta.is_dir() {
        return Err(not_library("it is a folder"));
    }
    if !meta.is_file() {
        return Err(not_library("it is no file"));
    }
    let mut file = std::fs::File::open(path).map_err(read)?;
    let mut header = Vec::new();
    file.by_ref()
        .take(64)
        .read_to_end(&mut header)
        .map_err(read)?;
    if !header.starts_with(b"\x7fELF") {
        return Err(not_library("it does not begin as an ELF file"));
    }
    let truncated = |need: u64| LoadError::Truncated {
        path: path.to_path_buf(),
        need,
        have: meta.len(),
    };
    let Ok(header) = <[u8; 64]>::try_from(header) else {
        return Err(truncated(64));
    };
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let need = std::env::consts::ARCH;
    let machine = MACHINES.iter().find(|(number, _)| *number == half(18));
    let have = machine.map_or_else(
        || format!("machine {}", half(18)),
        |(_, name)| name.to_string(),
    );
    let form = match (header[4], header[5]) {
        (2, 1) => "",
        (1, _) => " with 32 bits",
        _ => " with big-endian numbers",
    };
    if !form.is_empty() || have != need {
        return Err(LoadError::Architecture {
            path: path.to_path_buf(),
            have: have + form,
            need,
        });
    }
    if half(16) != 3 {
        return Err(not_library("it is an ELF file of another kind"));
    }
    let long = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
        u64::from_le_bytes(word.unwrap_or_default())
    };
    let table = |offset: u64, size: u16, count: u16| {
        offset.saturating_add(u64::from(size) * u64::from(count))
    };
    let (programs, sections) = (long(&header, 32), long(&header, 40));
    let (program_size, program_count) = (half(54), half(56));
    let ends = [
        table(programs, program_size, program_count),
        table(sections, half(58), half(60)),
    ];
    let end = ends.into_iter().max().unwrap_or(0);
    if end > meta.len() {
        return Err(truncated(end));
    }
    // Segments: file offset at 8, size in the file at 32.
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::Start(programs)).map_err(read)?;
    let mut segments = vec![0; usize::from(program_size) * usize::from(program_count)];
    file.read_exact(&mut segments).map_err(read)?;
    for segment in segments.chunks_exact(usize::from(program_size).max(1)) {
        let end = long(segment, 8).saturating_add(long(segment, 32));
        if end > meta.len() {
            return Err(truncated(end));
        }
    }
    Ok(())
}
