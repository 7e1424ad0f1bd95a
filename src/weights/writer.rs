//! Tensors streamed into safetensors shards, resumable and reproducible.
//!
//! While it grows, a shard is called `<stem>-00001.safetensors` and has room for
//! its header reserved in front; the header is written when the shard is full,
//! and a background thread hashes it then. Names with the number of shards are
//! given at the end. The bytes depend on the options and the tensors alone, not
//! on where a run was interrupted. Nothing is synced to disk: a killed process
//! loses at most the tensor in flight, a power cut may lose more.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::hash::HashQueue;
use super::{DType, Result, WeightsError};

mod finish;
mod follow;
mod layout;
mod shard;

pub use layout::{Entry, Finished, Placed, Position, ShardInfo, WriterOptions};

use follow::Follower;
use shard::OpenShard;

/// The tensor between `begin` and `end`.
#[derive(Debug)]
struct Growing {
    entry: Entry,
    written: u64,
}

/// Streams tensors into the shards of one directory.
#[derive(Debug)]
pub struct ShardWriter {
    directory: PathBuf,
    options: WriterOptions,
    entries: Vec<Entry>,
    names: HashSet<String>,
    /// Start of data and path of the shards that are complete.
    closed: Vec<(u64, PathBuf)>,
    hashes: HashQueue,
    /// Hashes the first shard while it grows, where its header could be foreseen.
    follower: Option<Follower>,
    open: OpenShard,
    growing: Option<Growing>,
}

impl ShardWriter {
    /// Starts the first shard in an existing directory.
    ///
    /// # Errors
    /// [`WeightsError::Io`], also where a shard of that name exists already.
    pub fn create(directory: &Path, options: WriterOptions) -> Result<ShardWriter> {
        let hashes = HashQueue::start(directory)?;
        let open = OpenShard::create(directory, &options, 0)?;
        Ok(ShardWriter {
            directory: directory.to_path_buf(),
            options,
            entries: Vec::new(),
            names: HashSet::new(),
            closed: Vec::new(),
            hashes,
            follower: None,
            open,
            growing: None,
        })
    }

    /// Continues behind the last of `entries`, which a journal has kept.
    ///
    /// Whatever was written after it is cut off. Complete shards are hashed
    /// again in the background.
    ///
    /// # Errors
    /// [`WeightsError::Writer`] where files and entries disagree.
    pub fn resume(
        directory: &Path,
        options: WriterOptions,
        entries: Vec<Entry>,
    ) -> Result<ShardWriter> {
        check_entries(directory, &entries)?;
        let position = position_after(&entries);
        shard::remove_after(directory, &options, position.shard)?;
        let hashes = HashQueue::start(directory)?;
        let mut closed = Vec::new();
        for number in 0..position.shard {
            let of_shard: Vec<&Entry> = entries.iter().filter(|e| e.shard == number).collect();
            let data_len = of_shard.last().map_or(0, |e| e.offset + e.bytes);
            let mut reopened = OpenShard::reopen(directory, &options, number, data_len)?;
            let done = reopened.close(&options, &of_shard)?;
            hashes.push(&done.1);
            closed.push(done);
        }
        let open = if entries.is_empty() {
            shard::remove(directory, &options, 0)?;
            OpenShard::create(directory, &options, 0)?
        } else {
            OpenShard::reopen(directory, &options, position.shard, position.data_len)?
        };
        Ok(ShardWriter {
            directory: directory.to_path_buf(),
            options,
            names: entries.iter().map(|e| e.name.clone()).collect(),
            entries,
            closed,
            hashes,
            follower: None,
            open,
            growing: None,
        })
    }

