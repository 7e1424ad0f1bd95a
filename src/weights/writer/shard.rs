//! One growing shard: reserved header, data, and its completion.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::super::safetensors::MAX_HEADER_BYTES;
use super::super::{Result, WeightsError};
use super::{Entry, WriterOptions, writer_error};

/// Bytes gathered before they go to the system; larger writes go directly.
const BUFFER: usize = 1 << 20;

/// A shard that takes data.
#[derive(Debug)]
pub(super) struct OpenShard {
    /// Number from 0.
    pub(super) number: u32,
    /// Bytes of complete tensors.
    pub(super) data_len: u64,
    pub(super) data_start: u64,
    pub(super) path: PathBuf,
    file: BufWriter<File>,
}

impl OpenShard {
    /// Makes the file and reserves its header.
    pub(super) fn create(dir: &Path, options: &WriterOptions, number: u32) -> Result<OpenShard> {
        let path = dir.join(growing_name(&options.stem, number));
        let mut how = OpenOptions::new();
        let file = how.read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|e| WeightsError::io("create", &path, e))?;
        let data_start = reserve(options);
        let mut shard = OpenShard {
            number,
            data_len: 0,
            data_start,
            path,
            file: BufWriter::with_capacity(BUFFER, file),
        };
        // An empty header, so that the start of data can be told after a crash.
        shard.append(&header_bytes(options, &[], data_start))?;
        shard.flush()?;
        Ok(shard)
    }

    /// Opens a file left by an interrupted run and cuts it to `data_len`.
    pub(super) fn reopen(
        dir: &Path,
        options: &WriterOptions,
        number: u32,
        data_len: u64,
    ) -> Result<OpenShard> {
        let path = dir.join(growing_name(&options.stem, number));
        if !path.exists() {
            // The run was interrupted while it gave final names.
            let found = list(dir, options)?.into_iter().find(|(n, _)| *n == number);
            let found = found.map_or_else(|| path.clone(), |(_, found)| found);
            std::fs::rename(&found, &path).map_err(|e| WeightsError::io("rename", &found, e))?;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let mut file = file.map_err(|e| WeightsError::io("open", &path, e))?;
        let fault = |e| WeightsError::io("read", &path, e);
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(fault)?;
        let header = u64::from_le_bytes(length);
        let size = file.metadata().map_err(fault)?.len();
        let end = header.saturating_add(8).saturating_add(data_len);
        if header % 8 != 0 || header > MAX_HEADER_BYTES || end > size {
            let problem = format!("the journal counts {data_len} bytes that the file lacks");
            return Err(writer_error(&path, None, problem));
        }
        file.set_len(end)
            .map_err(|e| WeightsError::io("cut", &path, e))?;
        file.seek(SeekFrom::Start(end)).map_err(fault)?;
        Ok(OpenShard {
            number,
            data_len,
            data_start: header + 8,
            path,
            file: BufWriter::with_capacity(BUFFER, file),
        })
    }

    /// Appends bytes of the tensor in flight.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let result = self.file.write_all(bytes);
        result.map_err(|e| WeightsError::io("write", &self.path, e))
    }

    /// Hands buffered bytes to the system.
    pub(super) fn flush(&mut self) -> Result<()> {
        let result = self.file.flush();
        result.map_err(|e| WeightsError::io("write", &self.path, e))
    }

    /// Closes the file without writing what is buffered.
    pub(super) fn discard(self) {
        let _ = self.file.into_parts();
    }

    /// Writes the header; gives the start of data and the path.
    pub(super) fn close(
        &mut self,
        options: &WriterOptions,
        entries: &[&Entry],
    ) -> Result<(u64, PathBuf)> {
        self.flush()?;
        let needed = header_json(options, entries).len() as u64 + 8;
        let data_start = needed.next_multiple_of(8).max(reserve(options));
        if data_start - 8 > MAX_HEADER_BYTES {
            let problem = format!("a header of {needed} bytes is too long; use smaller shards");
            return Err(writer_error(&self.path, None, problem));
        }
        if data_start != self.data_start {
            self.shift(data_start)?;
        }
        let header = header_bytes(options, entries, data_start);
        let file = self.file.get_mut();
        let result = file
            .seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(&header));
        result.map_err(|e| WeightsError::io("write", &self.path, e))?;
        Ok((data_start, self.path.clone()))
    }

    /// Moves the data, by way of a second file that replaces the first.
    fn shift(&mut self, data_start: u64) -> Result<()> {
        let moved = self.path.with_extension("safetensors.tmp");
        let copied = copy_shifted(self.file.get_mut(), self.data_start, &moved, data_start);
        let file = copied.map_err(|e| {
            // Best effort: the error that matters is the first one.
            let _ = std::fs::remove_file(&moved);
            WeightsError::io("write", &moved, e)
        })?;
        let renamed = std::fs::rename(&moved, &self.path);
        renamed.map_err(|e| WeightsError::io("rename", &moved, e))?;
        self.file = BufWriter::with_capacity(BUFFER, file);
        self.data_start = data_start;
        Ok(())
    }
}

