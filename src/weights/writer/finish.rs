//! The end of an output: hashes awaited, final names, the index of several shards.

use std::path::Path;

use super::follow::Follower;
use super::{Entry, Finished, Placed, ShardInfo, ShardWriter, WriterOptions, shard, writer_error};
use crate::weights::{Digest, Result, WeightsError, sha256_file};

impl ShardWriter {
    /// Completes the last shard, waits for hashes, gives final names.
    ///
    /// # Errors
    /// [`WeightsError::Io`]; [`WeightsError::Writer`] with a tensor still open.
    pub fn finish(mut self) -> Result<Finished> {
        if let Some(growing) = &self.growing {
            let problem = "not ended at the end of the output".to_owned();
            return Err(writer_error(
                &self.directory,
                Some(&growing.entry.name),
                problem,
            ));
        }
        self.close_open()?;
        let mut digests = self.hashes.finish()?;
        if let Some(first) = self.follower.and_then(Follower::finish) {
            digests.insert(0, first);
        } else if digests.len() < self.closed.len() {
            let path = &self.closed[0].1;
            digests.insert(0, sha256_file(path, |_, _| {})?);
        }
        let count = self.closed.len();
        let mut files = Vec::with_capacity(count + 1);
        for ((number, (_, path)), digest) in self.closed.iter().enumerate().zip(digests) {
            let file = shard::final_name(&self.options.stem, number, count);
            files.push(finish_file(&self.directory, path, file, digest)?);
        }
        let tensors = self.entries.iter().map(|entry| Placed {
            name: entry.name.clone(),
            file: entry.shard as usize,
            offset: self.closed.get(entry.shard as usize).map_or(0, |c| c.0) + entry.offset,
            bytes: entry.bytes,
        });
        let tensors = tensors.collect();
        if count > 1 {
            files.push(write_index(
                &self.directory,
                &self.options,
                &self.entries,
                &files,
            )?);
        }
        Ok(Finished { files, tensors })
    }
}

fn finish_file(directory: &Path, from: &Path, file: String, digest: Digest) -> Result<ShardInfo> {
    let to = directory.join(&file);
    std::fs::rename(from, &to).map_err(|e| WeightsError::io("rename", from, e))?;
    let meta = to
        .metadata()
        .map_err(|e| WeightsError::io("inspect", &to, e))?;
    Ok(ShardInfo {
        file,
        bytes: meta.len(),
        sha256: digest.to_hex(),
    })
}

fn write_index(
    directory: &Path,
    options: &WriterOptions,
    entries: &[Entry],
    files: &[ShardInfo],
) -> Result<ShardInfo> {
    let file_of = |entry: &Entry| {
        files
            .get(entry.shard as usize)
            .map_or("", |f| f.file.as_str())
    };
    let pair = |entry: &Entry| (entry.name.clone(), file_of(entry).into());
    let map: serde_json::Map<String, serde_json::Value> = entries.iter().map(pair).collect();
    let total: u64 = entries.iter().map(|e| e.bytes).sum();
    let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
    let text = format!("{index:#}\n");
    let file = format!("{}.safetensors.index.json", options.stem);
    let path = directory.join(&file);
    let partial = directory.join(format!("{file}.tmp"));
    std::fs::write(&partial, &text).map_err(|e| WeightsError::io("write", &partial, e))?;
    std::fs::rename(&partial, &path).map_err(|e| WeightsError::io("rename", &partial, e))?;
    Ok(ShardInfo {
        file,
        bytes: text.len() as u64,
        sha256: Digest::of(text.as_bytes()).to_hex(),
    })
}