    /// Says which tensors will come, in which order, before the first begins.
    ///
    /// Where they all fit one shard its header is known in advance, and the file can be hashed while
    /// it grows. A wrong guess costs nothing but the time of the guess.
    pub fn foresee(&mut self, tensors: &[(String, DType, Vec<u64>)]) {
        let mut entries = Vec::with_capacity(tensors.len());
        let mut offset = 0u64;
        for (name, dtype, shape) in tensors {
            let Some(bytes) = dtype.bytes_for_shape(shape) else {
                return;
            };
            entries.push(Entry {
                name: name.clone(),
                dtype: *dtype,
                shape: shape.clone(),
                shard: 0,
                offset,
                bytes,
            });
            offset = offset.saturating_add(bytes);
        }
        if !self.entries.is_empty() || offset > self.options.shard_size {
            return;
        }
        let all: Vec<&Entry> = entries.iter().collect();
        let start = self.open.data_start;
        let header = shard::header_bytes(&self.options, &all, start);
        if header.len() as u64 == start {
            self.follower = Follower::start(&self.open.path, header);
        }
    }

    /// Tensors written so far.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Hands all bytes to the system and says how far the output is complete.
    ///
    /// A tensor that has begun and not ended is not counted.
    ///
    /// # Errors
    /// [`WeightsError::Io`], for instance of a full disk.
    pub fn position(&mut self) -> Result<Position> {
        self.open.flush()?;
        let position = position_after(&self.entries);
        if let Some(follower) = self.follower.as_ref().filter(|_| position.shard == 0) {
            follower.advance(position.data_len);
        }
        Ok(position)
    }

    /// Goes back to an earlier [`ShardWriter::position`].
    ///
    /// # Errors
    /// [`WeightsError::Writer`] for a position that never was.
    pub fn truncate_to(self, position: Position) -> Result<ShardWriter> {
        let ShardWriter {
            directory,
            options,
            mut entries,
            open,
            hashes,
            ..
        } = self;
        open.discard();
        drop(hashes);
        let reached = entries.len() >= position.entries;
        entries.truncate(position.entries);
        if !reached || position_after(&entries) != position {
            let problem = format!("{position:?} is no earlier point of this output");
            return Err(writer_error(&directory, None, problem));
        }
        ShardWriter::resume(&directory, options, entries)
    }

    /// Begins a tensor; a shard that it would overfill is completed first.
    ///
    /// # Errors
    /// [`WeightsError::Writer`] for a name used before, a type that safetensors
    /// doesn't have, or a tensor still open; [`WeightsError::Io`].
    pub fn begin(&mut self, name: &str, dtype: DType, shape: &[u64]) -> Result<()> {
        let fault = |problem: &str| writer_error(&self.directory, Some(name), problem.to_owned());
        if self.growing.is_some() {
            return Err(fault("begun before the tensor in front of it has ended"));
        }
        if name == "__metadata__" || self.names.contains(name) {
            return Err(fault("the name is taken"));
        }
        if dtype.safetensors_name().is_none() {
            return Err(fault(&format!(
                "safetensors has no type for {dtype}; store it as u8"
            )));
        }
        let elements = shape.iter().try_fold(1_u64, |n, &dim| n.checked_mul(dim));
        let sized = elements.and_then(|n| Some((n, dtype.bytes_for(n)?)));
        let (elements, bytes) = sized.ok_or_else(|| fault("the shape overflows 64 bits"))?;
        if u128::from(elements) * u128::from(dtype.bits()) != u128::from(bytes) * 8 {
            return Err(fault("the elements don't fill whole bytes"));
        }
        if self.open.data_len > 0
            && self.open.data_len.saturating_add(bytes) > self.options.shard_size
        {
            self.next_shard()?;
        }
        let entry = Entry {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            shard: self.open.number,
            offset: self.open.data_len,
            bytes,
        };
        self.growing = Some(Growing { entry, written: 0 });
        Ok(())
    }