fn copy_shifted(from: &mut File, start: u64, moved: &Path, new_start: u64) -> io::Result<File> {
    let mut how = OpenOptions::new();
    let mut to = how
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(moved)?;
    // A valid length from the first moment: a crash may come right after.
    to.write_all(&(new_start - 8).to_le_bytes())?;
    to.set_len(new_start)?;
    to.seek(SeekFrom::Start(new_start))?;
    from.seek(SeekFrom::Start(start))?;
    io::copy(from, &mut to)?;
    Ok(to)
}

fn reserve(options: &WriterOptions) -> u64 {
    let empty = header_json(options, &[]).len() as u64 + 8;
    let most = MAX_HEADER_BYTES / 8 * 8;
    options
        .header_reserve
        .max(empty)
        .min(most)
        .next_multiple_of(8)
}

/// Length, JSON, and spaces up to the start of data.
pub(super) fn header_bytes(
    options: &WriterOptions,
    entries: &[&Entry],
    data_start: u64,
) -> Vec<u8> {
    let mut bytes = (data_start - 8).to_le_bytes().to_vec();
    bytes.extend_from_slice(header_json(options, entries).as_bytes());
    bytes.resize(data_start as usize, b' ');
    bytes
}

fn header_json(options: &WriterOptions, entries: &[&Entry]) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut parts = Vec::with_capacity(entries.len() + 1);
    if !options.metadata.is_empty() {
        let pair = |(key, value): &(String, String)| format!("{}:{}", quoted(key), quoted(value));
        let pairs: Vec<String> = options.metadata.iter().map(pair).collect();
        parts.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    }
    for entry in entries {
        let dims: Vec<String> = entry.shape.iter().map(u64::to_string).collect();
        let (begin, end) = (entry.offset, entry.offset + entry.bytes);
        let name = quoted(&entry.name);
        let dtype = entry.dtype.safetensors_name().unwrap_or_default();
        let shape = dims.join(",");
        parts.push(format!(
            "{name}:{{\"dtype\":\"{dtype}\",\"shape\":[{shape}],\"data_offsets\":[{begin},{end}]}}"
        ));
    }
    format!("{{{}}}", parts.join(","))
}

/// Name of a shard whose final name isn't known yet.
fn growing_name(stem: &str, number: u32) -> String {
    format!("{stem}-{:05}.safetensors", u64::from(number) + 1)
}

/// Name of shard `number` (from 0) of `count`.
pub(super) fn final_name(stem: &str, number: usize, count: usize) -> String {
    match count {
        1 => format!("{stem}.safetensors"),
        _ => format!("{stem}-{:05}-of-{count:05}.safetensors", number + 1),
    }
}

/// Number from 0 of a shard of this output by its growing or final name.
fn number_of(stem: &str, name: &str) -> Option<u32> {
    let rest = name.strip_prefix(stem)?.strip_suffix(".safetensors")?;
    let Some(digits) = rest.strip_prefix('-') else {
        return rest.is_empty().then_some(0);
    };
    let number = digits
        .split_once("-of-")
        .map_or(digits, |(number, _)| number);
    number.parse::<u32>().ok()?.checked_sub(1)
}

/// Files of this output in the directory, with their numbers.
fn list(dir: &Path, options: &WriterOptions) -> Result<Vec<(u32, PathBuf)>> {
    let fault = |e| WeightsError::io("list", dir, e);
    let mut found = Vec::new();
    for entry in dir.read_dir().map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| number_of(&options.stem, name));
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes what an interrupted run wrote of shard `number`.
pub(super) fn remove(dir: &Path, options: &WriterOptions, number: u32) -> Result<()> {
    for (_, path) in list(dir, options)?
        .into_iter()
        .filter(|(n, _)| *n == number)
    {
        std::fs::remove_file(&path).map_err(|e| WeightsError::io("remove", &path, e))?;
    }
    Ok(())
}

/// Removes the shards after `number`, and an index, of an interrupted run.
pub(super) fn remove_after(dir: &Path, options: &WriterOptions, number: u32) -> Result<()> {
    let later = list(dir, options)?.into_iter().filter(|(n, _)| *n > number);
    let index = dir.join(format!("{}.safetensors.index.json", options.stem));
    for path in later.map(|(_, path)| path).chain([index]) {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(WeightsError::io("remove", &path, e));
            }
            _ => {}
        }
    }
    Ok(())
}