    /// Appends bytes to the tensor that has begun.
    ///
    /// # Errors
    /// [`WeightsError::Writer`] for more than its shape holds;
    /// [`WeightsError::Io`], for instance of a full disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(growing) = &mut self.growing else {
            let problem = "bytes without a tensor".to_owned();
            return Err(writer_error(&self.directory, None, problem));
        };
        let left = growing.entry.bytes - growing.written;
        if bytes.len() as u64 > left {
            let problem = format!("{} bytes where {left} are left", bytes.len());
            return Err(writer_error(
                &self.directory,
                Some(&growing.entry.name),
                problem,
            ));
        }
        self.open.append(bytes)?;
        growing.written += bytes.len() as u64;
        Ok(())
    }

    /// Ends the tensor and returns its entry for the journal.
    ///
    /// The bytes may still be buffered: call [`ShardWriter::position`] before
    /// the journal claims them.
    ///
    /// # Errors
    /// [`WeightsError::Writer`] where bytes are missing.
    pub fn end(&mut self) -> Result<Entry> {
        let Some(Growing { entry, written }) = self.growing.take() else {
            let problem = "ended without a tensor".to_owned();
            return Err(writer_error(&self.directory, None, problem));
        };
        if written != entry.bytes {
            let problem = format!("ended after {written} of {} bytes", entry.bytes);
            return Err(writer_error(&self.directory, Some(&entry.name), problem));
        }
        self.open.data_len += entry.bytes;
        self.names.insert(entry.name.clone());
        self.entries.push(entry.clone());
        Ok(entry)
    }

    /// Writes a whole tensor.
    ///
    /// # Errors
    /// As `begin`, `write` and `end`.
    pub fn tensor(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[u64],
        bytes: &[u8],
    ) -> Result<Entry> {
        self.begin(name, dtype, shape)?;
        self.write(bytes)?;
        self.end()
    }

    fn next_shard(&mut self) -> Result<()> {
        self.close_open()?;
        let number = self.open.number + 1;
        self.open = OpenShard::create(&self.directory, &self.options, number)?;
        Ok(())
    }

    /// Completes the open shard, which must not be used after.
    fn close_open(&mut self) -> Result<()> {
        let number = self.open.number;
        let of_shard = self.entries.iter().rev().take_while(|e| e.shard == number);
        let mut of_shard: Vec<&Entry> = of_shard.collect();
        of_shard.reverse();
        let done = self.open.close(&self.options, &of_shard)?;
        let start = done.0;
        let data_len = of_shard.last().map_or(0, |e| e.offset + e.bytes);
        let is = shard::header_bytes(&self.options, &of_shard, start);
        match &mut self.follower {
            Some(follower) if number == 0 && follower.foresaw(&is) => {
                follower.advance(data_len);
                follower.end();
            }
            slot => {
                if number == 0 {
                    *slot = None;
                }
                self.hashes.push(&done.1);
            }
        }
        self.closed.push(done);
        Ok(())
    }
}

fn position_after(entries: &[Entry]) -> Position {
    Position {
        shard: entries.last().map_or(0, |e| e.shard),
        data_len: entries.last().map_or(0, |e| e.offset + e.bytes),
        entries: entries.len(),
    }
}

/// Checks that a journal's entries follow each other as a writer makes them.
fn check_entries(directory: &Path, entries: &[Entry]) -> Result<()> {
    let (mut shard, mut offset) = (0, 0);
    for entry in entries {
        let next = (entry.shard, entry.offset);
        let follows = next == (shard, offset) || (offset > 0 && next == (shard + 1, 0));
        let sized = entry.dtype.bytes_for_shape(&entry.shape) == Some(entry.bytes);
        let end = entry.offset.checked_add(entry.bytes);
        let (Some(end), true) = (end, follows && sized) else {
            let problem = "the journal's entry doesn't follow the one before".to_owned();
            return Err(writer_error(directory, Some(&entry.name), problem));
        };
        (shard, offset) = (entry.shard, end);
    }
    Ok(())
}

fn writer_error(path: &Path, tensor: Option<&str>, problem: String) -> WeightsError {
    WeightsError::Writer {
        path: path.to_path_buf(),
        tensor: tensor.map(str::to_owned),
        problem,
    }
}

#[cfg(test)]
mod tests;
